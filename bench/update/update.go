// Package update compares the cost of a new value of a series in the service's
// aggregator with that in a map by strings.
package update

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/bench/scrape"
)

// Section of the figures, and its only case.
const (
	Section = "update"
	Case    = "2500 agents, 30 samples each"
)

// Subjects of the comparison.
const (
	Agentstatsd = "agentstatsd"
	StringMap   = "map keyed by a built string"
)

// Subjects in the order in which they are shown.
var Subjects = []string{Agentstatsd, StringMap}

// Metrics of an update.
const (
	Nanoseconds = "ns a sample"
	Allocations = "allocations a sample"
)

const (
	agents  = 2500
	samples = 30
	// passes over all agents make one round: 1,500,000 updates.
	passes = 20
)

// Roles that children play.
var Roles = map[string]process.Role{
	"update-" + Agentstatsd: func(_ context.Context, c *process.Console) error {
		agg, _, err := scrape.NewAggregator(agents)
		if err != nil {
			return err
		}
		return serve(c, func(n int, now time.Time, r *load.Report) error { return scrape.Take(agg, n, now, r) })
	},
	"update-" + StringMap: func(_ context.Context, c *process.Console) error {
		m := newStringMap()
		var identities [agents]agent.Identity
		for n := range identities {
			identities[n] = load.Identity(n)
		}
		return serve(c, func(n int, now time.Time, r *load.Report) error {
			m.report(identities[n], now, r)
			return nil
		})
	},
}

// seen is what one round took.
type seen struct{ Nanoseconds, Allocations float64 }

// variants of each report are in turns, so that no value and no byte is that of
// the report before.
const variants = 2

func serve(c *process.Console, take func(n int, now time.Time, r *load.Report) error) error {
	var reports [variants][agents]*load.Report
	for v := range reports {
		for n := range reports[v] {
			reports[v][n] = load.NewReport(n, samples)
			reports[v][n].Set(1 + v)
		}
	}
	now := time.Now()
	// The series are made by other reports, as what is kept of those is to be
	// compared byte by byte.
	for n := range agents {
		if err := take(n, now, load.NewReport(n, samples)); err != nil {
			return err
		}
	}
	round := func() error {
		for pass := range passes {
			now = now.Add(30 * time.Second) // as agents report
			for n, r := range reports[pass%variants] {
				if err := take(n, now, r); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := round(); err != nil { // warms up
		return err
	}
	return c.Serve(nil, map[string]process.Handler{
		"round": func(func(any) error) (any, error) {
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			err := round()
			elapsed := time.Since(start)
			runtime.ReadMemStats(&after)
			const updates = passes * agents * samples
			return seen{
				Nanoseconds: float64(elapsed) / updates,
				Allocations: float64(after.Mallocs-before.Mallocs) / updates,
			}, err
		},
	})
}

// Compare compares updates and adds the figures to run.
func Compare(ctx context.Context, run *figure.Run, rounds int) error {
	children := make(map[string]*process.Child)
	for _, subject := range Subjects {
		child, err := process.StartSelf(ctx, "update-"+subject, nil, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", subject, err)
		}
		defer child.Stop()
		children[subject] = child
	}
	for range rounds {
		for _, subject := range Subjects {
			var s seen
			if err := children[subject].Call("round", nil, &s); err != nil {
				return fmt.Errorf("%s: %w", subject, err)
			}
			k := figure.Key{Section: Section, Case: Case, Subject: subject, Metric: Nanoseconds}
			run.Add(k, s.Nanoseconds)
			k.Metric = Allocations
			run.Add(k, s.Allocations)
		}
	}
	return nil
}
