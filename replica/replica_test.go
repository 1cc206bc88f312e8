package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const lease = 15 * time.Second

// database is a Store of several replicas, each of which can be cut off from it.
type database struct {
	mu       sync.Mutex
	replicas map[agent.ID]agent.Replica
	lease    agent.Lease
	down     error         // for all
	ahead    time.Duration // its clock
}

// access is how one replica reaches the database and the others.
type access struct {
	*database
	bus *bus

	mu    sync.Mutex
	cut   bool
	deaf  bool // and mute
	stuck bool // NoteGone is
}

type bus struct {
	mu        sync.Mutex
	listeners map[int]func([]byte)
	next      int
}

func (a *access) setDeaf(deaf bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deaf = deaf
}

func (a *access) isDeaf() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.deaf
}

func (a *access) setStuck(stuck bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stuck = stuck
}

func (a *access) isStuck() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stuck
}

func (a *access) setCut(cut bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cut = cut
}

func (d *database) setDown(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = err
}

// row returns that of a replica.
func (d *database) row(id agent.ID) agent.Replica {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.replicas[id]
}

func (d *database) setAhead(ahead time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ahead = ahead
}

// use calls f with the database. It blocks while the access is cut, as a network that swallows
// all does.
func (a *access) use(ctx context.Context, f func() error) error {
	a.mu.Lock()
	cut := a.cut
	a.mu.Unlock()
	if cut {
		<-ctx.Done()
		return ctx.Err()
	}
	a.database.mu.Lock()
	defer a.database.mu.Unlock()
	if a.down != nil {
		return a.down
	}
	return f()
}

func (a *access) RecordHeartbeat(ctx context.Context, me agent.Replica, takeover int64) (replicas []agent.Replica, lease agent.Lease, err error) {
	err = a.use(ctx, func() error {
		me.Heartbeats = a.replicas[me.ID].Heartbeats + 1
		a.replicas[me.ID] = me
		if l := &a.lease; l.Holder == me.ID || l.Holder == (agent.ID{}) || l.Heartbeats == takeover {
			l.Holder = me.ID
			l.Heartbeats++
		}
		replicas, lease = slices.Collect(maps.Values(a.replicas)), a.lease
		return nil
	})
	return replicas, lease, err
}

func (a *access) Clock(ctx context.Context) (now time.Time, err error) {
	err = a.use(ctx, func() error {
		now = time.Now().Add(a.ahead)
		return nil
	})
	return now, err
}

func (a *access) SaveIntervalFactor(ctx context.Context, holder agent.ID, factor float64) error {
	return a.use(ctx, func() error {
		if a.lease.Holder != holder {
			return agent.ErrOutdated
		}
		a.lease.IntervalFactor = factor
		return nil
	})
}

func (a *access) NoteGone(ctx context.Context, replicas []agent.Replica) error {
	if a.isStuck() {
		<-ctx.Done()
		return ctx.Err()
	}
	return a.use(ctx, func() error {
		for _, r := range replicas {
			if known, ok := a.replicas[r.ID]; ok && known.Heartbeats == r.Heartbeats {
				known.Phase = agent.ReplicaGone
				a.replicas[r.ID] = known
			}
		}
		return nil
	})
}

func (a *access) RemoveReplicas(ctx context.Context, ids []agent.ID) error {
	return a.use(ctx, func() error {
		for _, id := range ids {
			delete(a.replicas, id)
			if a.lease.Holder == id {
				a.lease.Holder = agent.ID{}
			}
		}
		return nil
	})
}

func (a *access) Publish(_ context.Context, _ string, payload []byte) error {
	if a.isDeaf() {
		return errors.New("no pubsub")
	}
	a.bus.mu.Lock()
	defer a.bus.mu.Unlock()
	for _, listen := range a.bus.listeners {
		listen(payload)
	}
	return nil
}

func (a *access) Subscribe(_ string, f func([]byte)) (func(), error) {
	a.bus.mu.Lock()
	defer a.bus.mu.Unlock()
	n := a.bus.next
	a.bus.next++
	a.bus.listeners[n] = func(payload []byte) {
		if !a.isDeaf() {
			f(payload)
		}
	}
	return func() {
		a.bus.mu.Lock()
		defer a.bus.mu.Unlock()
		delete(a.bus.listeners, n)
	}, nil
}

// running is a replica that runs.
type running struct {
	*Replicas
	access *access
	reg    *prometheus.Registry
	stop   func() // gracefully
	kill   func() // as a crash: the database and the others get no message
}

type world struct {
	*database
	bus    bus
	shared *bus // of another world; nil: its own
}

func newWorld() *world {
	return &world{
		database: &database{replicas: make(map[agent.ID]agent.Replica), lease: agent.Lease{IntervalFactor: 1}},
		bus:      bus{listeners: make(map[int]func([]byte))},
	}
}

func (w *world) start(t *testing.T) *running {
	t.Helper()
	a := &access{database: w.database, bus: cmp.Or(w.shared, &w.bus)}
	reg := prometheus.NewPedanticRegistry()
	r, err := New(a, a, Options{Name: "host", LeaseDuration: lease}, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
	t.Cleanup(stop)
	synctest.Wait()
	return &running{r, a, reg, stop, func() { a.setCut(true); a.setDeaf(true); stop() }}
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// leaders returns how many of the replicas lead.
func leaders(replicas ...*running) int {
	n := 0
	for _, r := range replicas {
		if r.Leads() {
			n++
		}
	}
	return n
}

func TestOptions(t *testing.T) {
	_, err := New(nil, nil, Options{LeaseDuration: time.Second}, prometheus.NewRegistry(), nil)
	require.EqualError(t, err, "replica options: lease duration: want at least 2s, got 1s")
	require.Len(t, Options{Name: strings.Repeat("x", 300)}.withDefaults().Name, maxNameBytes)
}

func TestFirstLeads(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.start(t)
		require.True(t, a.Member())
		require.True(t, a.Leads())
		require.Equal(t, int64(1), a.Term())
		require.NoError(t, a.Healthy())
		b := w.start(t)
		require.True(t, b.Member())
		require.False(t, b.Leads())
		wait(time.Second) // by a message: before the next heartbeat
		require.True(t, a.Live(b.Self()))
		require.True(t, b.Live(a.Self()))
		require.NoError(t, testutil.GatherAndCompare(b.reg, strings.NewReader(`
# HELP agentstatsd_replica_leads 1 while this replica has the lease on what exactly one serves.
# TYPE agentstatsd_replica_leads gauge
agentstatsd_replica_leads 0
# HELP agentstatsd_replica_member 1 while the other replicas consider this one alive.
# TYPE agentstatsd_replica_member gauge
agentstatsd_replica_member 1
# HELP agentstatsd_replicas_live Replicas that this one considers alive, itself included.
# TYPE agentstatsd_replicas_live gauge
agentstatsd_replicas_live 2
`), "agentstatsd_replica_leads", "agentstatsd_replica_member", "agentstatsd_replicas_live"))
	})
}

// A replica that leaves hands the lease over at once.
func TestLeave(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		wait(lease)
		a.stop()
		synctest.Wait()
		require.False(t, a.Leads())
		require.True(t, b.Leads())
		require.False(t, b.Live(a.Self()))
		require.Len(t, w.replicas, 1)
	})
}

// One that dies is noticed when its lease has run out.
func TestDies(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b, c := w.start(t), w.start(t), w.start(t)
		wait(time.Minute)
		a.kill()
		died := time.Now()
		for leaders(b, c) == 0 {
			require.True(t, time.Since(died) < lease || !b.Live(a.Self()) || !c.Live(a.Self()))
			wait(100 * time.Millisecond)
		}
		took := time.Since(died)
		require.Greater(t, took, lease-lease/heartbeatShare-time.Second)
		require.LessOrEqual(t, took, lease+2*lease/heartbeatShare)
		wait(lease / heartbeatShare)
		require.False(t, b.Live(a.Self()))
		require.False(t, c.Live(a.Self()))
		require.Equal(t, 1, leaders(b, c))
		// Its row does not stay for ever.
		wait((forgetAfter + 1) * lease)
		require.Len(t, w.replicas, 2)
	})
}

// A replica that is cut off from the database stays alive, as its messages arrive. It
// gives up the lease when a message names another holder.
func TestCutOffFromTheDatabase(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		wait(time.Minute)
		a.access.setCut(true)
		for range 600 {
			wait(100 * time.Millisecond)
			require.Equal(t, 1, leaders(a, b), "at any time one leads")
			require.True(t, a.Member() && b.Live(a.Self()) && a.Live(b.Self()))
		}
		require.True(t, b.Leads())
		// Nor does it lead when it is deaf for a while.
		a.access.setDeaf(true)
		wait(2 * lease)
		require.False(t, a.Member() || b.Live(a.Self()))
		a.access.setDeaf(false)
		wait(lease)
		require.True(t, a.Member() && b.Live(a.Self()))
		require.False(t, a.Leads())
	})
}

// One that is cut off from the pubsub is none the worse.
func TestDeaf(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		wait(time.Minute)
		a.access.setDeaf(true)
		for range 600 {
			wait(100 * time.Millisecond)
			require.True(t, a.Leads() && a.Member() && b.Live(a.Self()) && a.Live(b.Self()))
		}
	})
}

// Who led, was replaced while it received nothing, and receives its own heartbeats again, does not
// lead until the database says so.
func TestReceivesAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		wait(time.Minute)
		a.access.setCut(true)
		a.access.setDeaf(true)
		wait(2 * lease)
		require.True(t, b.Leads())
		b.access.setDeaf(true) // so that it is not notified of the new one either
		a.access.setDeaf(false)
		for range 100 {
			wait(100 * time.Millisecond)
			require.False(t, a.Leads())
			require.True(t, b.Leads())
		}
	})
}

func TestMessages(t *testing.T) {
	m := message{kindChange, agent.ID{1, 2}, 7, 1 << 60, agent.ReplicaLeaving}
	got, err := parseMessage(m.String())
	require.NoError(t, err)
	require.Equal(t, m, got)
	older := strings.TrimSuffix(m.String(), " 3")
	got, err = parseMessage(older)
	require.NoError(t, err)
	require.Equal(t, message{kindChange, agent.ID{1, 2}, 7, 1 << 60, agent.ReplicaUnknown}, got)
	for _, bad := range []string{"", "heartbeat", "heartbeat x 1 1", "heartbeat " + agent.ID{}.String() + " x 1", older + " x"} {
		_, err := parseMessage(bad)
		require.ErrorContains(t, err, "message of a replica: ", bad)
	}
}

// One that is cut off from everybody gives up before another takes over, and comes
// back without leading.
func TestCutOff(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		wait(time.Minute)
		a.access.setCut(true)
		a.access.setDeaf(true)
		gap := time.Duration(0)
		for range 600 {
			wait(100 * time.Millisecond)
			require.LessOrEqual(t, leaders(a, b), 1, "at no time do two lead")
			require.False(t, a.Member() && !b.Live(a.Self()), "nobody is taken for gone who serves")
			if leaders(a, b) == 0 {
				gap += 100 * time.Millisecond
			}
		}
		require.True(t, b.Leads())
		require.Less(t, gap, lease)
		require.ErrorContains(t, a.Healthy(), "the other replicas are not reached over the database since ")
		require.True(t, a.Live(b.Self()), "nothing is known of the others: nothing changes")
		require.Positive(t, testutil.ToFloat64(a.metrics.errors))

		a.access.setCut(false)
		a.access.setDeaf(false)
		wait(lease)
		require.True(t, a.Member())
		require.NoError(t, a.Healthy())
		require.False(t, a.Leads())
		require.True(t, b.Leads())
		require.True(t, b.Live(a.Self()))
		require.Zero(t, a.Term())
		b.stop()
		wait(time.Second)
		require.Equal(t, int64(2), a.Term(), "another one led in between")
	})
}

// While the database refuses all clients, nothing changes, for as long as that takes.
// When it is back, no replica takes another's place.
func TestDatabaseDown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		wait(time.Minute)
		steady := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); {
				wait(200 * time.Millisecond)
				require.True(t, a.Leads())
				require.False(t, b.Leads())
				require.True(t, a.Member() && b.Member() && a.Live(b.Self()) && b.Live(a.Self()))
			}
		}
		a.access.setDeaf(true) // so the database is all that they have
		b.access.setDeaf(true)
		a.access.setCut(true) // so that the other has seen its last heartbeat
		wait(lease/heartbeatShare + time.Second)
		w.setDown(agent.ErrStoreDown)
		a.access.setCut(false)
		steady(5 * time.Minute)
		// The holder may be the last to notice that it is back.
		a.access.setCut(true)
		w.setDown(nil)
		wait(lease / 3)
		a.access.setCut(false)
		steady(5 * time.Minute)

		// Another error does not say whose it is. But who receives
		// its own heartbeats would be notified of another holder.
		a.access.setDeaf(false)
		b.access.setDeaf(false)
		wait(lease)
		w.setDown(errors.New("no route to host"))
		steady(5 * time.Minute)
		a.access.setDeaf(true)
		b.access.setDeaf(true)
		wait(lease)
		require.Zero(t, leaders(a, b))
		require.False(t, a.Member() || b.Member())
		w.setDown(nil)
		wait(lease)
		require.Equal(t, 1, leaders(a, b))
	})
}

// One that never beat belongs to nobody, even if the database says that it is
// down.
func TestDownAtStart(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		w.setDown(agent.ErrStoreDown)
		a := w.start(t)
		wait(time.Minute)
		require.False(t, a.Member())
		require.False(t, a.Leads())
		w.setDown(nil)
		wait(lease)
		require.True(t, a.Leads())
	})
}

// A replica of another database with the same deployment id is a stranger. One that
// starts, one that stops, and one whose database is unavailable for a while are not.
func TestStrangers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w, copied := newWorld(), newWorld()
		a, b := w.start(t), w.start(t)
		wait(time.Minute)
		b.stop()
		c := w.start(t)
		c.access.setCut(true)
		wait(2 * time.Minute)
		require.Zero(t, a.countStrangers())
		c.access.setCut(false)

		copied.shared = &w.bus
		foreign := copied.start(t)
		wait(2 * lease)
		require.Equal(t, 1, a.countStrangers())
		require.Equal(t, 2, foreign.countStrangers(), "each is one for the other")
		require.True(t, a.Leads() && foreign.Leads(), "of its own database")
		foreign.stop()
		wait(2 * lease)
		require.Zero(t, a.countStrangers())
	})
}

// A replica that died is gone until its row is removed. One that leaves is not.
func TestGone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b, c := w.start(t), w.start(t), w.start(t)
		gone := func(want int) {
			t.Helper()
			require.NoError(t, testutil.GatherAndCompare(a.reg, strings.NewReader(fmt.Sprintf(`
# HELP agentstatsd_replicas_gone Replicas that ended without leaving, or are cut off from the database, until 20 lease durations later.
# TYPE agentstatsd_replicas_gone gauge
agentstatsd_replicas_gone %d
`, want)), "agentstatsd_replicas_gone"))
		}
		wait(lease)
		gone(0)
		b.stop()
		wait(2 * lease)
		gone(0)
		c.kill()
		wait(2 * lease)
		gone(1)
		wait(forgetAfter * lease)
		gone(0)
	})
}

// The clock is compared with the database's, whatever it was before.
func TestClockSkew(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.start(t)
		for _, ahead := range []time.Duration{0, 90 * time.Second, -time.Hour} {
			w.setAhead(ahead)
			wait(lease)
			require.NoError(t, testutil.GatherAndCompare(a.reg, strings.NewReader(fmt.Sprintf(`
# HELP agentstatsd_replica_clock_skew_seconds By how much the clock of this replica is ahead of the database's, in seconds; below 0: behind.
# TYPE agentstatsd_replica_clock_skew_seconds gauge
agentstatsd_replica_clock_skew_seconds %v
`, -ahead.Seconds())), "agentstatsd_replica_clock_skew_seconds"))
		}
	})
}
