package pubsub

import (
	"cmp"
	"fmt"
	"time"
)

// Options are the knobs of the engines that have a server. A zero field takes its
// default.
type Options struct {
	// Name is that of the connections, for people who look at the server: at most 63
	// bytes of ASCII. A URL of PostgreSQL may have another. Default agentstatsd.
	Name string
	// Timeout bounds each connect, publish, subscribe and check, beside the
	// caller's context; default 5 s.
	Timeout time.Duration
	// CheckInterval is the time between checks whether the server still
	// answers; a dead connection is noticed within CheckInterval and Timeout,
	// or twice CheckInterval on NATS. Default 5 s.
	CheckInterval time.Duration
	// PingInterval is the time between messages of the engine to itself, which
	// show how long delivery takes and whether it works; default 15 s.
	PingInterval time.Duration
}

func (o Options) withDefaults() Options {
	o.Name = cmp.Or(o.Name, "agentstatsd")
	o.Timeout = cmp.Or(o.Timeout, 5*time.Second)
	o.CheckInterval = cmp.Or(o.CheckInterval, 5*time.Second)
	o.PingInterval = cmp.Or(o.PingInterval, 15*time.Second)
	return o
}

func (o Options) validate() error {
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"timeout", o.Timeout},
		{"check interval", o.CheckInterval},
		{"ping interval", o.PingInterval},
	} {
		if d.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %v", d.name, d.value)
		}
	}
	return nil
}
