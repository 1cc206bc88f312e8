package proxy

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"time"
)

// Options are the knobs of a Proxy. A zero field takes its default.
type Options struct {
	// DialTimeout bounds the time until coderd takes a connection; 0: 10 s.
	DialTimeout time.Duration
	// TLS of connections to a coderd with https; nil: the system's certificates verify it.
	TLS *tls.Config
	// DrainTimeout is the time over which Drain closes connections; 0: 60 s.
	DrainTimeout time.Duration
	// DropForwarded has it leave out what requests say of whom they come from, and over what.
	// It is for where no proxy before this one says so.
	DropForwarded bool
	// MaxConnections bounds the requests that are served, upgraded connections among them;
	// 0: 10,000. Each has two descriptors. A quarter is for agents alone.
	MaxConnections int
}

func (o Options) withDefaults() Options {
	o.DialTimeout = cmp.Or(o.DialTimeout, 10*time.Second)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, time.Minute)
	o.MaxConnections = cmp.Or(o.MaxConnections, 10_000)
	return o
}

func (o Options) validate() error {
	switch {
	case o.DialTimeout < 0:
		return fmt.Errorf("dial timeout: want at least 0, got %s", o.DialTimeout)
	case o.DrainTimeout < 0:
		return fmt.Errorf("drain timeout: want at least 0, got %s", o.DrainTimeout)
	case o.MaxConnections < 0:
		return fmt.Errorf("max connections: want at least 0, got %d", o.MaxConnections)
	}
	return nil
}
