package simulate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/simulate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var discard = slog.New(slog.DiscardHandler)

// lockedBuffer is written by many and read at any time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type stored struct {
	agent uuid.UUID
	key   string
}

// number returns the number that a value, or the error text, ends in.
func number(t *testing.T, value, err string) int {
	_, text, ok := strings.Cut(value+err, "#")
	require.True(t, ok, "%q %q", value, err)
	n, parseErr := strconv.Atoi(text)
	require.NoError(t, parseErr)
	return n
}

// durable returns the greatest number of each key in a journal.
func durable(t *testing.T, journal string) map[stored]int {
	newest := map[stored]int{}
	for line := range strings.Lines(journal) {
		var r simulate.Record
		require.NoError(t, json.Unmarshal([]byte(line), &r))
		key := stored{r.Agent, r.Key}
		newest[key] = max(newest[key], number(t, r.Value, r.Error))
	}
	return newest
}

// inDatabase returns the numbers of what is stored of some agents.
func inDatabase(t *testing.T, s *service, keys map[stored]int) map[stored]int {
	var ids []agent.ID
	seen := map[uuid.UUID]bool{}
	for key := range keys {
		if !seen[key.agent] {
			seen[key.agent] = true
			ids = append(ids, key.agent)
		}
	}
	rows, _, err := s.store.MetadataWithin(context.Background(), ids, 1<<30)
	require.NoError(t, err)
	found := map[stored]int{}
	for _, row := range rows {
		found[stored{row.Agent, row.Key}] = number(t, row.Value, row.Error)
	}
	return found
}

func TestRunKeepsAFleet(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		var journal, progress lockedBuffer
		opts := s.options()
		opts.Duration = time.Minute
		opts.Keep = true
		opts.Journal, opts.Progress = &journal, &progress
		summary, err := simulate.Run(t.Context(), opts, discard)
		require.NoError(t, err)

		require.True(t, summary.Complete(), "%+v", summary)
		require.Equal(t, 25, summary.Agents)
		// A report when it connects, then each 5 s.
		require.InDelta(t, 25*13, summary.ReportsSent, 25)
		require.Equal(t, 30*summary.ReportsSent, summary.SamplesSent)
		require.InDelta(t, 25*7*10, summary.MetadataSent, 250)
		require.Zero(t, summary.Refused, "%v", summary.Refusals)
		require.Zero(t, summary.Reconnects)
		require.InDelta(t, 65, summary.DurationSeconds, 5)

		newest := durable(t, journal.String())
		require.Len(t, newest, 250)
		require.Equal(t, newest, inDatabase(t, s, newest))

		var scrape bytes.Buffer
		require.NoError(t, s.aggregator.WriteText(&scrape))
		for _, series := range []string{
			`coderd_agentstats_rx_bytes{agent_name="main",username="alice",workspace_name="sim-api-0"}`,
			`coderd_agentstats_currently_reachable_peers{agent_name="main",connection_type="p2p",template_name="docker",username="alice",workspace_name="sim-api-0"}`,
			`agent_scripts_executed_total{`,
			`coderd_agentstats_startup_script_seconds{`,
			`magicsock_send_udp{`,
		} {
			require.Contains(t, scrape.String(), series)
		}
		require.Len(t, strings.Split(strings.TrimSpace(progress.String()), "\n"), 6)
		require.Contains(t, progress.String(), "25/25 connected")

		// A later run of the same fleet takes its place.
		opts.Journal, opts.Keep, opts.Duration = nil, false, 20*time.Second
		opts.RebuildInterval = -1
		summary, err = simulate.Run(t.Context(), opts, discard)
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		require.Empty(t, inDatabase(t, s, newest))
		agents, _ := s.registered()
		require.Empty(t, agents, "deregistered")
		scrape.Reset()
		require.NoError(t, s.aggregator.WriteText(&scrape))
		require.NotContains(t, scrape.String(), "alice")
	})
}

// The service crashes again and again. Nothing that it called durable is lost,
// and in the end everything is.
func TestRunSurvivesCrashes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		var journal lockedBuffer
		opts := s.options()
		opts.Keep = true
		opts.Agents, opts.MetadataInterval = 10, 3*time.Second
		opts.Journal = &journal
		opts.Backoff = client.Backoff{Max: 5 * time.Second}
		ctx, cancel := context.WithCancel(t.Context())
		var summary simulate.Summary
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			summary, err = simulate.Run(ctx, opts, discard)
		}()
		for i := range 5 {
			time.Sleep(20*time.Second + time.Duration(i)*700*time.Millisecond)
			s.crash()
			acked := durable(t, journal.String())
			require.Len(t, acked, 100)
			time.Sleep(time.Duration(i) * time.Second)
			s.start()
			for key, n := range inDatabase(t, s, acked) {
				require.GreaterOrEqual(t, n, acked[key], "%v", key)
			}
		}
		time.Sleep(20 * time.Second)
		cancel()
		<-done
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		require.GreaterOrEqual(t, summary.Reconnects, int64(50))
		newest := durable(t, journal.String())
		require.Equal(t, newest, inDatabase(t, s, newest))
	})
}

// A service that lost its database gets the registrations again, as soon as it
// refuses an agent's token.
func TestRunRegistersAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Agents, opts.Duration, opts.DrainTimeout = 3, 45*time.Second, 10*time.Second
		opts.Backoff, opts.RebuildInterval = client.Backoff{Max: 2 * time.Second}, -1
		var summary simulate.Summary
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			summary, err = simulate.Run(t.Context(), opts, discard)
		}()
		time.Sleep(30 * time.Second)
		s.crash()
		s.path += ".new"
		s.start()
		<-done
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		require.GreaterOrEqual(t, summary.Reconnects, int64(3))
	})
}

// Agents that coderds relay for are as those that dial: all is acked, also of new builds,
// and over a restart of the service.
func TestRunRelayed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Relay, opts.MetadataChanging, opts.Duration = true, 1, 2*time.Minute
		summary, err := simulate.Run(t.Context(), opts, discard)
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		require.Equal(t, 25, summary.Agents)
		require.Positive(t, summary.Rebuilds)
		// One of ten keys each 10 s.
		require.InDelta(t, 25*12, summary.MetadataSent, 100)
	})
}

// Values that are repeated are sent, and not written again.
func TestRunRepeated(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.MetadataChanging, opts.MetadataRepeated, opts.RebuildInterval, opts.Duration = 5, true, -1, 2*time.Minute
		summary, err := simulate.Run(t.Context(), opts, discard)
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		// Ten keys each 10 s, of which five were said before at first, and half of all are new.
		require.InDelta(t, 25*12*10, summary.MetadataSent, 25*20)
	})
}

func TestRunCancelledInTheRamp(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Ramp, opts.RebuildInterval = time.Minute, -1
		opts.Connections = 4
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second+time.Millisecond)
		defer cancel()
		summary, err := simulate.Run(ctx, opts, discard)
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		require.Equal(t, 25, summary.Agents)
		// 13 agents have started, one each 2.4 s. The i-th has new values then, at 10 s
		// + i * 2 s, and each 10 s after that.
		require.Equal(t, int64(10*(13+3+5*2+5)), summary.MetadataSent)
	})
}

// registered returns the agents and the builds of workspaces in the database.
func (s *service) registered() (agents map[agent.ID]agent.Registration, builds map[agent.ID]agent.Build) {
	registrations, err := s.store.Registrations(context.Background(), 0)
	require.NoError(s.t, err)
	agents, builds = map[agent.ID]agent.Registration{}, map[agent.ID]agent.Build{}
	for _, r := range registrations.Agents {
		agents[r.ID] = r
	}
	for _, w := range registrations.Workspaces {
		builds[w.ID] = w.Build
	}
	return agents, builds
}

// Workspaces are rebuilt again and again, the service crashes meanwhile, and
// some agents never connect: all that is sent is acked.
func TestRunRebuilds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Unreachable, opts.RebuildInterval = 2, 4*time.Second
		opts.MetricsPerAgent, opts.MetadataKeys = 5, 3
		opts.Backoff = client.Backoff{Max: 5 * time.Second}
		var journal lockedBuffer
		opts.Journal = &journal
		ctx, cancel := context.WithCancel(t.Context())
		var summary simulate.Summary
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			summary, err = simulate.Run(ctx, opts, discard)
		}()
		time.Sleep(time.Second)
		first, firstBuilds := s.registered()
		require.Len(t, first, 27)
		stopped, names := 0, map[string]bool{}
		for range 20 {
			time.Sleep(7 * time.Second)
			agents, builds := s.registered()
			require.Len(t, builds, len(firstBuilds))
			for _, b := range builds {
				if b.Transition == "stop" {
					stopped++
				}
			}
			seen := map[string]bool{}
			for _, r := range agents {
				seen[r.Workspace.ID.String()+"/"+r.Name] = true
				require.Equal(t, builds[r.Workspace.ID], r.Workspace.Build)
				require.EqualValues(t, "start", r.Workspace.Build.Transition)
			}
			require.Len(t, seen, len(agents), "a name is one agent's")
			for name := range seen {
				names[name] = true
			}
		}
		require.Positive(t, stopped)
		require.Len(t, names, 27, "always the same names")
		for range 3 {
			s.crash()
			time.Sleep(2 * time.Second)
			s.start()
			time.Sleep(30 * time.Second)
		}
		now, _ := s.registered()
		kept := 0
		for id := range now {
			if _, known := first[id]; known {
				kept++
			}
		}
		require.Less(t, kept, 5)
		cancel()
		<-done
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		require.Equal(t, 25, summary.Agents)
		require.Greater(t, summary.Rebuilds, int64(30))
		values, ids := 0, map[uuid.UUID]bool{}
		for key, n := range durable(t, journal.String()) {
			values += n
			ids[key.agent] = true
		}
		require.EqualValues(t, values, summary.MetadataSent, "those of former agents too")
		require.Greater(t, len(ids), 25+30)
		require.Zero(t, summary.Refused, "%v", summary.Refusals)
		agents, builds := s.registered()
		require.Empty(t, agents)
		require.Empty(t, builds)
	})
}

// Agents that are shut down when the fleet stops are drained as the others.
func TestRunStopsAmidRebuilds(t *testing.T) {
	for _, seconds := range []int{5, 7, 8, 10, 11} {
		bubble.Test(t, func(t *testing.T) {
			s := startService(t)
			opts := s.options()
			opts.MetricsPerAgent, opts.MetadataKeys = 5, 3
			opts.Agents, opts.Duration, opts.RebuildInterval, opts.Ramp = 8, time.Duration(seconds)*time.Second, 500*time.Millisecond, -1
			began := time.Now()
			summary, err := simulate.Run(t.Context(), opts, discard)
			require.NoError(t, err)
			require.True(t, summary.Complete(), "%+v", summary)
			require.Less(t, time.Since(began), opts.Duration+15*time.Second)
			agents, builds := s.registered()
			require.Empty(t, agents)
			require.Empty(t, builds)
		})
	}
}

func TestRunPushes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Agents, opts.Coderds, opts.PushInterval = 1, 2, 5*time.Second
		opts.Duration = time.Minute
		summary, err := simulate.Run(t.Context(), opts, discard)
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		// At once, each 5 s, and at the end.
		require.InDelta(t, 2*13, summary.PushesSent, 2)
		require.Equal(t, summary.PushesSent, summary.PushesAcked)
		require.Greater(t, summary.FamiliesRefused, int64(2*30), "go and process collectors")
		newest := s.pushes.all()
		require.Len(t, newest, 2)
		for _, replica := range []string{"sim-coderd-0", "sim-coderd-1"} {
			require.True(t, newest[replica].Final)
			require.Equal(t, 5*time.Second, newest[replica].Interval)
			for _, f := range metrics.Catalogue() {
				if f.Owner == metrics.OwnerCoderd {
					require.NotEmpty(t, newest[replica].families[f.Name].GetMetric(), f.Name)
				}
			}
		}
		require.NotEqual(t,
			newest["sim-coderd-0"].families["coderd_api_requests_processed_total"].String(),
			newest["sim-coderd-1"].families["coderd_api_requests_processed_total"].String())

		// Snapshots that a crash swallows are no error, but the last one is.
		for _, comesBack := range []bool{true, false} {
			crashed := make(chan struct{})
			go func() {
				defer close(crashed)
				time.Sleep(32 * time.Second)
				s.crash()
				if comesBack {
					time.Sleep(15 * time.Second)
					s.start()
				}
			}()
			opts.RebuildInterval, opts.Keep, opts.DrainTimeout = -1, true, 5*time.Second
			opts.Backoff = client.Backoff{Max: 5 * time.Second}
			summary, err = simulate.Run(t.Context(), opts, discard)
			<-crashed
			require.NoError(t, err)
			lost := summary.ReportsSent - summary.ReportsAcked + summary.MetadataSent - summary.MetadataAcked
			if comesBack {
				require.True(t, summary.Complete(), "%+v", summary)
			} else {
				require.Equal(t, lost+2, summary.Errors, "%+v", summary)
			}
		}
	})
}

// No instance of coderd pushes.
func TestRunWithoutPushes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for _, change := range []func(*simulate.Options){
			func(o *simulate.Options) { o.Coderds = -1 },
			func(o *simulate.Options) { o.PushInterval = -1 },
		} {
			s := startService(t)
			opts := s.options()
			opts.Agents, opts.Duration = 1, 10*time.Second
			change(&opts)
			summary, err := simulate.Run(t.Context(), opts, discard)
			require.NoError(t, err)
			require.True(t, summary.Complete(), "%+v", summary)
			require.Zero(t, summary.PushesSent)
			require.Empty(t, s.pushes.all())
		}
	})
}

// What was never acked is an error, and the wait for it is bounded.
func TestRunCountsWhatWasLost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Agents, opts.Duration, opts.DrainTimeout = 2, 20*time.Second, 10*time.Second
		opts.Coderds, opts.RebuildInterval = -1, -1
		opts.Keep = true
		crashed := make(chan struct{})
		go func() {
			defer close(crashed)
			time.Sleep(15 * time.Second)
			s.crash()
		}()
		began := time.Now()
		summary, err := simulate.Run(t.Context(), opts, discard)
		<-crashed
		require.NoError(t, err)
		require.InDelta(t, 30, time.Since(began).Seconds(), 1)
		require.False(t, summary.Complete())
		require.Equal(t, summary.MetadataSent-summary.MetadataAcked+summary.ReportsSent-summary.ReportsAcked, summary.Errors)
		require.GreaterOrEqual(t, summary.Errors, int64(20))
	})
}

func TestRunErrors(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		for _, test := range []struct {
			want   string
			change func(*simulate.Options)
		}{
			{"targets: want at least 1", func(o *simulate.Options) { o.Targets = nil }},
			{"target: want a host and a port: address service: missing port", func(o *simulate.Options) { o.Targets[0] = "service" }},
			{"churn: moves agents between targets: want at least 2, got 1", func(o *simulate.Options) { o.Churn = time.Second }},
			{"churn: want at least 0", func(o *simulate.Options) { o.Churn = -1 }},
			{"churn: agents must not share connections: 25 agents have 5", func(o *simulate.Options) {
				o.Targets = append(o.Targets, "service:2")
				o.Churn, o.Connections = time.Second, 5
			}},
			{"metrics: want URLs", func(o *simulate.Options) { o.Metrics = []string{"http://a:1/", "a:secret@b"} }},
			{"check interval: want at least 0", func(o *simulate.Options) { o.CheckInterval = -1 }},
			{"agents: want at least 1", func(o *simulate.Options) { o.Agents = -1 }},
			{"metadata keys: want at most", func(o *simulate.Options) { o.MetadataKeys = 1025 }},
			{"unreachable agents: want at least 0", func(o *simulate.Options) { o.Unreachable = -1 }},
			{"coderds: want at most 100", func(o *simulate.Options) { o.Coderds = 101 }},
			{"push interval: want at least 1s", func(o *simulate.Options) { o.PushInterval = time.Millisecond }},
			{"duration: want at least 0", func(o *simulate.Options) { o.Duration = -1 }},
			{"connections: want at least 0", func(o *simulate.Options) { o.Connections = -1 }},
			{"fleet: want a name of at most 64 bytes", func(o *simulate.Options) { o.Fleet = strings.Repeat("f", 65) }},
			{"churn: agents must not be relayed", func(o *simulate.Options) {
				o.Targets, o.Churn, o.Relay = append(o.Targets, o.Targets...), time.Second, true
			}},
			{"metadata keys that change: want 0 to 10, got 11", func(o *simulate.Options) { o.MetadataChanging = 11 }},
			{"open files", func(o *simulate.Options) { o.Agents, o.Connections = 1<<20, 1<<20 }},
			{"code = Unauthenticated", func(o *simulate.Options) { o.Dial.Token = "wrong" }},
			{"both a token and a token file", func(o *simulate.Options) { o.Dial.TokenFile = "f" }},
			{"code = Unavailable", func(*simulate.Options) { s.crash() }},
		} {
			opts := s.options()
			test.change(&opts)
			began := time.Now()
			_, err := simulate.Run(t.Context(), opts, discard)
			require.ErrorContains(t, err, test.want)
			require.LessOrEqual(t, time.Since(began), 16*time.Second)
		}
	})
}
