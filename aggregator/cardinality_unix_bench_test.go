//go:build unix

package aggregator

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/aggregator/internal/walk"
)

// countedAgents have 40 forwarded series each, which are a million.
const countedAgents = 25_000

// countedReport has samples that have that many descriptors in all agents.
func countedReport(n, descriptors int) *report {
	r := &report{stats: agent.Stats{ConnectionCount: 1, MedianLatencyMS: 1}}
	for i := range 40 {
		d := (n*40 + i) % descriptors
		r.samples = append(r.samples, sample(fmt.Sprintf("agent_process_%02d_resource_usage", d%40), agent.Gauge, float64(n),
			"path", "derp", "reason", fmt.Sprint("acl_drop_or_error_code_", d)))
	}
	return r
}

// countedFleet returns an aggregator with a million forwarded series, and reports like those that
// it has.
func countedFleet(b *testing.B, descriptors int, opts Options) (*Aggregator, []*report) {
	b.Helper()
	a := newTest(b, opts)
	always := len(statsNames) + len(agent.SessionApps)
	reports := make([]*report, countedAgents)
	for n := range countedAgents {
		a.Open(benchID(n), benchIdentity(n), agent.Session{Epoch: 1})
		r := countedReport(n, descriptors-always)
		require.Empty(b, refusals(a.Report(benchID(n), 1, time.Now(), r)))
		if n < 1000 {
			reports[n] = r
		}
	}
	require.Equal(b, descriptors, a.totals().Descriptors)
	return a, reports[:1000]
}

// counts are what is measured: each returns once all is counted.
func counts(b *testing.B, a *Aggregator) map[string]func() {
	of := make(map[string]func())
	for _, by := range cardinality.AllDimensions() {
		of["by "+by.String()] = func() {
			_, err := a.Cardinality(b.Context(), cardinality.Query{By: by})
			require.NoError(b, err)
		}
	}
	of["sample"] = func() { require.NoError(b, a.addSample(b.Context())) }
	of["footprint"] = func() {
		_, err := a.Footprint(b.Context(), 0)
		require.NoError(b, err)
	}
	for _, groupBy := range [][]string{nil, {"username"}, {labelTemplateName}} {
		of["what if "+strings.Join(groupBy, ",")] = func() {
			_, err := a.WhatIf(b.Context(), groupBy, 0)
			require.NoError(b, err)
		}
	}
	return of
}

// BenchmarkCardinality counts a million series, with few descriptors and many. cpu-ms is what
// a call took of one core, at least: other programs slow the caches down.
func BenchmarkCardinality(b *testing.B) {
	for _, descriptors := range []int{85, 1_000_000} {
		for _, groupBy := range [][]string{nil, {"username", labelTemplateName}} {
			name := fmt.Sprint(descriptors)
			if groupBy != nil {
				name += ", grouped"
			}
			b.Run(name, func(b *testing.B) {
				before := heap()
				a, _ := countedFleet(b, descriptors, Options{GroupBy: groupBy, MaxSeries: 4_000_000, MaxSeriesBytes: 1 << 30})
				resident := heap() - before
				for name, count := range counts(b, a) {
					b.Run(name, func(b *testing.B) {
						b.ReportAllocs()
						least := time.Hour
						for b.Loop() {
							cpu := cpuTime(b)
							count()
							least = min(least, cpuTime(b)-cpu)
						}
						b.ReportMetric(float64(least.Microseconds())/1000, "cpu-ms")
						if name == "footprint" {
							f, err := a.Footprint(b.Context(), 0)
							require.NoError(b, err)
							b.ReportMetric(float64(f.Bytes+f.AgentBytes)/float64(resident), "x-heap")
						}
					})
				}
				runtime.KeepAlive(a)
			})
		}
	}
}

// BenchmarkReportsWhileCounting has one goroutine report without a pause, each time with a new
// series, while series are counted or scraped again and again. Of each it measures the longest
// report of a second, in turns, as other programs delay reports too. The metrics are the
// medians, in ms.
func BenchmarkReportsWhileCounting(b *testing.B) {
	for _, descriptors := range []int{85, 1_000_000} {
		b.Run(fmt.Sprint(descriptors), func(b *testing.B) {
			a, reports := countedFleet(b, descriptors, Options{})
			all := counts(b, a)
			h := newScrape(b, a)
			all["scrape"] = func() { serve(b, h, textType, "gzip") }
			all["nothing"] = func() { time.Sleep(time.Second) }
			longest := make(map[string][]time.Duration)
			for b.Loop() {
				for _, name := range []string{"nothing", "scrape", "by value", "sample", "footprint", "what if " + labelTemplateName} {
					longest[name] = append(longest[name], longestReport(a, reports, all[name]))
				}
			}
			for name, of := range longest {
				slices.Sort(of)
				b.ReportMetric(float64(of[len(of)/2].Microseconds())/1000, strings.ReplaceAll(name, " ", "-")+"-ms")
			}
		})
	}
}

// longestReport reports for a second, while f is called.
func longestReport(a *Aggregator, reports []*report, f func()) (longest time.Duration) {
	end := time.Now().Add(time.Second)
	var counting sync.WaitGroup
	counting.Go(func() {
		for time.Now().Before(end) {
			f()
		}
	})
	for i := 0; time.Now().Before(end); i++ {
		n := i % len(reports)
		r := reports[n]
		// A descriptor is created, another one released.
		r.samples[0].Labels[1].Value = fmt.Sprint("new_", time.Now().UnixNano())
		start := time.Now()
		a.Report(benchID(n), 1, start, r)
		longest = max(longest, time.Since(start))
	}
	counting.Wait()
	return longest
}

// timedLocker measures how long a lock is held.
type timedLocker struct {
	sync.Locker
	since time.Time
	took  []time.Duration
}

func (l *timedLocker) Lock() {
	l.Locker.Lock()
	l.since = time.Now()
}

func (l *timedLocker) Unlock() {
	l.took = append(l.took, time.Since(l.since))
	l.Locker.Unlock()
}

// BenchmarkWalk walks a million descriptors: p99-us is how long the lock is held at a time, but for
// one time in 100: with other programs on its core the goroutine is stopped for ms.
func BenchmarkWalk(b *testing.B) {
	a, _ := countedFleet(b, 1_000_000, Options{})
	lock := timedLocker{Locker: a.descs.mu.RLocker()}
	for b.Loop() {
		require.NoError(b, walk.Each(b.Context(), &lock, a.descs.byKey, func(*desc) {}))
	}
	slices.Sort(lock.took)
	b.ReportMetric(float64(lock.took[len(lock.took)*99/100].Nanoseconds())/1000, "p99-us")
}
