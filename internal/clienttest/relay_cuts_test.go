package clienttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// sums are what a watcher received. Each report has a bit of its own as bytes.
type sums struct {
	mu       sync.Mutex
	received map[uuid.UUID]int64
	problem  error
}

func (s *sums) handle(batch client.StatsBatch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range batch.Agents {
		id, added := uuid.UUID(a.GetAgentId()), a.GetStats().GetRxBytes()
		if twice := s.received[id] & added; twice != 0 {
			s.problem = errors.Join(s.problem, fmt.Errorf("agent %s: %b was received, and %b again", id, s.received[id], twice))
		}
		if sent := a.GetStats().GetTxBytes(); sent != 2*added {
			s.problem = errors.Join(s.problem, fmt.Errorf("agent %s: reports have %b and %b", id, added, sent))
		}
		s.received[id] += added
	}
	return nil
}

// has reports whether the watcher has as many bytes of each agent.
func (s *sums) has(ids []uuid.UUID, bytes int64) (has bool, problem error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	has = true
	for _, id := range ids {
		has = has && s.received[id] == bytes
	}
	return has, s.problem
}

// Agents that share streams over connections that are cut at random lose nothing, and
// nothing of them counts twice: neither in the sums of a watcher nor in the gauges.
func TestRelayedAgentsSurviveCuts(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			testRelayedCuts(t, rand.New(rand.NewPCG(seed, 2)))
		})
	}
}

func testRelayedCuts(t *testing.T, random *rand.Rand) {
	const agents, rounds = 25, 20
	s, coderd := startCoderd(t)
	all := registrations(agents)
	_, err := coderd.Register(t.Context(), all, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	watcher, started := &sums{received: make(map[uuid.UUID]int64)}, make(chan struct{})
	start := sync.OnceFunc(func() { close(started) })
	running.Go(func() {
		_ = coderd.WatchStats(ctx, client.StatsWatch{Name: "insights", Handle: watcher.handle, Started: func(time.Time) { start() }})
	})
	<-started
	relayed, ids := make([]*client.Agent, agents), make([]uuid.UUID, agents)
	for i, r := range all {
		ids[i] = uuid.UUID(r.GetId())
		relayed[i], err = coderd.Relay(ids[i], client.AgentOptions{
			ReportInterval: time.Millisecond, Backoff: client.Backoff{Min: time.Millisecond, Max: 20 * time.Millisecond},
		})
		require.NoError(t, err)
		running.Go(func() { _ = relayed[i].Run(ctx) })
	}
	began, newest := time.Now(), make(map[uuid.UUID]string)
	report := func(bit int, some bool) {
		for i, agent := range relayed {
			newest[ids[i]] = fmt.Sprint(bit, " of ", i)
			require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: newest[ids[i]]}))
			agent.Report(&agentstatsv1.Stats{RxBytes: 1 << bit, TxBytes: 2 << bit})
			if some && random.IntN(3) == 0 { // it is sent at once, and maybe not acked
				at, stop := context.WithTimeout(ctx, time.Duration(random.IntN(3000))*time.Microsecond)
				_ = agent.Flush(at)
				stop()
			}
		}
	}
	for round := range rounds {
		report(round, true)
		wait := 30 * time.Millisecond
		if random.IntN(5) == 0 {
			wait = time.Second // requests are sent that gathered
		}
		time.Sleep(time.Duration(random.Int64N(int64(wait))))
		s.cut()
	}
	flush := func() {
		for _, agent := range relayed {
			require.NoError(t, agent.Flush(ctx))
		}
	}
	flush()
	report(rounds, false) // an agent's sum has all that was written of it before
	flush()
	want := int64(1)<<(rounds+1) - 1
	require.Eventually(t, func() bool {
		has, problem := watcher.has(ids, want)
		require.NoError(t, problem)
		return has
	}, time.Minute, 10*time.Millisecond)

	stored, err := coderd.Metadata(t.Context(), ids...)
	require.NoError(t, err)
	require.Len(t, stored, agents)
	for _, a := range stored {
		require.Equal(t, newest[uuid.UUID(a.GetAgentId())], a.GetValues()[0].GetValue())
	}
	// The window of the gauges is a minute: it may be over for some reports on a machine
	// that is slow, but none is in it twice.
	var text bytes.Buffer
	require.NoError(t, s.aggregator.WriteText(&text))
	gauges := 0
	for line := range strings.Lines(text.String()) {
		if !strings.HasPrefix(line, "coderd_agentstats_rx_bytes{") {
			continue
		}
		var got float64
		_, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &got)
		require.NoError(t, err)
		require.LessOrEqual(t, got, float64(want))
		require.Positive(t, int64(got)&(1<<rounds))
		if time.Since(began) < time.Minute {
			require.Equal(t, float64(want), got)
		}
		gauges++
	}
	require.Equal(t, agents, gauges)
}
