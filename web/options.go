package web

import (
	"cmp"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/internal/handshake"
)

// Options are the knobs of a Server. A zero field takes its
// default.
type Options struct {
	// Name is the label listener of the server's own metrics.
	Name string
	// Config has TLS and passwords; nil: neither.
	Config *Config
	// MaxConns bounds the connections in all, MaxConnsPerAddress those of one address
	// (of IPv6: of one network of 64 bits); defaults 512 and 128.
	MaxConns, MaxConnsPerAddress int
	// Handshakes are the limits of those of TLS.
	Handshakes handshake.Options
	// WriteTimeout bounds the writing of a response whose handler sets no deadline of
	// its own; default none.
	WriteTimeout time.Duration
}

func (o Options) withDefaults() Options {
	o.MaxConns = cmp.Or(o.MaxConns, 512)
	o.MaxConnsPerAddress = cmp.Or(o.MaxConnsPerAddress, 128)
	return o
}

func (o Options) validate() error {
	switch {
	case o.MaxConns < 0:
		return fmt.Errorf("max conns: want at least 0, got %d", o.MaxConns)
	case o.MaxConnsPerAddress < 0:
		return fmt.Errorf("max conns per address: want at least 0, got %d", o.MaxConnsPerAddress)
	case o.WriteTimeout < 0:
		return fmt.Errorf("write timeout: want at least 0, got %v", o.WriteTimeout)
	}
	return nil
}
