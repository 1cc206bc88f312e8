package aggregator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Reports, scrapes and all that happens to agents go on at once. Each scrape
// parses and has no series twice, also while agents take over one another's
// labels; at the end nothing is left.
func TestConcurrentUse(t *testing.T) {
	for name, groupBy := range groupings {
		t.Run(name, func(t *testing.T) {
			a := newTest(t, Options{GroupBy: groupBy})
			ctx, cancel := context.WithCancel(t.Context())
			var workers, readers sync.WaitGroup
			readers.Go(func() { _ = a.Run(ctx) })
			const agents, rounds = 8, 150
			for n := range agents {
				workers.Go(func() { work(a, n, rounds) })
			}
			var view pushedView
			view.Store(&servedFamilies{})
			readers.Go(func() { pushUntilDone(ctx, a, &view) })
			for range 2 {
				readers.Go(func() {
					for ctx.Err() == nil {
						var txt, pb bytes.Buffer
						all := a.Beside(&view)
						if err := errors.Join(all.WriteText(&txt), all.WriteProtobuf(&pb)); err != nil {
							t.Error(err)
						}
						if _, err := parsePrometheus(txt.Bytes(), textType); err != nil {
							t.Errorf("%v in\n%s", err, &txt)
						}
						if _, err := parsePrometheus(pb.Bytes(), protoType); err != nil {
							t.Error(err)
						}
						a.expire(time.Now())
					}
				})
			}
			readers.Go(func() { countUntilDone(ctx, t, a) })
			workers.Wait()
			cancel()
			readers.Wait()
			for a.orphans.evictOldest(a) {
			}
			require.Zero(t, a.series.Load())
			require.Zero(t, a.hiddenAgents.Load())
			require.Empty(t, a.named)
			require.Empty(t, a.descs.byKey)
			require.Equal(t, alwaysFamilies, a.families.count())
			require.Zero(t, seriesOf(t, a, ""))
		})
	}
}

// work is the life of an agent that shares its labels with others.
func work(a *Aggregator, n, rounds int) {
	me := id(byte(n))
	for i := range rounds {
		epoch := int64(i)
		a.Open(me, identity(fmt.Sprint(n%3)), agent.Session{Epoch: epoch, Instance: agent.Instance{byte(i / 3)}, First: i%3 == 0})
		for j := range 3 {
			a.Report(me, epoch, time.Now(), samples(
				sample("c_total", agent.Counter, float64(i*j)*1234.5),
				sample("x", agent.SampleType((n+i)%3), float64(i), "l", fmt.Sprint(i%5)),
				sample(fmt.Sprint("f", i%7), agent.Gauge, 1),
				sample("bad name", agent.Gauge, 1),
			))
		}
		switch i % 5 {
		case 0:
			a.Close(me, epoch, true)
		case 1:
			a.Close(me, epoch, false)
		case 2:
			a.Relabel(me, identity(fmt.Sprint((n+1)%3)))
		case 3:
			a.Remove(me)
		}
	}
	a.Remove(me)
}

// countUntilDone counts the series by everything.
func countUntilDone(ctx context.Context, t *testing.T, a *Aggregator) {
	for ctx.Err() == nil {
		var errs []error
		for _, by := range cardinality.AllDimensions() {
			_, err := a.Cardinality(ctx, cardinality.Query{By: by})
			errs = append(errs, err)
		}
		_, err := a.Footprint(ctx, 0)
		_, err2 := a.WhatIf(ctx, []string{"username"}, 0)
		if err := errors.Join(append(errs, err, err2, a.addSample(ctx))...); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	}
}

// pushedView are the families that coderd pushes now.
type pushedView struct {
	atomic.Pointer[servedFamilies]
}

// Served implements Pushed.
func (v *pushedView) Served() ([]*metrics.Rendered, map[string]bool) { return *v.Load(), nil }

// pushUntilDone has coderd push families of the names that agents send, in changing
// types.
func pushUntilDone(ctx context.Context, a *Aggregator, view *pushedView) {
	for i := 0; ctx.Err() == nil; i++ {
		names := make(map[string]metrics.Type)
		for n, name := range []string{"c_total", "f1", "x"} {
			if t := metrics.Type((i >> n) % 6); t <= metrics.Histogram {
				names[name] = t
			}
		}
		var served servedFamilies
		for _, name := range slices.Sorted(maps.Keys(names)) {
			if r, err := metrics.Render(pushedFamily(name, names[name]), names[name]); err == nil {
				served = append(served, r)
			}
		}
		a.ReserveFamilies(names)
		view.Store(&served)
	}
}

// slow is a client that reads nothing until it is let.
type slow struct {
	begun chan struct{}
	let   chan struct{}
	once  sync.Once
}

func (w *slow) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.begun) })
	<-w.let
	return len(p), nil
}

// While a client does not take its scrape, nobody else waits.
func TestSlowClientDelaysNothing(t *testing.T) {
	a := fleetOf(t, 20_000, Options{})
	for _, write := range []func(io.Writer) error{a.WriteText, a.WriteProtobuf} {
		w := &slow{begun: make(chan struct{}), let: make(chan struct{})}
		done := make(chan error)
		go func() { done <- write(w) }()
		<-w.begun
		for n := range 20_000 / perAgent {
			require.Empty(t, refusals(a.Report(benchID(n), 1, time.Now(), benchReport(n, 1))))
		}
		a.Relabel(benchID(1), identity("renamed"))
		a.Remove(benchID(2))
		a.Open(benchID(2), benchIdentity(2), agent.Session{Epoch: 1})
		require.Empty(t, refusals(a.Report(benchID(2), 1, time.Now(), benchReport(2, 1))))
		a.expire(time.Now())
		require.NoError(t, a.WriteText(io.Discard))
		require.NoError(t, a.WriteProtobuf(io.Discard))
		a.Relabel(benchID(1), benchIdentity(1))
		close(w.let)
		require.NoError(t, <-done)
	}
}

var errGone = errors.New("gone")

type gone struct{}

func (gone) Write([]byte) (int, error) { return 0, errGone }

func TestWriteErrorsAreReturned(t *testing.T) {
	for _, n := range []int{perAgent, 20_000} {
		a := fleetOf(t, n, Options{})
		require.ErrorIs(t, a.WriteText(gone{}), errGone)
		require.ErrorIs(t, a.WriteProtobuf(gone{}), errGone)
	}
}

func TestOwnFamilies(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	a, err := New(Options{}, reg)
	require.NoError(t, err)
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	a.Report(id(1), 1, time.Now(), samples(sample("", agent.Gauge, 1), sample("a", agent.Gauge, 1)))
	a.Report(id(1), 2, time.Now(), samples())
	a.Report(id(2), 1, time.Now(), samples())
	problems, err := testutil.GatherAndLint(reg)
	require.NoError(t, err)
	require.Empty(t, problems)
	want, err := os.Open("testdata/own.txt")
	require.NoError(t, err)
	defer want.Close()
	require.NoError(t, testutil.GatherAndCompare(reg, want))
}
