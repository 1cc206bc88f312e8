package registrations

import (
	"cmp"
	"fmt"
	"time"
)

// Options of Registrations. A zero field takes its default.
type Options struct {
	// SyncInterval is the time between two syncs, with a tenth of jitter; default 5 min.
	SyncInterval time.Duration
	// MaxUnknown bounds the agents that wait to be registered at once; default 10,000.
	// Further ones are registered by the next sync.
	MaxUnknown int
}

// SyncInterval is that of Options, or of SetSyncInterval.
func (r *Registrations) SyncInterval() time.Duration { return time.Duration(r.syncInterval.Load()) }

// SetSyncInterval changes Options.SyncInterval, from the next sync on. After an error
// nothing has changed.
func (r *Registrations) SetSyncInterval(interval time.Duration) error {
	opts := r.opts
	opts.SyncInterval = interval
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return err
	}
	r.syncInterval.Store(int64(opts.SyncInterval))
	return nil
}

func (o Options) withDefaults() Options {
	o.SyncInterval = cmp.Or(o.SyncInterval, 5*time.Minute)
	o.MaxUnknown = cmp.Or(o.MaxUnknown, 10_000)
	return o
}

func (o Options) validate() error {
	switch {
	case o.SyncInterval < 10*time.Second:
		return fmt.Errorf("sync interval: want at least 10s, got %v", o.SyncInterval)
	case o.MaxUnknown < 1:
		return fmt.Errorf("max unknown: want at least 1, got %d", o.MaxUnknown)
	}
	return nil
}
