package client

import (
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// CollectorOptions are the knobs of BoundCollector. The zero value works.
type CollectorOptions struct {
	// Timeout of one call of Collect; 0: 5 s, half of what a Pusher waits for a
	// Gatherer.
	Timeout time.Duration
	// Logger of calls that do not return in time; nil: they are not logged.
	Logger *slog.Logger
}

// defaultCollectTimeout is CollectorOptions.Timeout by default.
const defaultCollectTimeout = 5 * time.Second

// BoundCollector returns a Collector for which a registry waits only so long. A
// registry cannot leave out a Collector that hangs: its Gather hangs, for all who
// gather. Register what reads databases or other services by BoundCollector, in place of
// c. The name is for the log.
//
// If c does not return in time, none of its metrics are there, and the logger gets its
// name. The registry gathers the rest without an error. The call is left to itself
// and keeps its goroutine. No other one is begun before it has returned. Calls at the
// same time share one call of c.
func BoundCollector(name string, c prometheus.Collector, opts CollectorOptions) prometheus.Collector {
	if opts.Timeout <= 0 {
		opts.Timeout = defaultCollectTimeout
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &boundCollector{Collector: c, name: name, opts: opts}
}

type boundCollector struct {
	prometheus.Collector
	name string
	opts CollectorOptions

	mu sync.Mutex
	// running is the call that has not returned; nil: none.
	running *collecting
}

// collecting is one call of Collect. metrics may be read when done is closed.
type collecting struct {
	began   time.Time
	done    chan struct{}
	metrics []prometheus.Metric
	// late is guarded by boundCollector.mu.
	late bool
}

// Collect implements prometheus.Collector.
func (b *boundCollector) Collect(out chan<- prometheus.Metric) {
	b.mu.Lock()
	c := b.running
	if c == nil {
		c = &collecting{began: time.Now(), done: make(chan struct{})}
		b.running = c
		go b.collect(c)
	}
	late := c.late
	b.mu.Unlock()
	if late || !waitFor(c.done, max(0, b.opts.Timeout-time.Since(c.began)), nil, 0) {
		b.logLate(c)
		return
	}
	for _, m := range c.metrics {
		out <- m
	}
}

func (b *boundCollector) collect(c *collecting) {
	metrics := make(chan prometheus.Metric)
	go func() {
		defer close(metrics)
		b.Collector.Collect(metrics)
	}()
	for m := range metrics {
		c.metrics = append(c.metrics, m)
	}
	b.mu.Lock()
	b.running = nil
	late := c.late
	b.mu.Unlock()
	close(c.done)
	if late {
		b.opts.Logger.Info("collector has returned", "collector", b.name, "took", time.Since(c.began))
	}
}

// logLate logs a call that did not return in time, once.
func (b *boundCollector) logLate(c *collecting) {
	b.mu.Lock()
	late := c.late
	c.late = true
	b.mu.Unlock()
	if !late {
		b.opts.Logger.Warn("collector has not returned: its metrics are left out until it does", "collector", b.name, "after", time.Since(c.began))
	}
}
