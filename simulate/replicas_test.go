package simulate_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/test/bufconn"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/simulate"
)

// running is a simulation that runs.
type running struct {
	t       *testing.T
	cancel  context.CancelFunc
	done    chan struct{}
	summary simulate.Summary
	err     error
}

func runInBackground(t *testing.T, opts simulate.Options) *running {
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{t: t, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.summary, r.err = simulate.Run(ctx, opts, discard)
	}()
	return r
}

// end ends the simulation and returns its summary.
func (r *running) end() simulate.Summary {
	r.cancel()
	<-r.done
	require.NoError(r.t, r.err)
	return r.summary
}

// A replica is stopped, another one is killed: agents and coderd go on with
// the one that is left, and nothing is lost.
func TestRunLeavesReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t, "a:1", "b:1", "c:1")
		opts := s.options()
		opts.Agents, opts.MetricsPerAgent, opts.MetadataKeys = 40, 5, 3
		opts.Backoff = client.Backoff{Max: 5 * time.Second}
		r := runInBackground(t, opts)
		time.Sleep(20 * time.Second)
		for _, address := range s.addresses {
			require.InDelta(t, 40/3, s.connections(address), 10, address)
		}

		b, c := s.connections("b:1"), s.connections("c:1")
		drained := time.Now()
		s.drain("a:1")
		require.Less(t, time.Since(drained), 10*time.Second, "all leave it before they must")
		time.Sleep(30 * time.Second)
		require.Greater(t, s.connections("b:1"), b)
		require.Greater(t, s.connections("c:1"), c)

		c = s.connections("c:1")
		s.kill("b:1")
		time.Sleep(20 * time.Second)
		require.Greater(t, s.connections("c:1"), c)
		summary := r.end()
		require.True(t, summary.Complete(), "%+v", summary)
		require.Zero(t, summary.Moves)
		require.Greater(t, summary.Reconnects, int64(20))
		require.Less(t, summary.Reconnects, int64(80), "no agent tries again and again")
		agents, _ := s.registered()
		require.Empty(t, agents, "coderd has reached the last one")
	})
}

// Agents are moved between targets all the time, and nothing is lost.
func TestRunChurns(t *testing.T) {
	for _, rebuilds := range []time.Duration{-1, 4 * time.Second} {
		bubble.Test(t, func(t *testing.T) {
			s := startService(t, "a:1", "b:1")
			opts := s.options()
			opts.Churn, opts.Duration, opts.RebuildInterval = 10*time.Second, time.Minute, rebuilds
			opts.Ramp, opts.MetricsPerAgent, opts.MetadataKeys = -1, 5, 3
			summary, err := simulate.Run(t.Context(), opts, discard)
			require.NoError(t, err)
			require.True(t, summary.Complete(), "%+v", summary)
			// 25 agents six times each, but for those that are on the way.
			require.InDelta(t, 25*6, summary.Moves, 45)
			require.InDelta(t, summary.Moves, summary.Reconnects, 2, "but for a goodbye whose connection is broken")
			if rebuilds < 0 {
				require.Equal(t, summary.Moves+25+1, int64(s.connections("a:1")+s.connections("b:1")), "one for each session, and coderd's")
				require.InDelta(t, s.connections("a:1"), s.connections("b:1"), 15)
			}
		})
	}
}

// metricsServer serves what a service shows to Prometheus, except lines with a
// certain text in them; empty: all.
func metricsServer(t *testing.T, s *service, except string) (dial func(context.Context) (net.Conn, error)) {
	listener := bufconn.Listen(64 << 10)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var text bytes.Buffer
		if err := s.aggregator.WriteText(&text); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		for line := range strings.Lines(text.String()) {
			if except == "" || !strings.Contains(line, except) {
				_, _ = io.WriteString(w, line)
			}
		}
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	return listener.DialContext
}

// The checks find each agent once, also while agents move and are rebuilt, unless
// it is there twice or not at all.
func TestRunChecks(t *testing.T) {
	for _, test := range []struct {
		name string
		// replicas are how many times the service is scraped.
		replicas int
		except   string
		change   func(*simulate.Options)
		want     simulate.CheckSummary
	}{
		{name: "at rest", replicas: 1},
		{name: "moving", replicas: 1, change: func(o *simulate.Options) { o.Churn, o.RebuildInterval = 10*time.Second, 4*time.Second }},
		{name: "twice", replicas: 2, want: simulate.CheckSummary{Duplicates: 3 * 25}},
		{name: "not at all", replicas: 1, except: `workspace_name="sim-api-0"`, want: simulate.CheckSummary{Misses: 3}},
		{
			name: "not forwarded", replicas: 1, except: "agent_scripts_executed_total", want: simulate.CheckSummary{Misses: 5},
			change: func(o *simulate.Options) { o.Agents = 5 },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := startService(t, "a:1", "b:1")
				opts := s.options()
				opts.Duration, opts.RebuildInterval, opts.MetricsPerAgent, opts.MetadataKeys = time.Minute, -1, 1, 1
				dials := map[string]func(context.Context) (net.Conn, error){}
				for i := range test.replicas {
					address := fmt.Sprintf("metrics-%d:80", i)
					opts.Metrics = append(opts.Metrics, "http://"+address+"/metrics")
					dials[address] = metricsServer(t, s, test.except)
				}
				opts.Dialer = func(ctx context.Context, address string) (net.Conn, error) {
					if dial := dials[address]; dial != nil {
						return dial(ctx)
					}
					return s.dial(ctx, address)
				}
				if test.change != nil {
					test.change(&opts)
				}
				summary, err := simulate.Run(t.Context(), opts, discard)
				require.NoError(t, err)
				check := summary.Check
				require.InDelta(t, 29, check.Checks, 1)
				require.Equal(t, test.want.Duplicates, check.Duplicates, check.Violations)
				require.Equal(t, test.want.Misses, check.Misses, check.Violations)
				require.Len(t, check.Violations, int(min(10, check.Duplicates+check.Misses)))
				require.Equal(t, check.Clean(), summary.Complete(), "%+v", summary)
				require.Greater(t, check.Agents, 20*int64(summary.Agents))
				require.Zero(t, check.TransientDuplicates)
			})
		})
	}
}
