package aggregator

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// seriesOf returns how many series lines have the text in them.
func seriesOf(t testing.TB, a *Aggregator, contains string) int {
	t.Helper()
	n := 0
	for _, l := range shownLines(text(t, a)) {
		if l[0] != '#' && strings.Contains(l, contains) {
			n++
		}
	}
	return n
}

// running has the aggregator run in a bubble, and returns what ends that.
func running(t *testing.T, a *Aggregator) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

// Series expire by timer, exactly one TTL after the last report that had them, or up to
// a second later if others have just expired.
func TestExpiry(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newTest(t, Options{ReportInterval: 30 * time.Second, SeriesTTL: 100 * time.Second})
		stop := running(t, a)
		defer stop()
		a.Open(id(1), identity("one"), agent.Session{Epoch: 1})
		start := time.Now()
		until := func(d time.Duration) {
			time.Sleep(time.Until(start.Add(d)))
			synctest.Wait()
		}
		a.Report(id(1), 1, time.Now(), samples(sample("a", agent.Gauge, 1), sample("b", agent.Gauge, 1)))
		until(30 * time.Second)
		a.Report(id(1), 1, time.Now(), samples(sample("b", agent.Gauge, 2)))
		until(100*time.Second - 1)
		require.Equal(t, 1, seriesOf(t, a, "a{"))
		until(100 * time.Second)
		require.Equal(t, 0, seriesOf(t, a, "a{"))
		require.Equal(t, 1, seriesOf(t, a, "b{"))
		until(130*time.Second - 1)
		require.Equal(t, 8, seriesOf(t, a, "one"), "b and the stats gauges")
		until(130 * time.Second)
		require.Equal(t, 0, seriesOf(t, a, "one"))
		require.Zero(t, a.series.Load())

		// The session is still open: it can go on.
		a.Report(id(1), 1, time.Now(), samples(sample("a", agent.Gauge, 3)))
		require.Equal(t, 1, seriesOf(t, a, "a{"))

		// One that comes right after a sweep is late by a second at most.
		a.Open(id(2), identity("two"), agent.Session{Epoch: 1})
		until(130*time.Second + 10*time.Millisecond)
		a.Report(id(2), 1, time.Now(), samples())
		until(230*time.Second + 10*time.Millisecond + time.Second)
		require.Zero(t, a.series.Load())
	})
}

// An agent that went without a goodbye is forgotten with its series; one that is
// connected is not.
func TestAgentsThatEndedAreForgotten(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newTest(t, Options{})
		stop := running(t, a)
		defer stop()
		for n := range byte(3) {
			a.Open(id(n), identity("main"), agent.Session{Epoch: 1})
			a.Report(id(n), 1, time.Now(), samples())
		}
		a.Close(id(0), 1, false)
		a.Close(id(1), 1, false)
		a.Open(id(1), identity("main"), agent.Session{Epoch: 2})
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		require.Zero(t, a.series.Load())
		require.Nil(t, a.agent(id(0)))
		require.NotNil(t, a.agent(id(1)))
		require.NotNil(t, a.agent(id(2)))
		a.removeEnded(a.agent(id(2))) // its session began again meanwhile
		require.NotNil(t, a.agent(id(2)))
		a.Close(id(1), 2, false) // has nothing to hand over
		require.Nil(t, a.agent(id(1)))
	})
}

func TestSessions(t *testing.T) {
	one := samples(sample("a", agent.Gauge, 1))
	for _, c := range []struct {
		name string
		then func(a *Aggregator)
		want int
	}{
		{"closed: the series stay", func(a *Aggregator) { a.Close(id(1), 5, false) }, 1},
		{"goodbye: they go", func(a *Aggregator) { a.Close(id(1), 5, true) }, 0},
		{"goodbye of a session before", func(a *Aggregator) { a.Close(id(1), 4, true) }, 1},
		{"removed", func(a *Aggregator) { a.Remove(id(1)) }, 0},
		{"another is removed", func(a *Aggregator) { a.Remove(id(2)) }, 1},
		{"taken over", func(a *Aggregator) { a.Open(id(1), identity("main"), agent.Session{Epoch: 6}) }, 1},
		{"goodbye of the session taken over from", func(a *Aggregator) {
			a.Open(id(1), identity("main"), agent.Session{Epoch: 6})
			a.Close(id(1), 5, true)
		}, 1},
		{"report of the session taken over from", func(a *Aggregator) {
			a.Open(id(1), identity("main"), agent.Session{Epoch: 6})
			a.Report(id(1), 5, time.Now(), samples(sample("b", agent.Gauge, 1)))
		}, 1},
		{"session older than the open one", func(a *Aggregator) {
			a.Open(id(1), identity("main"), agent.Session{Epoch: 4})
			a.Report(id(1), 5, time.Now(), samples(sample("a", agent.Gauge, 1), sample("b", agent.Gauge, 1)))
		}, 2},
		{"report after the end", func(a *Aggregator) {
			a.Close(id(1), 5, false)
			a.Report(id(1), 5, time.Now(), samples(sample("b", agent.Gauge, 1)))
		}, 1},
		{"report of nobody", func(a *Aggregator) { a.Report(id(9), 5, time.Now(), one) }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newTest(t, Options{})
			a.Open(id(1), identity("main"), agent.Session{Epoch: 5})
			require.Empty(t, refusals(a.Report(id(1), 5, time.Now(), one)))
			c.then(a)
			require.Equal(t, c.want, seriesOf(t, a, "template_name"))
		})
	}
}

func TestRelabel(t *testing.T) {
	a := newTest(t, Options{})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	a.Report(id(1), 1, time.Now(), samples(sample("a", agent.Gauge, 1)))
	ident := identity("main")
	ident.WorkspaceName, ident.TemplateName = "renamed", ""
	a.Relabel(id(1), ident)
	a.Relabel(id(2), ident)
	require.Equal(t, "# HELP a Forwarded by workspace agents.\n# TYPE a gauge\n"+
		"a{agent_name=\"main\",username=\"user\",workspace_name=\"renamed\"} 1\n", forwardedText(t, a))
	require.Equal(t, 7, seriesOf(t, a, "coderd_agentstats_"))
	require.Equal(t, 0, seriesOf(t, a, `"ws"`))
}

// Of two agents with equal labels the newer is served. The other comes to light,
// with the values that it has by then, when that goes.
func TestShadowing(t *testing.T) {
	a := newTest(t, Options{})
	report := func(n byte, v float64) {
		require.Empty(t, refusals(a.Report(id(n), 1, time.Now(), samples(sample("a", agent.Gauge, v)))))
	}
	shown := func(v string, hidden int) {
		t.Helper()
		require.Equal(t, "# HELP a Forwarded by workspace agents.\n# TYPE a gauge\n"+
			`a{agent_name="main",template_name="tpl",username="user",workspace_name="ws"} `+v+"\n", forwardedText(t, a))
		require.EqualValues(t, hidden, a.hiddenAgents.Load())
		_, err := scrapeBoth(a)
		require.NoError(t, err)
	}
	newer := identity("main")
	newer.CreatedAt = newer.CreatedAt.Add(time.Second)
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	report(1, 1)
	shown("1", 0)
	a.Open(id(2), newer, agent.Session{Epoch: 1})
	report(2, 2)
	shown("2", 1)
	report(1, 11)
	a.Open(id(3), identity("main"), agent.Session{Epoch: 1})
	report(3, 3)
	shown("2", 2)
	a.Remove(id(2))
	shown("3", 1) // the same age, the greater id
	a.Close(id(3), 1, true)
	shown("11", 0)
	a.Open(id(3), identity("main"), agent.Session{Epoch: 1})
	report(3, 33)
	shown("33", 1)
	a.Relabel(id(1), newer)
	shown("11", 1)
	other := identity("other")
	a.Relabel(id(1), other)
	require.Equal(t, 2, seriesOf(t, a, "a{"))
	require.Zero(t, a.hiddenAgents.Load())
}
