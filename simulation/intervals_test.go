package simulation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/intervals"
)

const (
	// maxFactor keeps the report interval within half of the default series TTL.
	maxFactor = 2
	// stepInterval is the shortest time between two changes of the factor.
	stepInterval = time.Minute
	// calmAfter so much of the time in which all is mended, no load is above its target,
	// or low: what was measured before is over before the end, and nothing is decided.
	calmAfter = 10 * time.Second
)

// processor is what a process takes of it, as a share of its target: too much, little or
// in between, for a while each.
type processor struct {
	draw *source

	mu sync.Mutex
	// Guarded by mu.

	spent time.Duration
	since time.Time
	until time.Time // when another share is drawn
	share float64
	calm  bool
}

// time returns what was taken since the start.
func (c *processor) time() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.timeLocked()
}

func (c *processor) timeLocked() time.Duration {
	now := time.Now()
	const target = 0.7
	c.spent += time.Duration(c.share * target * float64(runtime.GOMAXPROCS(0)) * float64(now.Sub(c.since)))
	c.since = now
	if c.calm || now.Before(c.until) {
		return c.spent
	}
	// Of three replicas the busiest decides, so most are not.
	switch x := c.draw.float("share"); {
	case x < 0.3:
		c.share = 1.5
	case x < 0.4:
		c.share = 0.95
	default:
		c.share = 0.1
	}
	c.until = now.Add(40*time.Second + c.draw.upTo(80*time.Second, "until"))
	return c.spent
}

// setCalm has the process take what leads to no step, or go on.
func (c *processor) setCalm(calm bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timeLocked()
	c.calm, c.share, c.until = calm, 0.95, time.Time{}
}

// startIntervals has a process take part in decisions on the intervals of agents.
func (p *process) startIntervals(ctx context.Context, draw *source, reg prometheus.Registerer, log *slog.Logger) {
	p.processor = &processor{draw: draw, since: time.Now()}
	var err error
	p.intervals, err = intervals.New(p.pending, p.replicas, intervals.Options{
		MaxFactor: maxFactor, FlushInterval: flushInterval, CPU: p.processor.time,
	}, reg, log)
	if err != nil {
		panic(err)
	}
	p.workers.Go(func() {
		if err := p.intervals.Run(ctx); err != nil {
			panic(err)
		}
	})
}

// setCalm sets that of all processes.
func (w *world) setCalm(calm bool) {
	for _, p := range w.slots {
		if p.processor != nil {
			p.processor.setCalm(calm)
		}
	}
}

// factor returns by how much a process lengthens the intervals of agents.
func (p *process) factor() float64 {
	if p.intervals == nil {
		return 1
	}
	return p.intervals.Factor()
}

// decision is a factor as it was stored after the time after, and known at the time at.
type decision struct {
	factor    float64
	after, at time.Time
}

// factors are the steps.
var factors = []float64{1, 1.5, 2}

// checkIntervals checks that the stored factor changes by a step at a time, at most once a
// minute, and that no interval is too long. Once quiescent all processes have one factor.
func (w *world) checkIntervals(quiescent bool) error {
	if w.slots[0].intervals == nil {
		return nil
	}
	var errs []error
	stored, now := w.db.Lease().IntervalFactor, time.Now()
	if before := w.decided; stored != before.factor {
		w.log("the intervals of agents are lengthened by %v", stored)
		at, was := slices.Index(factors, stored), slices.Index(factors, before.factor)
		if at < 0 || at == was || at < was-1 || at > was+2 {
			errs = append(errs, fmt.Errorf("the factor of intervals is %v, after %v", stored, before.factor))
		}
		if now.Sub(before.after) < stepInterval {
			errs = append(errs, fmt.Errorf("the factor of intervals is %v, and was %v for %v only", stored, before.factor, now.Sub(before.after)))
		}
		w.decided = decision{stored, before.at, now}
	}
	w.decided.at = now
	for _, p := range w.slots {
		factor := p.factor()
		if factor < 1 || factor > maxFactor {
			errs = append(errs, fmt.Errorf("%s lengthens intervals by %v", p.name, factor))
		}
		if quiescent && factor != stored {
			errs = append(errs, fmt.Errorf("%s lengthens intervals by %v, decided is %v", p.name, factor, stored))
		}
	}
	if quiescent {
		for _, a := range w.agents[1:] {
			if c := a.client; c != nil && c.session != nil && c.factor != stored {
				errs = append(errs, fmt.Errorf("%s lengthens its intervals by %v, decided is %v", c, c.factor, stored))
			}
		}
	}
	return errors.Join(errs...)
}

// receiveSettings has an agent obey the intervals that it is sent with an ack.
func (w *world) receiveSettings(c *client) { c.factor = c.on.factor() }
