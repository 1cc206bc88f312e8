package handshake

import (
	"cmp"
	"fmt"
	"time"
)

// Options are the knobs of a Gate. A zero field takes its default.
type Options struct {
	// Max handshakes at once; default 256. MaxPerAddress of one address, in IPv6
	// of one network of 64 bits; default 64. More wait.
	Max, MaxPerAddress int
	// Timeout bounds a handshake and its wait, from the client's first message on;
	// default 10 s.
	Timeout time.Duration
}

func (o Options) withDefaults() Options {
	o.Max = cmp.Or(o.Max, 256)
	o.MaxPerAddress = cmp.Or(o.MaxPerAddress, 64)
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	return o
}

func (o Options) validate() error {
	switch {
	case o.Max < 0:
		return fmt.Errorf("max: want at least 0, got %d", o.Max)
	case o.MaxPerAddress < 0:
		return fmt.Errorf("max per address: want at least 0, got %d", o.MaxPerAddress)
	case o.Timeout < 0:
		return fmt.Errorf("timeout: want at least 0, got %v", o.Timeout)
	}
	return nil
}
