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
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/client"
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
	rows, err := s.store.Metadata(context.Background(), ids)
	require.NoError(t, err)
	found := map[stored]int{}
	for _, row := range rows {
		found[stored{row.Agent, row.Key}] = number(t, row.Value, row.Error)
	}
	return found
}

func TestRunKeepsAFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
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
		summary, err = simulate.Run(t.Context(), opts, discard)
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		require.Empty(t, inDatabase(t, s, newest))
		agents, _, err := s.store.Registrations(context.Background())
		require.NoError(t, err)
		require.Empty(t, agents, "deregistered")
		scrape.Reset()
		require.NoError(t, s.aggregator.WriteText(&scrape))
		require.NotContains(t, scrape.String(), "alice")
	})
}

// The service crashes again and again. Nothing that it called durable is lost,
// and in the end everything is.
func TestRunSurvivesCrashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
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
			told := durable(t, journal.String())
			require.Len(t, told, 100)
			time.Sleep(time.Duration(i) * time.Second)
			s.start()
			for key, n := range inDatabase(t, s, told) {
				require.GreaterOrEqual(t, n, told[key], "%v", key)
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
	synctest.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Agents, opts.Duration, opts.DrainTimeout = 3, 45*time.Second, 10*time.Second
		opts.Backoff = client.Backoff{Max: 2 * time.Second}
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

func TestRunCancelledInTheRamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Ramp = time.Minute
		opts.Connections = 4
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second+time.Millisecond)
		defer cancel()
		summary, err := simulate.Run(ctx, opts, discard)
		require.NoError(t, err)
		require.True(t, summary.Complete(), "%+v", summary)
		require.Equal(t, 25, summary.Agents)
		// 13 agents have started, one each 2.4 s; the i-th has new values then, at
		// 10 s + i * 2 s, and each 10 s after that.
		require.Equal(t, int64(10*(13+3+5*2+5)), summary.MetadataSent)
	})
}

// What was never acked is an error, and the wait for it is bounded.
func TestRunTellsWhatWasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Agents, opts.Duration, opts.DrainTimeout = 2, 20*time.Second, 10*time.Second
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
	synctest.Test(t, func(t *testing.T) {
		s := startService(t)
		for _, test := range []struct {
			want   string
			change func(*simulate.Options)
		}{
			{"target: is empty", func(o *simulate.Options) { o.Target = "" }},
			{"agents: want at least 1", func(o *simulate.Options) { o.Agents = -1 }},
			{"metadata keys: want at most", func(o *simulate.Options) { o.MetadataKeys = 1025 }},
			{"duration: want at least 0", func(o *simulate.Options) { o.Duration = -1 }},
			{"connections: want at least 0", func(o *simulate.Options) { o.Connections = -1 }},
			{"fleet: want a name of at most 64 bytes", func(o *simulate.Options) { o.Fleet = strings.Repeat("f", 65) }},
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
