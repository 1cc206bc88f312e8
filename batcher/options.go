package batcher

import (
	"cmp"
	"fmt"
	"time"
)

// Options are the knobs of a Batcher. A zero field takes its default.
type Options struct {
	// BatchSize is how many entries one flush writes, and up to eight times as many while
	// more than four times as many wait; a flush begins when so many wait; default 500.
	BatchSize int
	// FlushInterval is the time between flushes of whatever waits; default 5 s.
	FlushInterval time.Duration
	// MaxPending bounds the entries that wait or are being written; a new key
	// beyond it is refused. Default 500,000, the keys of 50,000 agents with 10
	// each; with short values that is about 200 MB, at most 2 GB.
	MaxPending int
	// MaxPendingPerAgent bounds the keys of one agent that have entries that wait or
	// are being written. MaxPendingPerOwner bounds those of all agents of one owner.
	// New keys beyond are refused. Defaults 1,000, more than an agent may have keys,
	// and a quarter of MaxPending.
	MaxPendingPerAgent, MaxPendingPerOwner int
	// TouchInterval is that of the store: after how long a value that is reported again
	// unchanged is written. Until then it costs the store nothing. Default 0: it is handed
	// to the store each time.
	TouchInterval time.Duration
	// FlushTimeout bounds one call of the store; default 10 s.
	FlushTimeout time.Duration
	// PublishTimeout bounds one call of the publisher; default 5 s.
	PublishTimeout time.Duration
	// ShutdownTimeout bounds the last flush; default 15 s.
	ShutdownTimeout time.Duration
	// Random draws the wait after a flush that failed, within [0, 1); nil:
	// rand.Float64.
	Random func() float64
}

func (o Options) withDefaults() Options {
	o.BatchSize = cmp.Or(o.BatchSize, 500)
	o.FlushInterval = cmp.Or(o.FlushInterval, 5*time.Second)
	o.MaxPending = cmp.Or(o.MaxPending, 500_000)
	o.MaxPendingPerAgent = cmp.Or(o.MaxPendingPerAgent, 1000)
	o.MaxPendingPerOwner = cmp.Or(o.MaxPendingPerOwner, max(o.MaxPending/4, 1))
	o.FlushTimeout = cmp.Or(o.FlushTimeout, 10*time.Second)
	o.PublishTimeout = cmp.Or(o.PublishTimeout, 5*time.Second)
	o.ShutdownTimeout = cmp.Or(o.ShutdownTimeout, 15*time.Second)
	return o
}

// shares returns the bounds of what is pending.
func (o Options) shares() shares {
	return shares{o.MaxPending, o.MaxPendingPerAgent, o.MaxPendingPerOwner}
}

func (o Options) validate() error {
	switch {
	case o.BatchSize < 1 || o.BatchSize > maxBatch:
		return fmt.Errorf("batch size: want 1 to %d, got %d", maxBatch, o.BatchSize)
	case o.MaxPending < o.BatchSize:
		return fmt.Errorf("max pending: want at least the batch size of %d, got %d", o.BatchSize, o.MaxPending)
	case o.MaxPendingPerAgent < 1:
		return fmt.Errorf("max pending per agent: want at least 1, got %d", o.MaxPendingPerAgent)
	case o.MaxPendingPerOwner < 1:
		return fmt.Errorf("max pending per owner: want at least 1, got %d", o.MaxPendingPerOwner)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"flush interval", o.FlushInterval},
		{"touch interval", o.TouchInterval},
		{"flush timeout", o.FlushTimeout},
		{"publish timeout", o.PublishTimeout},
		{"shutdown timeout", o.ShutdownTimeout},
	} {
		if d.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %v", d.name, d.value)
		}
	}
	return nil
}
