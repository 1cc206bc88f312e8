package scrape

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/scrape"
)

// keepSeries is longer than any comparison: agents of the bench do not report on
// their own.
const keepSeries = 4 * time.Hour

// NewAggregator returns an aggregator with the series of that many agents, and
// the handler that serves it, put together as the service does it.
func NewAggregator(agents int) (*aggregator.Aggregator, http.Handler, error) {
	reg := metrics.NewRegistry()
	agg, err := aggregator.New(aggregator.Options{SeriesTTL: keepSeries}, reg)
	if err != nil {
		return nil, nil, fmt.Errorf("make an aggregator: %w", err)
	}
	if err := Fill(agg, agents); err != nil {
		return nil, nil, err
	}
	handler, err := scrape.NewHandler(reg, scrape.Options{}, agg)
	return agg, handler, err
}

// Fill opens the sessions of that many agents and takes their first reports in.
func Fill(agg *aggregator.Aggregator, agents int) error {
	for n := range agents {
		agg.Open(load.ID(n), load.Identity(n), agent.Session{Epoch: 1})
	}
	return Update(agg, agents, 0)
}

// Update has each agent report the values of a round: all series change.
func Update(agg *aggregator.Aggregator, agents, round int) error {
	for n := range agents {
		r := load.NewReport(n, load.Forwarded)
		r.Set(round)
		if err := Take(agg, n, time.Now(), r); err != nil {
			return err
		}
	}
	return nil
}

// Take takes a report of agent n in, all of it.
func Take(agg *aggregator.Aggregator, n int, now time.Time, r *load.Report) error {
	if refused, _ := agg.Report(load.ID(n), 1, now, r); len(refused) > 0 {
		return fmt.Errorf("report of agent %d: refused: %s", n, refused[0].Message)
	}
	return nil
}

// serveAgentstatsd is the role of the service's own scrape.
func serveAgentstatsd(ctx context.Context, c *process.Console, series int) error {
	before := heap()
	agents := load.Agents(series)
	agg, handler, err := NewAggregator(agents)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- agg.Run(ctx) }()
	round := 0
	err = serve(ctx, c, handler, map[string]process.Handler{
		"update": func(func(any) error) (any, error) {
			round++
			return nil, Update(agg, agents, round)
		},
		"heap": func(func(any) error) (any, error) { return heap() - before, nil },
	})
	stop()
	return errors.Join(err, <-ended)
}

// heap returns the live bytes after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
