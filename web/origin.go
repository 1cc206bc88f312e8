package web

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// SameOrigin returns next without the requests that a page of somebody else has a browser
// send; they are answered 403. A name of somebody else can resolve to the listener, and its
// pages are of the same origin then. So where config asks for no password, a browser may ask
// by an IP address or localhost only. Tools, which send no Origin, may by any name.
func SameOrigin(next http.Handler, config *Config) http.Handler {
	return http.NewCrossOriginProtection().Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" && !config.hasPasswords() && !isOwnName(r.Host) {
			http.Error(w, "want an IP address or localhost as the host: a browser may ask by other names only where there are passwords (--web-config-file)", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	}))
}

// hasPasswords reports whether a password is asked for now.
func (c *Config) hasPasswords() bool { return c != nil && len(c.settings.Get().users) > 0 }

// isOwnName reports whether a host, with a port or without, is none that somebody else's
// DNS resolves.
func isOwnName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}
