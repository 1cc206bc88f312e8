package intervals_test

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/memstore"
	"github.com/coder/agentstatsd/intervals"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/replica"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const lease = 15 * time.Second

// busy is a process that uses a share of the CPU, and metadata that waits.
type busy struct {
	mu    sync.Mutex
	share float64
	spent time.Duration // until since
	since time.Time
	age   time.Duration
}

func (b *busy) set(share float64) {
	spent := b.cpu()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.share, b.spent, b.since = share, spent, time.Now()
}

func (b *busy) cpu() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.spent + time.Duration(b.share*float64(runtime.GOMAXPROCS(0))*float64(time.Since(b.since)))
}

func (b *busy) Load(time.Time) (oldest, flushing time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.age, 0
}

// world is a database and a pubsub that replicas share.
type world struct {
	t      *testing.T
	db     *memstore.Database
	bus    *pubsub.Memory
	down   atomic.Bool
	logged lines
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// with returns how many lines have a text.
func (l *lines) with(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

func newWorld(t *testing.T) *world {
	bus, err := pubsub.NewMemory(prometheus.NewRegistry())
	require.NoError(t, err)
	return &world{t: t, db: memstore.New(), bus: bus}
}

func (w *world) open() *memstore.Store {
	return w.db.Open(memstore.Options{Fault: func(string, bool) memstore.Fault {
		if w.down.Load() {
			return memstore.Fault{Err: memstore.ErrRefused}
		}
		return memstore.Fault{}
	}})
}

// process is one of the service.
type process struct {
	*intervals.Intervals
	busy
	replicas *replica.Replicas // nil: it is alone
	store    *memstore.Store
	reg      *prometheus.Registry
	stop     func()
}

// start starts a process, with one of others or alone.
func (w *world) start(name string, alone bool, opts intervals.Options) *process {
	p := &process{store: w.open(), reg: prometheus.NewPedanticRegistry()}
	p.since = time.Now()
	log := slog.New(slog.NewTextHandler(&w.logged, nil))
	var shared intervals.Replicas = intervals.NewAlone(p.store)
	var err error
	if !alone {
		p.replicas, err = replica.New(p.store, w.bus, replica.Options{Name: name, LeaseDuration: lease}, p.reg, slog.New(slog.DiscardHandler))
		require.NoError(w.t, err)
		shared = p.replicas
	}
	opts.CPU = p.cpu
	p.Intervals, err = intervals.New(&p.busy, shared, opts, p.reg, log)
	require.NoError(w.t, err)
	require.Equal(w.t, 1.0, p.Factor())
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() { require.NoError(w.t, p.Run(ctx)) })
	if p.replicas != nil {
		running.Go(func() { require.NoError(w.t, p.replicas.Run(ctx)) })
	}
	p.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	w.t.Cleanup(p.stop)
	synctest.Wait()
	return p
}

// change is a factor that all have since a moment.
type change struct {
	at     time.Duration
	factor float64
}

// watch returns how the factor of processes changes in a while. All have the same, but
// for the moment until they read it.
func (w *world) watch(d time.Duration, processes ...*process) (changes []change) {
	w.t.Helper()
	start := time.Now()
	before := make(map[*process]float64)
	for _, p := range processes {
		before[p] = p.Factor()
	}
	last := processes[0].Factor()
	var differs time.Duration
	for time.Since(start) < d {
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		equal := true
		for _, p := range processes {
			f := p.Factor()
			if f != before[p] && f != last {
				changes = append(changes, change{time.Since(start), f})
				last, differs = f, 0
			}
			before[p] = f
			equal = equal && f == last
		}
		if !equal {
			differs += 100 * time.Millisecond
		}
		require.Less(w.t, differs, 6*time.Second)
	}
	return changes
}

// requireChanges checks the factors, and that there is a minute between two.
func requireChanges(t *testing.T, want []float64, changes []change) {
	t.Helper()
	var got []float64
	for i, c := range changes {
		got = append(got, c.factor)
		if i > 0 {
			require.GreaterOrEqual(t, c.at-changes[i-1].at, 55*time.Second, "%v", changes) // as they are seen
		}
	}
	require.Equal(t, want, got, "%v", changes)
}

// Three replicas have one factor, which the leader decides on all their loads.
func TestReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		opts := intervals.Options{}
		a, b, c := w.start("a", false, opts), w.start("b", false, opts), w.start("c", false, opts)
		require.Empty(t, w.watch(10*time.Minute, a, b, c))
		require.True(t, a.replicas.Leads())

		// Another one than the leader has too much to do.
		c.set(0.9)
		requireChanges(t, []float64{1.5, 2}, w.watch(165*time.Second, a, b, c))
		for _, factors := range []string{"factor=1.5 before=1", "factor=2 before=1.5"} {
			require.Equal(t, 1, w.logged.with(`level=INFO msg="intervals of agents are lengthened" `+factors+" load=cpu of_target=1.29 replica=c"))
		}
		require.NoError(t, testutil.GatherAndCompare(a.reg, strings.NewReader(`
# HELP agentstatsd_interval_factor Factor by which the report and metadata intervals of agents are multiplied, the same on all replicas.
# TYPE agentstatsd_interval_factor gauge
agentstatsd_interval_factor 2
# HELP agentstatsd_interval_steps_total Steps by which this replica, as the leader, lengthened the intervals of agents (up) or shortened them (down).
# TYPE agentstatsd_interval_steps_total counter
agentstatsd_interval_steps_total{direction="down"} 0
agentstatsd_interval_steps_total{direction="up"} 2
# HELP agentstatsd_load Load of this replica in the last 30 s as a share of its target: above 1 the intervals of agents are lengthened.
# TYPE agentstatsd_load gauge
agentstatsd_load{kind="cpu"} 0
agentstatsd_load{kind="flush"} 0
agentstatsd_load{kind="pending_age"} 0
`), "agentstatsd_interval_factor", "agentstatsd_interval_steps_total", "agentstatsd_load"))

		// The next leader takes the factor over.
		c.set(0.5)
		a.store.Kill()
		a.stop()
		require.Empty(t, w.watch(5*time.Minute, b, c), "a step down would be one too many")
		leader := b
		if c.replicas.Leads() {
			leader = c
		}
		require.True(t, leader.replicas.Leads())
		late := w.start("d", false, opts)
		require.Empty(t, w.watch(2*time.Second, b, c))
		require.Equal(t, 2.0, late.Factor(), "it has the factor at once")
		require.Empty(t, w.watch(time.Minute, late, b, c))

		// While the database is away nothing changes.
		w.down.Store(true)
		leader.set(1)
		require.Empty(t, w.watch(10*time.Minute, b, c, late))
		require.Equal(t, 9, w.logged.with("another factor of the intervals of agents is not stored, trying again"), "a line a minute")
		leader.set(0)
		c.set(0)
		require.Empty(t, w.watch(10*time.Minute, b, c, late))
		w.down.Store(false)
		requireChanges(t, []float64{1.5, 1}, w.watch(5*time.Minute, b, c, late))
	})
}

// A replica that is gone has no load.
func TestReplicaGone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start("a", false, intervals.Options{}), w.start("b", false, intervals.Options{})
		b.mu.Lock()
		b.age = 20 * time.Second
		b.mu.Unlock()
		requireChanges(t, []float64{4}, w.watch(5*time.Minute, a, b))
		require.Equal(t, 1, w.logged.with("load=pending_age of_target=6 replica=b"))
		b.store.Kill()
		b.stop()
		requireChanges(t, []float64{3, 2, 1.5, 1}, w.watch(6*time.Minute, a))
	})
}

// A service that is alone decides for itself, and knows the factor after a restart.
func TestAlone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.down.Store(true)
		a := w.start("", true, intervals.Options{MaxFactor: 2})
		a.set(0.9)
		require.Empty(t, w.watch(5*time.Minute, a), "the factor is not known")
		require.Equal(t, 5, w.logged.with("loads are not exchanged, the intervals of agents stay as they are"), "a line a minute")
		w.down.Store(false)
		requireChanges(t, []float64{1.5, 2}, w.watch(5*time.Minute, a))
		require.Equal(t, 1, w.logged.with("loads are exchanged again"))
		a.stop()
		a = w.start("", true, intervals.Options{MaxFactor: 2})
		require.Equal(t, 2.0, a.Factor())
		requireChanges(t, []float64{1.5, 1}, w.watch(5*time.Minute, a))
		lease, err := a.store.Lease(t.Context())
		require.NoError(t, err)
		require.Equal(t, agent.Lease{IntervalFactor: 1}, lease)
	})
}

// Intervals that are not to be lengthened are not, whatever is stored.
func TestNeverLengthened(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		require.NoError(t, w.open().SaveIntervalFactor(t.Context(), agent.ID{}, 3))
		a := w.start("", true, intervals.Options{MaxFactor: 1})
		a.set(1)
		require.Empty(t, w.watch(10*time.Minute, a))
		require.Equal(t, 1.0, a.Factor())
	})
}

// No replica exceeds the leader's limit: the leader stores it in the place of a factor
// that is above it.
func TestLimitOfTheLeader(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		require.NoError(t, w.open().SaveIntervalFactor(t.Context(), agent.ID{}, 3))
		leader := w.start("a", false, intervals.Options{MaxFactor: 1.5})
		other := w.start("b", false, intervals.Options{})
		leader.set(0.65) // which is not low
		time.Sleep(15 * time.Second)
		require.True(t, leader.replicas.Leads())
		require.Equal(t, []float64{1.5, 1.5}, []float64{leader.Factor(), other.Factor()})
		require.Equal(t, 1, w.logged.with(`msg="intervals of agents are shortened" factor=1.5 before=3`))
		require.Empty(t, w.watch(10*time.Minute, leader, other))
	})
}

// fakeReplicas have a factor that is set by the test.
type fakeReplicas struct {
	mu      sync.Mutex
	factor  float64
	decided []float64
}

func (r *fakeReplicas) ExchangeLoads(context.Context, agent.Load) (agent.ServiceLoad, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	busy := []agent.Replica{{Load: agent.Load{CPU: 1.2}}}
	return agent.ServiceLoad{Replicas: busy, IntervalFactor: r.factor, Decides: true}, nil
}

func (r *fakeReplicas) DecideIntervalFactor(_ context.Context, factor float64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.decided = append(r.decided, factor)
	return nil
}

// Until the factor is known nothing is decided, and it is looked for each second.
func TestFactorIsNotKnown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		replicas := &fakeReplicas{}
		i, err := intervals.New(&busy{}, replicas, intervals.Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- i.Run(ctx) }()
		time.Sleep(5*time.Minute + time.Second/2)
		replicas.mu.Lock()
		require.Empty(t, replicas.decided)
		replicas.factor = 1.5
		replicas.mu.Unlock()
		time.Sleep(time.Second)
		require.Equal(t, 1.5, i.Factor())
		time.Sleep(time.Minute + 10*time.Second)
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, []float64{2, 2, 2}, replicas.decided, "what is not seen to be stored is decided again")
	})
}
