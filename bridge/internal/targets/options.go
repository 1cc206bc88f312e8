package targets

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"
)

// Resolver looks up the addresses of a name. net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Options are the knobs of Targets. A zero field takes its default.
type Options struct {
	// URLs of coderds' metrics, http or https. With dns+ before the scheme all addresses
	// of the name are scraped. All bridges have the same, as an instance is known by
	// them. Required.
	URLs []string
	// Interval between two scrapes of a target; default 15 s.
	Interval time.Duration
	// Timeout of a scrape, at most the interval; default 10 s, or the interval if that is
	// less.
	Timeout time.Duration
	// LookupInterval between two lookups of a name; default 30 s.
	LookupInterval time.Duration
	// MaxBodyBytes of an answer, decompressed; default 64 MiB.
	MaxBodyBytes int64
	// MaxMessageBytes of one request, as the service is set up; default 4 MiB. A family
	// that is larger is left out.
	MaxMessageBytes int
	// MaxTargets bounds the targets of all URLs; default 256, as many instances as the
	// service takes in.
	MaxTargets int
	// HTTPConfigFile has how targets are asked, as a scrape_config of Prometheus has it:
	// authentication, TLS, headers, a proxy. It is read by New, the files that it names for
	// each scrape. Empty: plainly, and the system's certificates verify https.
	HTTPConfigFile string
	// PassThrough has the service take in also what it would compute of agents: no leg of
	// the bridge relays them.
	PassThrough bool
	// Host is the name of this machine; default os.Hostname. It tells targets on loopback
	// from those of other machines.
	Host string
	// Resolver of names; default net.DefaultResolver.
	Resolver Resolver
	// Dial opens a connection to a target; default that of a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (o Options) withDefaults() Options {
	o.Interval = cmp.Or(o.Interval, 15*time.Second)
	o.Timeout = cmp.Or(o.Timeout, min(10*time.Second, o.Interval))
	o.LookupInterval = cmp.Or(o.LookupInterval, 30*time.Second)
	o.MaxBodyBytes = cmp.Or(o.MaxBodyBytes, 64<<20)
	o.MaxMessageBytes = cmp.Or(o.MaxMessageBytes, 4<<20)
	o.MaxTargets = cmp.Or(o.MaxTargets, 256)
	if o.Host == "" {
		o.Host, _ = os.Hostname() // without a name loopback is like any other address
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	return o
}

func (o Options) validate() error {
	switch {
	case len(o.URLs) == 0:
		return errors.New("URLs: want at least 1, got none")
	case o.Interval < time.Second || o.Interval > time.Hour:
		return fmt.Errorf("interval: want 1s to 1h, got %v", o.Interval)
	case o.Timeout <= 0 || o.Timeout > o.Interval:
		return fmt.Errorf("timeout: want above 0 and at most the interval of %v, got %v", o.Interval, o.Timeout)
	case o.LookupInterval < time.Second:
		return fmt.Errorf("lookup interval: want at least 1s, got %v", o.LookupInterval)
	case o.MaxBodyBytes < 1:
		return fmt.Errorf("max body bytes: want at least 1, got %d", o.MaxBodyBytes)
	case o.MaxMessageBytes < minMessageBytes:
		return fmt.Errorf("max message bytes: want at least %d, got %d", minMessageBytes, o.MaxMessageBytes)
	case o.MaxTargets < len(o.URLs):
		return fmt.Errorf("max targets: want at least one for each of %d URLs, got %d", len(o.URLs), o.MaxTargets)
	}
	seen := make(map[string]bool)
	for _, text := range o.URLs {
		s, err := parseSource(text)
		if err != nil {
			return err
		}
		if seen[s.name] {
			return fmt.Errorf("URLs: %s is there twice", s.name)
		}
		seen[s.name] = true
	}
	return nil
}

// CheckURL returns why a URL is none of Options.URLs.
func CheckURL(text string) error {
	_, err := parseSource(text)
	return err
}

// source is one of Options.URLs.
type source struct {
	// url is what is asked for, name its host and port.
	url  *url.URL
	name string
	// all means that each address of the name is a target.
	all bool
}

// parseSource parses a URL. Its errors do not have it, as it may have a password.
func parseSource(text string) (*source, error) {
	rest, all := strings.CutPrefix(text, "dns+")
	u, err := url.Parse(rest)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" {
		return nil, errors.New("URLs: want http://host:2112/, https://host:2112/ or dns+http://name:2112/, got something else")
	}
	s := &source{url: u, all: all}
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	s.name = net.JoinHostPort(strings.ToLower(u.Hostname()), port)
	if _, err := netip.ParseAddr(u.Hostname()); err == nil && all {
		return nil, fmt.Errorf("URLs: want a name after dns+, got %s", s.name)
	}
	return s, nil
}

// port returns the port that is scraped.
func (s *source) port() string {
	_, port, _ := net.SplitHostPort(s.name)
	return port
}
