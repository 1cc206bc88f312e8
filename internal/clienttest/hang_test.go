package clienttest

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// lines is a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// with returns the lines that contain text.
func (l *lines) with(text string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

func (l *lines) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

func newLog() (*lines, *slog.Logger) {
	l := &lines{}
	return l, slog.New(slog.NewTextHandler(l, nil))
}

// names returns the names of the families of each snapshot; one that is final ends with
// "final".
func (f *fakePushes) names() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.snapshots {
		var names []string
		for _, family := range s.families {
			names = append(names, family.GetName())
		}
		if s.final {
			names = append(names, "final")
		}
		all = append(all, strings.Join(names, " "))
	}
	return all
}

// gate is a Gatherer that hangs while it is closed.
type gate struct {
	prometheus.Gatherer
	calls  atomic.Int64
	closed atomic.Pointer[chan struct{}]
}

func newGate(name string) *gate {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: name}))
	return &gate{Gatherer: reg}
}

func (g *gate) shut() (open func()) {
	c := make(chan struct{})
	g.closed.Store(&c)
	return func() { g.closed.Store(nil); close(c) }
}

func (g *gate) wait() {
	if c := g.closed.Load(); c != nil {
		<-*c
	}
}

func (g *gate) Gather() ([]*dto.MetricFamily, error) {
	g.calls.Add(1)
	g.wait()
	return g.Gatherer.Gather()
}

// A Gatherer that hangs costs its own families only, and no further calls. It comes back.
func TestPushGoesOnWithoutAGathererThatHangs(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startPushes(t)
		log, logger := newLog()
		a, b := newGate("a_total"), newGate("b_total")
		pusher, err := client.NewPusher(conn, client.PushOptions{
			Gatherer: prometheus.Gatherers{a, prometheus.Gatherers{b}}, Logger: logger,
		})
		require.NoError(t, err)
		open := b.shut()
		stop := run(t.Context(), pusher.Run)
		time.Sleep(50 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"a_total", "a_total", "a_total", "a_total"}, fake.names())
		require.EqualValues(t, 1, b.calls.Load())
		require.Len(t, log.with("gatherer has not returned"), 1)
		require.Contains(t, log.with("gatherer has not returned")[0], `gatherer="2 of 2, *clienttest.gate" after=10s`)

		open()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"a_total b_total", "a_total b_total"}, fake.names()[4:])
		require.Len(t, log.with("gatherer has returned"), 1)

		// One that hangs at the end is waited for 2 s.
		open = b.shut()
		began := time.Now()
		require.NoError(t, stop())
		require.Equal(t, 2*time.Second, time.Since(began))
		require.Equal(t, "a_total final", fake.names()[6])
		open()
	})
}

// What a slow Gatherer has is pushed when it returns, not once an interval.
func TestPushWaitsForASlowGatherer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startPushes(t)
		g := newGate("a_total")
		slow := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
			time.Sleep(12 * time.Second)
			return g.Gather()
		})
		pusher, err := client.NewPusher(conn, client.PushOptions{Gatherer: slow, Interval: 30 * time.Second})
		require.NoError(t, err)
		began := time.Now()
		stop := run(t.Context(), pusher.Run)
		time.Sleep(time.Minute)
		synctest.Wait()
		fake.locked(func() {
			require.Len(t, fake.snapshots, 2)
			require.Equal(t, 12*time.Second, fake.snapshots[0].at.Sub(began))
		})
		require.NoError(t, stop())
		time.Sleep(12 * time.Second)
	})
}

// coderd's Gather hangs once its server's context has ended, or some query does.
func TestPushEndsWhileTheGathererHangs(t *testing.T) {
	for name, c := range map[string]struct {
		// before is how long it hangs when the context ends.
		before, takes time.Duration
		snapshots     []string
		calls         int64
	}{
		"since the end":               {0, 2 * time.Second, []string{"a_total", "a_total final"}, 2},
		"since a moment ago":          {5 * time.Second, 2 * time.Second, []string{"a_total", "a_total final"}, 2},
		"since longer than its bound": {40 * time.Second, 0, []string{"a_total", "a_total final"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				fake, _, conn := startPushes(t)
				g := newGate("a_total")
				log, logger := newLog()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan error)
				go func() { ended <- client.PushGatherer(ctx, conn, g, client.PushOptions{Logger: logger}) }()
				synctest.Wait()
				open := g.shut()
				if c.before > 0 {
					time.Sleep(15*time.Second + c.before)
				}
				began := time.Now()
				cancel()
				require.NoError(t, <-ended)
				require.Equal(t, c.takes, time.Since(began))
				require.Equal(t, c.snapshots, fake.names())
				require.Equal(t, c.calls, g.calls.Load(), "no call beside one that hangs")
				require.Len(t, log.with("gatherer has not returned"), min(1, int(c.before/(40*time.Second))))
				open()
			})
		})
	}

	// It never returned, and the service hangs too.
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startPushes(t)
		fake.locked(func() { fake.hang = true })
		g := newGate("a_total")
		open := g.shut()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- client.PushGatherer(ctx, conn, g, client.PushOptions{}) }()
		time.Sleep(time.Minute)
		began := time.Now()
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, 5*time.Second, time.Since(began))
		open()
	})
}

// A Gatherer that panics is one that failed.
func TestPushOutlivesAPanic(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startPushes(t)
		log, logger := newLog()
		broken := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { panic("no database") })
		pusher, err := client.NewPusher(conn, client.PushOptions{Gatherer: prometheus.Gatherers{broken, newGate("a_total")}, Logger: logger})
		require.NoError(t, err)
		stop := run(t.Context(), pusher.Run)
		synctest.Wait()
		require.NoError(t, stop())
		require.Equal(t, []string{"a_total", "a_total final"}, fake.names())
		require.Len(t, log.with("gather: panic: no database"), 1)
	})
}

// slowCollector has a gauge, unless its gate is shut.
type slowCollector struct {
	*gate
	prometheus.Gauge
}

func (c slowCollector) Collect(out chan<- prometheus.Metric) {
	c.calls.Add(1)
	c.Gauge.Collect(out)
	c.wait()
}

// A collector that hangs in a real registry costs its own metrics only.
func TestBoundCollector(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log, logger := newLog()
		stuck := slowCollector{&gate{}, prometheus.NewGauge(prometheus.GaugeOpts{Name: "stuck"})}
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(
			client.BoundCollector("licenses", stuck, client.CollectorOptions{Logger: logger}),
			prometheus.NewGauge(prometheus.GaugeOpts{Name: "fine"}),
		)
		gather := func() string {
			families, err := reg.Gather()
			require.NoError(t, err)
			var names []string
			for _, f := range families {
				names = append(names, f.GetName())
			}
			return strings.Join(names, " ")
		}
		require.Equal(t, "fine stuck", gather())

		open := stuck.shut()
		began := time.Now()
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() { require.Equal(t, "fine", gather()) })
		}
		both.Wait()
		require.Equal(t, 5*time.Second, time.Since(began))
		require.Equal(t, "fine", gather())
		require.Equal(t, 5*time.Second, time.Since(began), "it is not waited for again")
		require.EqualValues(t, 2, stuck.calls.Load())
		require.Len(t, log.with(""), 1)
		require.Contains(t, log.with("")[0], "collector=licenses after=5s")

		time.Sleep(time.Hour)
		open()
		synctest.Wait()
		require.Equal(t, "fine stuck", gather())
		require.Contains(t, log.with("collector has returned")[0], "took=1h0m5s")
	})
}

// OnRefused that hangs does not hold up pushes, and gets what changed meanwhile.
func TestPushGoesOnWhileOnRefusedHangs(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startPushes(t)
		log, logger := newLog()
		fake.locked(func() { fake.refuse = []*agentstatsv1.FamilyRefusal{{Name: "a", Reason: "x"}} })
		hanging := make(chan struct{})
		var calls []string
		pusher, err := client.NewPusher(conn, client.PushOptions{
			Gatherer: newGate("a_total"), Logger: logger,
			OnRefused: func(refused []*agentstatsv1.FamilyRefusal, _ int64) {
				<-hanging
				calls = append(calls, refused[0].GetName())
			},
		})
		require.NoError(t, err)
		stop := run(t.Context(), pusher.Run)
		time.Sleep(50 * time.Second)
		fake.locked(func() { fake.refuse = []*agentstatsv1.FamilyRefusal{{Name: "b", Reason: "x"}} })
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, fake.numbers(), 8)
		require.Len(t, log.with("function=OnRefused"), 1)
		close(hanging)
		time.Sleep(15 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"a", "b"}, calls)
		require.NoError(t, stop())
	})
}

// Functions of an agent that hang keep neither its session nor its end. What Collect
// returns late is counted.
func TestAgentGoesOnWhileItsFunctionsHang(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		log, logger := newLog()
		hanging := make(chan struct{})
		var collects atomic.Int64
		agent, err := client.NewAgent(conn, client.AgentOptions{
			Collect: func(ctx context.Context) *agentstatsv1.Stats {
				if collects.Add(1) == 2 {
					<-ctx.Done() // the bound
					<-hanging
					return &agentstatsv1.Stats{RxBytes: 1000}
				}
				return &agentstatsv1.Stats{RxBytes: 1}
			},
			OnAck:  func(client.Ack) { <-hanging },
			Logger: logger,
		})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		time.Sleep(3 * time.Minute)
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: "v"}))
		time.Sleep(3 * time.Second)
		fake.flush()
		synctest.Wait()
		fake.locked(func() { require.Equal(t, map[string]string{"k": "v"}, fake.database) })
		require.EqualValues(t, 2, collects.Load())
		require.Len(t, log.with("has not returned: it is not called"), 2)
		close(hanging)
		time.Sleep(time.Minute)
		synctest.Wait()
		fake.locked(func() { require.True(t, slices.ContainsFunc(fake.lives[0], func(n int64) bool { return n >= 1000 })) })
		require.NoError(t, stop())
	})
	bubble.Test(t, func(t *testing.T) {
		_, _, conn := startFake(t)
		hanging := make(chan struct{})
		agent, err := client.NewAgent(conn, client.AgentOptions{OnState: func(client.State) { <-hanging }})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		synctest.Wait()
		began := time.Now()
		require.NoError(t, stop())
		require.Equal(t, 2*time.Second, time.Since(began))
		close(hanging)
	})
	// A dial that hangs is an error like any other. A connection that comes late is closed.
	bubble.Test(t, func(t *testing.T) {
		fake, n, _ := startFake(t)
		hanging := make(chan struct{})
		var dials atomic.Int64
		agent, err := client.NewDialingAgent(func() (*grpc.ClientConn, error) {
			if dials.Add(1) == 1 {
				<-hanging
			}
			return grpc.NewClient("passthrough:///fake", n.plaintext()...)
		}, client.AgentOptions{})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		time.Sleep(11 * time.Second)
		require.Equal(t, client.Waiting, agent.Status().Connection)
		require.ErrorContains(t, agent.Status().Err, "a function of the host has not returned")
		close(hanging)
		time.Sleep(time.Minute)
		synctest.Wait()
		fake.locked(func() { require.Len(t, fake.openedAt, 1) })
		require.NoError(t, stop())
	})
}

// Watches wait for their functions, but for 2 s only after their end, whether they have
// been late before or not.
func TestWatchesEndWhileTheirFunctionsHang(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, registered := startCoderd(t)
		_, err := registered.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
		require.NoError(t, err)
		log, logger := newLog()
		conn := s.conn(coderdToken)
		defer closeConn(t, conn)
		coderd, err := client.NewCoderd(conn, client.CoderdOptions{Logger: logger})
		require.NoError(t, err)
		for name, watch := range map[string]func(ctx context.Context, called func()) error{
			"handler of the watch of agents": func(ctx context.Context, called func()) error {
				return coderd.WatchAgents(ctx, nil, func(*agentstatsv1.WatchAgentsResponse) { called() })
			},
			"handler of the watch of metadata": func(ctx context.Context, called func()) error {
				return coderd.WatchMetadata(ctx, []uuid.UUID{agentID}, func(*agentstatsv1.WatchMetadataResponse) { called() })
			},
			"function=Started": func(ctx context.Context, called func()) error {
				return coderd.WatchStats(ctx, client.StatsWatch{Name: "a", Started: func(time.Time) { called() }, Handle: func(client.StatsBatch) error { return nil }})
			},
			"function=Load": func(ctx context.Context, called func()) error {
				return coderd.WatchStats(ctx, client.StatsWatch{
					Name:   "b",
					Load:   func(context.Context) (p client.StatsPosition, err error) { called(); return p, nil },
					Handle: func(client.StatsBatch) error { return nil },
				})
			},
			"function=Handle": func(ctx context.Context, called func()) error {
				return coderd.WatchStats(ctx, client.StatsWatch{Name: "c", Handle: func(client.StatsBatch) error { called(); return nil }})
			},
		} {
			for _, before := range []time.Duration{0, 15 * time.Second} {
				ctx, cancel := context.WithCancel(t.Context())
				called, hanging, ended := make(chan struct{}, 1), make(chan struct{}), make(chan error)
				go func() {
					ended <- watch(ctx, func() {
						select {
						case called <- struct{}{}:
						default:
						}
						<-hanging
					})
				}()
				<-called
				time.Sleep(before)
				synctest.Wait()
				require.Len(t, log.with(name), int(before/(15*time.Second)), "%s is late after 10 s", name)
				began := time.Now()
				cancel()
				require.NoError(t, <-ended)
				require.Equal(t, 2*time.Second, time.Since(began), "%s after %s", name, before)
				require.NotEmpty(t, log.with(name), name)
				close(hanging)
				synctest.Wait()
				log.clear()
			}
		}
	})
}
