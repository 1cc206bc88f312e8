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
}

func (o Options) withDefaults() Options {
	o.DialTimeout = cmp.Or(o.DialTimeout, 10*time.Second)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, time.Minute)
	return o
}

func (o Options) validate() error {
	switch {
	case o.DialTimeout < 0:
		return fmt.Errorf("dial timeout: want at least 0, got %s", o.DialTimeout)
	case o.DrainTimeout < 0:
		return fmt.Errorf("drain timeout: want at least 0, got %s", o.DrainTimeout)
	}
	return nil
}
