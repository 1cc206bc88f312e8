package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/postgrestest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// relayedFleet is a fleet of agents that a coderd relays for, over several replicas, and
// the sums of what it watches. Each report has a bit of its own as bytes.
type relayedFleet struct {
	*watchedFleet
	relayed []*client.Agent
	newest  string // of the values that all agents have

	sumsMu  sync.Mutex
	sums    map[uuid.UUID]int64 // guarded by sumsMu
	problem error               // guarded by sumsMu
}

// report has each agent report one bit, and a value.
func (f *relayedFleet) report(bit int) {
	f.newest = fmt.Sprint("value ", bit)
	for _, a := range f.relayed {
		require.NoError(f.t, a.UpdateMetadata(client.Metadata{Key: "k", Value: f.newest}))
		a.Report(&agentstatsv1.Stats{RxBytes: 1 << bit, ConnectionCount: 1})
	}
}

// flush waits until some agents have acks of all.
func (f *relayedFleet) flush(some []*client.Agent) {
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	var flushing sync.WaitGroup
	failed := make([]error, len(some))
	for i, a := range some {
		flushing.Go(func() { failed[i] = a.Flush(ctx) })
	}
	flushing.Wait()
	require.NoError(f.t, errors.Join(failed...))
}

func (f *relayedFleet) handle(batch client.StatsBatch) error {
	f.sumsMu.Lock()
	defer f.sumsMu.Unlock()
	for _, a := range batch.Agents {
		id, added := uuid.UUID(a.GetAgentId()), a.GetStats().GetRxBytes()
		if f.sums[id]&added != 0 {
			f.problem = errors.Join(f.problem, fmt.Errorf("%s: %b was received, now %b", id, f.sums[id], added))
		}
		f.sums[id] += added
	}
	return nil
}

// requireSums waits until the sums of all agents are as given.
func (f *relayedFleet) requireSums(want int64) {
	require.Eventually(f.t, func() bool {
		f.sumsMu.Lock()
		defer f.sumsMu.Unlock()
		require.NoError(f.t, f.problem)
		for _, a := range f.agents {
			if f.sums[a.id] != want {
				return false
			}
		}
		return true
	}, time.Minute, 50*time.Millisecond, "sums are not exact")
}

// total adds up the series of a family that a replica has.
func (s *service) total(t *testing.T, name string) (sum int) {
	t.Helper()
	_, body := s.scrape(t, "/metrics")
	for line := range bytes.Lines(body) {
		rest, found := bytes.CutPrefix(line, []byte(name))
		if !found || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(string(bytes.TrimSpace(rest[bytes.LastIndexByte(rest, ' '):])), 64)
		require.NoError(t, err)
		sum += int(v)
	}
	return sum
}

const (
	relayedSessions = "agentstatsd_relayed_sessions"
	endedSessions   = "agentstatsd_sessions_ended_total"
)

// TestRelayOverReplicas has a coderd relay for agents over two replicas, of which one
// drains and the other is killed. A drain moves agents, not streams, each once; nobody
// waits for an agent that is slow; at the end sums and values are exact.
func TestRelayOverReplicas(t *testing.T) {
	// One stream has 250 sessions before there is another one, on the other replica.
	const agents, perPhase = 300, 5
	beside(t)
	database := postgrestest.Shared(t).CreateDatabase(t)
	f := &relayedFleet{
		watchedFleet: &watchedFleet{t: t, tokenFile: filepath.Join(t.TempDir(), "token")},
		sums:         make(map[uuid.UUID]int64),
	}
	require.NoError(t, os.WriteFile(f.tokenFile, []byte(uuid.NewString()), 0o600))
	var addresses []resolver.Address
	for range 2 {
		s := newService(t, "--database-url", database, "--pubsub-url", database, "--coderd-token-file", f.tokenFile,
			"--report-interval", "1s", "--metadata-flush-interval", "100ms", "--lease-duration", lease.String(), "--drain-timeout", "6s")
		s.start(t)
		f.services = append(f.services, s)
		addresses = append(addresses, resolver.Address{Addr: s.grpcAddr})
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	f.register(ctx, agents)

	replicas := manual.NewBuilderWithScheme("replicas")
	replicas.InitialState(resolver.State{Addresses: addresses})
	conn, err := client.Dial("replicas:///", client.DialOptions{TokenFile: f.tokenFile, Plaintext: true}, grpc.WithResolvers(replicas),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	started := make(chan struct{})
	start := sync.OnceFunc(func() { close(started) })
	running.Go(func() {
		_ = coderd.WatchStats(ctx, client.StatsWatch{Name: "insights", Started: func(time.Time) { start() }, Handle: f.handle})
	})
	<-started

	// The first agent takes in nothing once it has had its first ack.
	slow := make(chan struct{})
	quick := sync.OnceFunc(func() { close(slow) })
	t.Cleanup(quick)
	for i, a := range f.agents {
		var opts client.AgentOptions
		if i == 0 {
			opts.OnDurable = func([]client.Metadata) { <-slow }
		}
		agent, err := coderd.Relay(a.id, opts)
		require.NoError(t, err)
		f.relayed = append(f.relayed, agent)
		running.Go(func() { _ = agent.Run(ctx) })
	}
	bit := 0
	phase := func() {
		for range perPhase {
			f.report(bit)
			bit++
			time.Sleep(300 * time.Millisecond)
		}
	}
	phase()
	f.flush(f.relayed[1:])
	drained, other := f.services[0], f.services[1]
	before := drained.total(t, relayedSessions)
	require.Positive(t, before)
	require.Positive(t, other.total(t, relayedSessions))
	require.Equal(t, agents, before+other.total(t, relayedSessions))
	require.Zero(t, drained.total(t, endedSessions)+other.total(t, endedSessions), "one session each")

	// The drain: agents move one after another, and those of the other replica stay.
	stopped := make(chan error, 1)
	running.Go(func() {
		_, err := drained.stop(syscall.SIGTERM)
		stopped <- err
	})
	onTheWay := 0
	// The slow one goes when it looks.
	for moved := other.total(t, relayedSessions); moved < agents-1; moved = other.total(t, relayedSessions) {
		if moved > agents-before {
			onTheWay++
		}
		f.report(bit)
		bit++
		require.Less(t, bit, 25, "the drain does not end")
		time.Sleep(400 * time.Millisecond)
	}
	require.Positive(t, onTheWay, "all moved at once")
	require.NoError(t, <-stopped)
	require.Zero(t, other.total(t, endedSessions), "each agent moved once, the others not at all")
	phase()
	f.flush(f.relayed[1:])

	// The kill: all agents come back on the other replica.
	drained.start(t)
	phase()
	other.kill()
	phase()
	f.flush(f.relayed[1:])
	require.GreaterOrEqual(t, drained.total(t, relayedSessions), agents-1)
	other.start(t)
	phase()
	quick()
	f.flush(f.relayed)
	f.report(bit) // a sum has all that was written of the agent before
	f.flush(f.relayed)
	f.requireSums(1<<(bit+1) - 1)

	ids := make([]uuid.UUID, agents)
	for i, a := range f.agents {
		ids[i] = a.id
	}
	stored, err := coderd.Metadata(ctx, ids...)
	require.NoError(t, err)
	require.Len(t, stored, agents)
	for _, a := range stored {
		require.Equal(t, f.newest, a.GetValues()[0].GetValue())
	}
}
