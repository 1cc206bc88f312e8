// Package intervals lengthens the intervals at which agents report while the service or
// its database is over its target load. Afterwards it shortens them again. All
// intervals are multiplied by one factor of at least 1. The holder of the lease decides
// it, on the loads of all replicas, and stores it in the database. While that is
// unavailable the factor stays as it is.
package intervals

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/outage"
)

const (
	// measureInterval is the time between two measurements.
	measureInterval = 5 * time.Second
	// unknownInterval is that time until the factor is read from the database.
	unknownInterval = time.Second
)

// Metadata is the metadata that waits for the database. batcher.Batcher is one.
type Metadata interface {
	// Load returns how long the oldest entry has been pending at now, and the total
	// time spent writing since the start.
	Load(now time.Time) (oldest, flushing time.Duration)
}

// Replicas exchange loads and decisions with the other replicas. replica.Replicas and
// Alone are some.
type Replicas interface {
	// ExchangeLoads publishes the load of this replica, and returns the newest known
	// loads of all.
	ExchangeLoads(ctx context.Context, load agent.Load) (agent.ServiceLoad, error)
	// DecideIntervalFactor stores the factor. It fails unless this replica decides.
	DecideIntervalFactor(ctx context.Context, factor float64) error
}

// Intervals measures the load, and has the factor of the intervals. Its methods are
// safe for concurrent use.
type Intervals struct {
	metadata Metadata
	replicas Replicas
	opts     atomic.Pointer[Options] // Reconfigure replaces them
	log      *slog.Logger
	metrics  *metrics
	factor   atomic.Uint64 // bits of a float64

	// Only Run uses what follows.
	meter      meter
	controller controller
	// exchanges and decisions are outages of the database.
	exchanges, decisions *outage.Log
}

// New returns Intervals with a factor of 1. Its metrics are registered with reg.
func New(metadata Metadata, replicas Replicas, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Intervals, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("intervals options: %w", err)
	}
	i := &Intervals{
		metadata: metadata, replicas: replicas, log: log,
		controller: newController(opts.MaxFactor),
		exchanges:  outage.New(log, "loads are not exchanged, the intervals of agents stay as they are", "loads are exchanged again"),
		decisions:  outage.New(log, "another factor of the intervals of agents is not stored, trying again", "the factor of the intervals of agents is stored again"),
	}
	i.opts.Store(&opts)
	i.setFactor(1)
	var err error
	if i.metrics, err = newMetrics(reg, i.Factor); err != nil {
		return nil, fmt.Errorf("intervals: %w", err)
	}
	return i, nil
}

// Options returns the options in force, with their defaults.
func (i *Intervals) Options() Options { return *i.opts.Load() }

// Reconfigure changes the options but CPU, from the next measurement on. After an error
// nothing has changed.
func (i *Intervals) Reconfigure(opts Options) error {
	opts.CPU = i.opts.Load().CPU
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("intervals options: %w", err)
	}
	i.opts.Store(&opts)
	return nil
}

// Factor returns the factor by which intervals are multiplied, at least 1. It changes
// only by steps. It reads memory only.
func (i *Intervals) Factor() float64 { return math.Float64frombits(i.factor.Load()) }

func (i *Intervals) setFactor(f float64) { i.factor.Store(math.Float64bits(f)) }

// Run measures the load, decides and applies the factor each 5 s until ctx is
// cancelled. Then it returns nil. It must be called once.
func (i *Intervals) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if i.follow(ctx, time.Now()) {
			timer.Reset(measureInterval)
		} else {
			timer.Reset(unknownInterval)
		}
	}
}

// follow measures the load once, applies the decided factor, and decides on the next
// one if this replica has to. It reports whether the factor is known.
func (i *Intervals) follow(ctx context.Context, now time.Time) (known bool) {
	ctx, cancel := context.WithTimeout(ctx, measureInterval)
	defer cancel()
	oldest, flushing := i.metadata.Load(now)
	i.meter.add(sample{at: now, cpu: i.opts.Load().CPU(), oldest: oldest, flushing: flushing})
	load := i.meter.load(i.opts.Load())
	i.metrics.setLoad(load)
	all, err := i.replicas.ExchangeLoads(ctx, load)
	if err != nil {
		i.fail(ctx, i.exchanges, err)
		return false
	}
	i.exchanges.Works(ctx)
	if all.IntervalFactor == 0 {
		return false
	}
	i.controller.max = i.opts.Load().MaxFactor
	factor := i.controller.clamp(all.IntervalFactor)
	i.setFactor(factor)
	step := i.controller.next(now, factor, all.Replicas)
	// What is stored may be above the limit: of a replica that led with another one.
	if step.factor == all.IntervalFactor || !all.Decides {
		return true
	}
	if err := i.replicas.DecideIntervalFactor(ctx, step.factor); err != nil {
		i.fail(ctx, i.decisions, err)
		return true
	}
	i.decisions.Works(ctx)
	i.report(ctx, all.IntervalFactor, step)
	return true
}

// fail logs an error, unless it is that of a stop.
func (*Intervals) fail(ctx context.Context, of *outage.Log, err error) {
	if !errors.Is(ctx.Err(), context.Canceled) {
		of.Failed(ctx, err)
	}
}

// report logs and counts a step that this replica decided.
func (i *Intervals) report(ctx context.Context, before float64, s step) {
	text, direction := "intervals of agents are shortened", stepDown
	if s.factor > before {
		text, direction = "intervals of agents are lengthened", stepUp
	}
	i.metrics.steps.WithLabelValues(direction).Inc()
	i.log.InfoContext(ctx, text, "factor", s.factor, "before", before,
		"load", s.peak.kind, "of_target", math.Round(s.peak.load*100)/100, "replica", s.peak.replica)
}
