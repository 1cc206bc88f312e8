// Package addresses looks at the addresses and URLs that operators give.
package addresses

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Check returns what is wrong with the syntax of host:port. It asks no name
// server.
func Check(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		var invalid *net.AddrError
		if errors.As(err, &invalid) {
			return errors.New(invalid.Err)
		}
		return err
	}
	if strings.ContainsFunc(host, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '/' }) {
		return errors.New("the host holds a blank, a control character or a slash")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is not a number from 0 to %d", port, math.MaxUint16)
	} else if strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("port %q has leading zeros", port)
	}
	return nil
}

// IsPlainURL reports whether text is a URL of HTTP or HTTPS with a host, and without user,
// query and fragment.
func IsPlainURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" &&
		u.User == nil && u.RawQuery == "" && !u.ForceQuery && u.Fragment == ""
}

// lookupTimeout bounds how long a start waits for a name server.
const lookupTimeout = 10 * time.Second

// IsLoopback reports whether a listener on address can be reached from this
// machine only. A name counts if all that it resolves to is loopback.
func IsLoopback(address string) (bool, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false, err
	}
	if host == "" {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return false, fmt.Errorf("look up: %w", err)
	}
	return !slices.ContainsFunc(addrs, func(a net.IPAddr) bool { return !a.IP.IsLoopback() }), nil
}

// IsUnclear reports whether a part of a URL of PostgreSQL may belong to its password,
// as a character is not escaped. The driver would take that part for the host or the
// database, and show it in errors.
func IsUnclear(rawURL string) bool {
	switch Scheme(rawURL) {
	case "postgres", "postgresql":
	default:
		return false // the pubsub looks at its own
	}
	_, rest, _ := strings.Cut(rawURL, "://")
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	if strings.Count(authority, "@") > 1 || strings.Contains(path, "@") || strings.Contains(rawURL, "#") {
		return true
	}
	for pair := range strings.SplitSeq(query, "&") {
		if name, _, ok := strings.Cut(pair, "="); pair != "" && !ok || strings.Contains(name, "@") {
			return true
		}
	}
	return false
}

// Scheme returns the scheme of a URL in lower case, empty of no URL, and
// something that is none of what has none.
func Scheme(rawURL string) string {
	if rawURL == "" {
		return ""
	}
	scheme, _, found := strings.Cut(rawURL, "://")
	if !found {
		return "?"
	}
	return strings.ToLower(scheme)
}

// ServerOf returns the scheme, the servers and the path of URLs, which are separated by
// commas or have several servers each. It returns less of what is unclear.
func ServerOf(urls string) string {
	scheme := Scheme(urls)
	var servers []string
	for text := range strings.SplitSeq(urls, ",") {
		if _, rest, ok := strings.Cut(text, "://"); ok {
			text = rest
		}
		text, _, _ = strings.Cut(text, "?")
		authority, path, _ := strings.Cut(text, "/")
		server := authority[strings.LastIndexByte(authority, '@')+1:]
		switch {
		case strings.Contains(path, "@"): // the authority may be a part of the password
			server = "?"
		case path != "":
			server += "/" + path
		}
		servers = append(servers, server)
	}
	return scheme + "://" + strings.Join(servers, ",")
}
