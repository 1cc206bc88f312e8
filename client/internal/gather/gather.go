// Package gather gathers from Gatherers that may hang.
package gather

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Gatherers gather from the Gatherers of the host, each in a goroutine of its own. Its
// methods are for one goroutine.
type Gatherers struct {
	all     []*gatherer
	timeout time.Duration
	log     *slog.Logger
	// returned is signalled when a Gatherer has returned.
	returned chan struct{}
}

// gatherer is one Gatherer of the host.
//
//	returned --start--> gathering --returns--> returned
//	                    gathering --timeout--> late --returns--> returned
type gatherer struct {
	prometheus.Gatherer
	name string
	// flight is the call that has not returned, or whose result was not taken; nil:
	// none.
	flight *flight
}

// flight is one call of a Gatherer. families and err may be read when done is closed.
type flight struct {
	began    time.Time
	late     bool
	done     chan struct{}
	families []*dto.MetricFamily
	err      error
}

// New returns g, or, if it is a prometheus.Gatherers, each of its elements.
func New(g prometheus.Gatherer, timeout time.Duration, log *slog.Logger) *Gatherers {
	gs := &Gatherers{timeout: timeout, log: log, returned: make(chan struct{}, 1)}
	gs.add(g)
	for i, one := range gs.all {
		one.name = fmt.Sprintf("%T", one.Gatherer)
		if len(gs.all) > 1 {
			one.name = fmt.Sprintf("%d of %d, %T", i+1, len(gs.all), one.Gatherer)
		}
	}
	return gs
}

// Returned is signalled when a Gatherer has returned.
func (gs *Gatherers) Returned() <-chan struct{} { return gs.returned }

func (gs *Gatherers) add(g prometheus.Gatherer) {
	if several, ok := g.(prometheus.Gatherers); ok {
		for _, one := range several {
			gs.add(one)
		}
		return
	}
	gs.all = append(gs.all, &gatherer{Gatherer: g})
}

// Gather returns the families of those that return within the time, and how many
// do. A call that is late from before is not waited for, and no other is begun
// beside it. When ctx ends, Gather returns at once.
func (gs *Gatherers) Gather(ctx context.Context, wait time.Duration) (families []*dto.MetricFamily, answered int, err error) {
	for _, g := range gs.all {
		if g.flight == nil {
			g.flight = gs.start(g.Gatherer)
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	expired := false
	var results prometheus.Gatherers
	var errs []error
	for _, g := range gs.all {
		f := g.flight
		if !f.late && !expired {
			select {
			case <-f.done:
			case <-timer.C:
				expired = true
			case <-ctx.Done():
				expired = true
			}
		}
		select {
		case <-f.done:
		default:
			gs.logLate(g, f)
			continue
		}
		if f.late {
			gs.log.Info("gatherer has returned", "gatherer", g.name, "took", time.Since(f.began))
		}
		g.flight = nil
		results = append(results, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return f.families, f.err }))
		families = f.families
		errs = append(errs, f.err)
	}
	if len(results) > 1 {
		families, err = results.Gather()
		return families, len(results), err
	}
	return families, len(results), errors.Join(errs...)
}

// logLate logs a call that is longer under way than the timeout, once.
func (gs *Gatherers) logLate(g *gatherer, f *flight) {
	if f.late || time.Since(f.began) < gs.timeout {
		return
	}
	f.late = true
	gs.log.Warn("gatherer has not returned: its families are left out until it does", "gatherer", g.name, "after", time.Since(f.began))
}

func (gs *Gatherers) start(g prometheus.Gatherer) *flight {
	f := &flight{began: time.Now(), done: make(chan struct{})}
	go func() {
		defer func() {
			if p := recover(); p != nil {
				f.families, f.err = nil, fmt.Errorf("gather: panic: %v", p)
			}
			close(f.done)
			select {
			case gs.returned <- struct{}{}:
			default:
			}
		}()
		f.families, f.err = g.Gather()
	}()
	return f
}
