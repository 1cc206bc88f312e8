package fleet

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// cluster are replicas of one fleet, and what is wrong with them.
type cluster struct {
	mu   sync.Mutex
	live map[agent.ID]bool
	// serving have read the registrations, and do not stop.
	serving map[agent.ID]bool
	changed map[agent.ID]chan struct{}
	bus     bus
}

// bus delivers notifications at once to and from those who are not cut off.
type bus struct {
	mu     sync.Mutex
	cutOff map[agent.ID]bool
	// listeners by replica.
	listeners map[agent.ID]func([]byte)
}

func newCluster() *cluster {
	return &cluster{
		live: make(map[agent.ID]bool), serving: make(map[agent.ID]bool),
		changed: make(map[agent.ID]chan struct{}),
		bus:     bus{cutOff: make(map[agent.ID]bool), listeners: make(map[agent.ID]func([]byte))},
	}
}

// membership is one replica's place in the cluster.
type membership struct {
	c    *cluster
	self agent.ID
}

func (s membership) Self() agent.ID { return s.self }

func (s membership) Member() bool { return s.Live(s.self) }

func (s membership) Serve() { s.c.setServing(s.self, true) }

func (s membership) Sharing() (ids []agent.ID) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for id, serving := range s.c.serving {
		if serving && s.c.live[id] {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

func (s membership) Changed() <-chan struct{} {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.changed[s.self]
}

func (s membership) Live(id agent.ID) bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.live[id]
}

func (s membership) Publish(ctx context.Context, channel string, payload []byte) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if channel != notificationChannel || len(payload) > 7977 {
		panic("bad notification")
	}
	b := &s.c.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, listen := range b.listeners {
		if !b.cutOff[s.self] && !b.cutOff[id] {
			go listen(slices.Clone(payload)) // in any order
		}
	}
	return nil
}

func (s membership) Subscribe(_ string, f func([]byte)) (func(), error) {
	b := &s.c.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listeners[s.self] = f
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, s.self)
	}, nil
}

func (c *cluster) setLive(id agent.ID, live bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live[id] = live
	if c.changed[id] == nil {
		c.changed[id] = make(chan struct{}, 1)
	}
	c.notifyLocked()
}

// setServing has a replica share what has no session, or leave it to the others.
func (c *cluster) setServing(id agent.ID, serving bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serving[id] = serving
	c.notifyLocked()
}

func (c *cluster) notifyLocked() {
	for _, changed := range c.changed {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// setCut cuts these replicas off from the bus, or mends that: then they are notified
// that they missed notifications.
func (c *cluster) setCut(cut bool, replicas ...parts) {
	b := &c.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range replicas {
		id := p.self()
		if b.cutOff[id] && !cut {
			go b.listeners[id](nil)
		}
		b.cutOff[id] = cut
	}
}

// replicaID is the id of the nth replica.
func replicaID(n int) agent.ID { return nid(9000 + n) }

// startReplicas runs n replicas over one store. They end with the test.
func startReplicas(t *testing.T, n int) (*cluster, []parts) {
	t.Helper()
	return startReplicasWith(t, n, Options{})
}

func startReplicasWith(t *testing.T, n int, opts Options) (*cluster, []parts) {
	t.Helper()
	c := newCluster()
	store := newMemStore(&journal{})
	replicas := make([]parts, n)
	for i := range replicas {
		replicas[i] = startReplica(t, c, store, i, opts)
	}
	awaitReplicas()
	return c, replicas
}

func startReplica(t *testing.T, c *cluster, store *memStore, n int, opts Options) parts {
	t.Helper()
	c.setLive(replicaID(n), true)
	p := newPartsOn(t, opts, store, &journal{})
	p.Join(membership{c, replicaID(n)}, membership{c, replicaID(n)})
	stop := running(t, p)
	t.Cleanup(stop)
	return p
}

// awaitReplicas waits until everybody has looked at everything twice.
func awaitReplicas() {
	time.Sleep(5 * time.Second)
	synctest.Wait()
}

func hello(n byte, ordinal int64) Hello { return Hello{Instance: instanceID(n), Ordinal: ordinal} }

func connectTo(t *testing.T, p parts, n int, h Hello) *Session {
	t.Helper()
	s, err := p.Connect(t.Context(), nid(n), h)
	require.NoError(t, err)
	return s
}

func reportOn(t *testing.T, s *Session, sequence int64) {
	t.Helper()
	receive(t, s, sequence, func(r Request) { r.MarkReported(0) })
}

// served returns all state series that the replicas serve together, added up, and
// fails if two serve an agent.
func served(t *testing.T, replicas ...parts) map[string]float64 {
	t.Helper()
	sums := make(map[string]float64)
	agents := make(map[string]string)
	for _, p := range replicas {
		for _, line := range p.states.all() {
			cut := strings.LastIndexByte(line, ' ')
			v, err := strconv.ParseFloat(line[cut+1:], 64)
			require.NoError(t, err)
			sums[line[:cut]] += v
			if strings.HasPrefix(line, "connections{") {
				who := labelOf(line, "agent_name") + " of " + labelOf(line, "workspace_name")
				require.NotContains(t, agents, who, "%s, and also %s", line, agents[who])
				agents[who] = line
			}
		}
	}
	return sums
}

// statusOf returns the status that is served of the agent main of a workspace.
func statusOf(t *testing.T, workspace string, replicas ...parts) string {
	t.Helper()
	for line := range served(t, replicas...) {
		if strings.HasPrefix(line, "connections{") && labelOf(line, "workspace_name") == workspace {
			return labelOf(line, "status")
		}
	}
	return ""
}

// connectedIn returns how many agents of a workspace are connected, as it is
// served; -1: it is not.
func connectedIn(t *testing.T, workspace string, replicas ...parts) float64 {
	t.Helper()
	for line, n := range served(t, replicas...) {
		if strings.HasPrefix(line, "up{") && labelOf(line, "workspace_name") == workspace {
			return n
		}
	}
	return -1
}

func labelOf(line, name string) string {
	_, rest, _ := strings.Cut(line, name+"=")
	return rest[:strings.IndexAny(rest, ",}")]
}

// Callers with unknown tokens wait for what other replicas wrote,
// but not without bound, and nobody waits who is known.
func TestLookupsAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		most := r[0].opts.Load().MaxLookups
		require.Equal(t, 256, most)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		_, err = r[0].Authenticate(t.Context(), "unknown")
		require.ErrorIs(t, err, ErrUnknownToken) // the next look is 100 ms later
		var wg sync.WaitGroup
		var unknown, unavailable atomic.Int64
		for range most + 44 {
			wg.Go(func() {
				_, err := r[0].Authenticate(t.Context(), "unknown")
				switch {
				case errors.Is(err, ErrUnknownToken):
					unknown.Add(1)
				case errors.Is(err, ErrUnavailable):
					unavailable.Add(1)
				}
			})
		}
		synctest.Wait()
		require.EqualValues(t, 44, unavailable.Load())
		_, err = r[0].Connect(t.Context(), nid(1), hello(1, 1))
		require.NoError(t, err)
		wg.Wait()
		require.EqualValues(t, most, unknown.Load())
		require.Equal(t, []string{"44"}, metric(t, r[0], "agentstatsd_fleet_lookups_refused_total"))
	})
}
