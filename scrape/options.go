package scrape

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"

	"github.com/coder/agentstatsd/metrics"
)

// Options are the knobs of a scrape handler. A zero field takes its default.
type Options struct {
	// WriteTimeout is how long one scrape may take, from its first byte to its
	// last; default 1 min, the longest scrape timeout that is common.
	WriteTimeout time.Duration
	// Hidden returns names of families of the registry that are not served, as a part has
	// them; nil: all are.
	Hidden func() map[string]bool
	// Headers returns the families of the registry that may have no series; nil: none. In
	// text their HELP and TYPE are served all the same. metrics.Registry.Headers is one.
	Headers func() []metrics.Header
	// Log gets what could not be gathered; nil: it is not logged.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	o.WriteTimeout = cmp.Or(o.WriteTimeout, time.Minute)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	return o
}

func (o Options) validate() error {
	if o.WriteTimeout < 0 {
		return fmt.Errorf("write timeout: want at least 0, got %v", o.WriteTimeout)
	}
	return nil
}
