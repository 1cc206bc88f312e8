package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/durations"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/documented"
)

// TestGoldenLifecycle follows started_at and ready_at through the vectors. In
// the case of a missing time (null) ours is the server's, as for the zero time.
func TestGoldenLifecycle(t *testing.T) {
	data, err := os.ReadFile("testdata/lifecycle.json")
	require.NoError(t, err)
	type times struct {
		Started any `json:"started_at"`
		Ready   any `json:"ready_at"`
		S, R    any
	}
	var v struct {
		Cases []struct {
			Name   string
			Before times
			Report struct {
				State     json.RawMessage
				ChangedAt any `json:"changed_at"`
			}
			After     times
			Reports   []string
			AfterEach []times `json:"after_each"`
			Error     string  `json:"error_contains"`
		}
	}
	require.NoError(t, json.Unmarshal(data, &v))
	at := func(v any) time.Time {
		switch v := v.(type) {
		case string:
			if n, found := strings.CutPrefix(v, "T"); found {
				hours, err := strconv.Atoi(n)
				require.NoError(t, err)
				return day.Add(time.Duration(hours) * time.Hour)
			}
			if v == "now" || v == "1970-01-01T00:00:00Z" {
				return day.Add(99 * time.Hour)
			}
			return time.Time{} // "zero"
		case float64:
			return day.Add(time.Duration(v) * time.Hour)
		}
		return time.Time{}
	}
	for _, c := range v.Cases {
		if c.Error != "" {
			continue // agentapi refuses states that it does not know
		}
		report := func(s agent.Startup, state string, changed time.Time) agent.Startup {
			if changed.IsZero() {
				changed = at("now")
			}
			var st agent.State
			if !s.StartedAt.IsZero() {
				st.SetStarted(s.StartedAt, agent.Order{Epoch: 1, Sequence: 1})
			}
			if !s.ReadyAt.IsZero() {
				st.SetReady(s, agent.Order{Epoch: 1, Sequence: 2})
			}
			st.SetLifecycle(agent.Lifecycle{State: agent.LifecycleState(state), ChangedAt: changed}, agent.Order{Epoch: 2})
			return st.Startup
		}
		if len(c.Reports) > 0 {
			var s agent.Startup
			for i, r := range c.Reports {
				state, hour, _ := strings.Cut(r, "@")
				s = report(s, state, at("T"+hour))
				require.Equal(t, at(c.AfterEach[i].S), s.StartedAt, r)
				require.Equal(t, at(c.AfterEach[i].R), s.ReadyAt, r)
			}
			require.Equal(t, agent.LifecycleReady, s.Result, "what came after is no start")
			continue
		}
		var state string
		if c.Report.State == nil || json.Unmarshal(c.Report.State, &state) != nil {
			state = "ready"
		}
		s := report(agent.Startup{StartedAt: at(c.Before.Started), ReadyAt: at(c.Before.Ready)}, state, at(c.Report.ChangedAt))
		require.Equal(t, at(c.After.Ready), s.ReadyAt, c.Name)
		if c.After.Started != nil {
			require.Equal(t, at(c.After.Started), s.StartedAt, c.Name)
		}
	}
}

// gathered returns the family of that name.
func gathered(t *testing.T, p parts, name string) *dto.MetricFamily {
	t.Helper()
	families, err := p.reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f
		}
	}
	return nil
}

// observed returns the builds that were observed: the values of the labels, how
// many, and the sum of seconds.
func observed(t *testing.T, p parts) []string {
	t.Helper()
	var out []string
	for _, m := range gathered(t, p, "coderd_template_workspace_build_duration_seconds").GetMetric() {
		var values []string
		for _, l := range m.GetLabel() {
			values = append(values, l.GetValue())
		}
		out = append(out, fmt.Sprintf("%s: %d %v", strings.Join(values, " "), m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()))
	}
	return out
}

// build returns agent n of workspace w in build b, as coderd knows it.
func build(n, w, b int, name string) agent.Registration {
	reg := registration(n, w, b)
	reg.Name = name
	reg.Workspace.Organization = "acme"
	return reg
}

func built(b int, after time.Duration) time.Time {
	return day.Add(time.Duration(b)*time.Hour + after)
}

// says has the agent report states of its life, each in a request of its own.
func says(t *testing.T, s *Session, at time.Time, states ...agent.LifecycleState) {
	t.Helper()
	for _, state := range states {
		sequence := s.Progress().Received + 1
		receive(t, s, sequence, func(r Request) { r.SetLifecycle(agent.Lifecycle{State: state, ChangedAt: at}, 0) })
	}
}

// written waits until all is written.
func written() {
	time.Sleep(time.Minute)
	synctest.Wait()
}

func TestBuildIsObservedWhenItsLastAgentStarted(t *testing.T) {
	for _, c := range []struct {
		why      string
		one, two agent.LifecycleState
		want     string
	}{
		{"both are ready", agent.LifecycleReady, agent.LifecycleReady, "success"},
		{"one was slow", agent.LifecycleStartTimeout, agent.LifecycleReady, "timeout"},
		{"error is worse than slow", agent.LifecycleStartError, agent.LifecycleStartTimeout, "error"},
		{"also the other way round", agent.LifecycleStartTimeout, agent.LifecycleStartError, "error"},
	} {
		bubble.Test(t, func(t *testing.T) {
			sub := build(3, 1, 1, "sub")
			sub.Parent = nid(1)
			older := build(4, 1, 1, "older")
			older.CreatedAt = older.CreatedAt.Add(-time.Hour)
			p := loaded(t, Options{}, build(1, 1, 1, "one"), build(2, 1, 1, "two"), sub, older)
			defer running(t, p)()
			one, two := connect(t, p, 1), connect(t, p, 2)
			says(t, one, built(1, 20*time.Second), agent.LifecycleStarting, c.one, agent.LifecycleShuttingDown)
			written()
			require.Empty(t, observed(t, p), "the other is not there yet")
			says(t, connect(t, p, 3), built(1, time.Hour), agent.LifecycleReady)
			says(t, two, built(1, 7*time.Second), agent.LifecycleStarting, c.two)
			written()
			want := []string{"false acme " + c.want + " docker start: 1 20"}
			require.Equal(t, want, observed(t, p), c.why)

			says(t, two, built(1, time.Hour), agent.LifecycleStarting, agent.LifecycleReady)
			says(t, connect(t, p, 1), built(1, 2*time.Hour), agent.LifecycleStarting, agent.LifecycleReady)
			written()
			require.Equal(t, want, observed(t, p), "once")
		})
	}
}

func TestEachBuildIsObserved(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{}, build(1, 1, 1, "main"))
		defer running(t, p)()
		says(t, connect(t, p, 1), built(1, 5*time.Second), agent.LifecycleReady)
		next := build(2, 1, 2, "main")
		next.Workspace.Build.IsPrebuild = true
		_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{next}})
		require.NoError(t, err)
		// Its clock is slow: it counts from the receipt.
		received := time.Since(built(2, 0)).Seconds()
		says(t, connect(t, p, 2), built(2, -time.Minute), agent.LifecycleStartError)
		// A stopped workspace has a build of its own, and the agents of the last.
		stopped := next.Workspace
		stopped.Build = agent.Build{ID: nid(4003), CreatedAt: built(3, 0), Transition: "stop"}
		_, err = p.Register(t.Context(), Set{Workspaces: []agent.Workspace{stopped}})
		require.NoError(t, err)
		says(t, connect(t, p, 2), built(3, time.Minute), agent.LifecycleReady)
		written()
		require.Equal(t, []string{"false acme success docker start: 1 5", fmt.Sprintf("true acme error docker start: 1 %v", received)}, observed(t, p))
	})
}

func TestBuildsWithoutTimeOrIDAreNotObserved(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		none, timeless := build(1, 1, 1, "main"), build(2, 2, 2, "main")
		none.Workspace.Build = agent.Build{CreatedAt: built(1, 0)}
		timeless.Workspace.Build.CreatedAt = time.Time{}
		p := loaded(t, Options{}, none, timeless)
		defer running(t, p)()
		says(t, connect(t, p, 1), built(1, time.Second), agent.LifecycleReady)
		says(t, connect(t, p, 2), built(1, time.Second), agent.LifecycleReady)
		written()
		require.Empty(t, p.store.builds)
	})
}

// A build that finishes while the database is down is observed when it is back, as it
// was when it finished. The next process does not observe it again.
func TestBuildWaitsForTheDatabase(t *testing.T) {
	for _, fail := range []func(*memStore, error){(*memStore).fail, (*memStore).failBuilds} {
		bubble.Test(t, func(t *testing.T) {
			p := loaded(t, Options{}, build(1, 1, 1, "main"))
			stop := running(t, p)
			s := connect(t, p, 1)
			fail(p.store, errors.New("down"))
			says(t, s, built(1, 40*time.Second), agent.LifecycleReady)
			written()
			require.Empty(t, observed(t, p))
			says(t, s, built(1, time.Hour), agent.LifecycleStarting, agent.LifecycleReady)
			fail(p.store, nil)
			written()
			require.Equal(t, []string{"false acme success docker start: 1 40"}, observed(t, p))
			stop()

			next := newPartsOn(t, Options{}, p.store, p.journal)
			defer running(t, next)()
			written()
			says(t, connect(t, next, 1), built(1, time.Hour), agent.LifecycleReady)
			written()
			require.Empty(t, observed(t, next))
		})
	}
}

// The process that dies between the state and the record leaves the build to the
// next one.
func TestBuildIsObservedAfterARestart(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		before := loaded(t, Options{}, build(1, 1, 1, "main"))
		state := agent.State{Agent: nid(1)}
		state.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: built(1, 9*time.Second)}, agent.Order{Epoch: 1, Sequence: 1})
		before.store.states[nid(1)] = state
		p := newPartsOn(t, Options{}, before.store, before.journal)
		defer running(t, p)()
		written()
		require.Equal(t, []string{"false acme success docker start: 1 9"}, observed(t, p))
	})
}

// The documented families have the name, type, help, labels and buckets of the
// table.
func TestDocumentedFamilies(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	p.metrics.builds.Observe(&agent.Workspace{}, durations.StatusSuccess, 7, time.Now())
	p.scan(time.Now())
	checked := 0
	for _, want := range documented.Families() {
		f := gathered(t, p, want.Name)
		if f == nil {
			continue
		}
		checked++
		require.Equal(t, "histogram", want.Type)
		require.Equal(t, dto.MetricType_HISTOGRAM, f.GetType())
		require.Equal(t, want.Help, f.GetHelp())
		var labels, buckets []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		h := f.GetMetric()[0].GetHistogram()
		require.NotZero(t, h.GetSampleCount())
		for _, b := range h.GetBucket() {
			buckets = append(buckets, strconv.FormatFloat(b.GetUpperBound(), 'f', -1, 64))
		}
		require.Equal(t, want.Labels, labels)
		require.Equal(t, want.Buckets, buckets)
		if want.Native == "" {
			require.Nil(t, h.Schema)
			continue
		}
		require.Equal(t, "factor=1.1;max_buckets=100;min_reset=1h", want.Native)
		require.EqualValues(t, 3, h.GetSchema(), "the schema of factor 1.1")
	}
	require.Equal(t, 2, checked)
}
