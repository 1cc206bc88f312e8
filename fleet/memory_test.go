package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// manyAgents is a store with n registrations, which it makes anew when it is read, so that
// it takes no memory itself.
type manyAgents struct {
	n int
	// apps of each agent; 0: from one to four.
	apps int
	own  bool // no two agents have apps of the same names
	// before is true if each agent had a session and said its state.
	before bool
}

func numbered(kind, n int) (id agent.ID) {
	binary.BigEndian.PutUint64(id[:], uint64(n)*0x9e3779b97f4a7c15) // as random as ids are
	binary.BigEndian.PutUint64(id[8:], uint64(kind))
	return id
}

// registration returns that of agent n in a workspace of its own, as a coderd has it: no
// text is shared with others.
func (m *manyAgents) registration(n int) agent.Registration {
	text := func(format string, args ...any) string { return strings.Clone(fmt.Sprintf(format, args...)) }
	at := day.Add(time.Duration(n) * time.Second)
	reg := agent.Registration{
		ID: numbered(1, n), Name: text("main"), CreatedAt: at, ConnectionTimeout: 2 * time.Minute,
		TokenHash: sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n))),
		Workspace: agent.Workspace{
			ID: numbered(2, n), Name: text("workspace-%d", n), OwnerID: numbered(3, n/2), OwnerUsername: text("user-%d", n/2),
			Template:     agent.Template{ID: numbered(4, n%10), Name: text("template-%d", n%10), Version: text("nervous_lamport%d", n%30)},
			Organization: text("engineering"),
			Build:        agent.Build{ID: numbered(5, n), CreatedAt: at, Transition: "start"},
		},
		Incarnation: 1,
	}
	apps := m.apps
	if apps == 0 {
		apps = 1 + n%4
	}
	for a := range apps {
		of := a
		if m.own {
			of = n*apps + a
		}
		reg.Apps = append(reg.Apps, agent.App{ID: numbered(6+a, n), Slug: text("app-%d", of), DisplayName: text("Application %d", of), Health: agent.AppHealthInitializing})
	}
	for k := range n % 10 {
		reg.MetadataKeys = append(reg.MetadataKeys, text("%d_cpu_usage", k))
	}
	return reg
}

func (m *manyAgents) set() Set {
	set := Set{Agents: make([]agent.Registration, m.n)}
	for n := range set.Agents {
		set.Agents[n] = m.registration(n)
	}
	return set
}

func (m *manyAgents) Registrations(_ context.Context, since int64) (agent.Registrations, error) {
	r := agent.Registrations{Revision: 1, Complete: since == 0}
	if since == 0 {
		r.Agents = m.set().Agents
	}
	return r, nil
}

func (m *manyAgents) States(_ context.Context, since int64) (states []agent.State, next int64, err error) {
	for n := 0; since == 0 && m.before && n < m.n; n++ {
		order := agent.Order{Epoch: int64(n + 1), Sequence: 3, Said: int64(n + 1)}
		s := agent.State{Agent: numbered(1, n), Network: agent.Network{NodeID: uint64(n), PreferredRegion: 1, Regions: []agent.Region{{ID: 1, Name: "Frankfurt", Latency: 20 * time.Millisecond}, {ID: 2, Name: "Helsinki", Latency: 40 * time.Millisecond}}}, NetworkOrder: order}
		s.SetLifecycle(agent.Lifecycle{State: agent.LifecycleStarting, ChangedAt: day}, order)
		order.Sequence++
		s.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: day.Add(time.Minute)}, order)
		for a := range 1 + n%4 {
			s.SetAppHealth(numbered(6+a, n), agent.AppHealthHealthy, order)
		}
		states = append(states, s)
	}
	return states, 1, nil
}

func (m *manyAgents) Sessions(_ context.Context, since int64) (records []agent.SessionRecord, next int64, err error) {
	for n := 0; since == 0 && m.before && n < m.n; n++ {
		records = append(records, agent.SessionRecord{Agent: numbered(1, n), Epoch: int64(n + 1), Replica: numbered(100, n%3), Reported: true})
	}
	return records, 1, nil
}

func (m *manyAgents) EachRegistration(_ context.Context, page func(agent.Registrations) error) (int64, error) {
	set := m.set()
	r := agent.Registrations{Agents: set.Agents}
	for i := range set.Agents {
		r.Workspaces = append(r.Workspaces, set.Agents[i].Workspace)
	}
	return 1, eachRegistration(r, page)
}

func (m *manyAgents) EachState(ctx context.Context, page func([]agent.State) error) (int64, error) {
	states, next, err := m.States(ctx, 0)
	return next, errors.Join(err, page(states))
}

func (m *manyAgents) EachSession(ctx context.Context, page func([]agent.SessionRecord) error) (int64, error) {
	records, next, err := m.Sessions(ctx, 0)
	return next, errors.Join(err, page(records))
}

func (*manyAgents) MetadataKeys(context.Context, func(agent.ID, []string) error) error { return nil }
func (*manyAgents) ApplyChange(context.Context, int64, agent.Change) (int64, error) {
	return 1, nil
}
func (*manyAgents) Removals(context.Context, time.Duration) ([]agent.Removal, error) { return nil, nil }
func (*manyAgents) SaveStates(context.Context, []agent.State) ([]agent.StoredEpoch, error) {
	return nil, nil
}
func (*manyAgents) SaveSessions(context.Context, []agent.SessionRecord) ([]agent.SessionRecord, error) {
	return nil, nil
}
func (*manyAgents) ObserveBuilds(context.Context, []agent.ID, time.Time) ([]agent.ID, error) {
	return nil, nil
}

// noSeries keeps nothing: what series take is measured where they are.
type noSeries struct{}

func (noSeries) Open(agent.ID, agent.Identity, agent.Session) {}
func (noSeries) Close(agent.ID, int64, bool)                  {}
func (noSeries) Relabel(agent.ID, agent.Identity)             {}
func (noSeries) Remove(agent.ID)                              {}
func (noSeries) Followed(time.Time)                           {}
func (noSeries) SetStates([]agent.KeySeries) error            { return nil }

func (m *manyAgents) load(t require.TestingT) *Fleet {
	opts := Options{MaxAgents: 1 << 20, MaxBytes: 1 << 40}
	f, err := New(m, noSeries{}, noSeries{}, opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, f.Load(context.Background()))
	require.NoError(t, f.write(context.Background()))
	return f
}

// bytesEach returns the heap that the fleet takes, an agent.
func (m *manyAgents) bytesEach(t require.TestingT) (each float64, f *Fleet) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // what finalizers and cleanups of the first one free
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	f = m.load(t)
	after := heap()
	runtime.KeepAlive(f)
	return float64(int64(after-before)) / float64(m.n), f
}

// An agent that never had a session takes some 500 bytes with its workspace, one that had
// one some 820. What the limit counts is near that, whatever agents share.
func TestRegistrationsTakeLittleMemory(t *testing.T) {
	for _, c := range []struct {
		name string
		of   manyAgents
		most float64
	}{
		{"one app", manyAgents{apps: 1}, 650},
		{"as usual", manyAgents{}, 650},
		{"as usual, after a session", manyAgents{before: true}, 1000},
		{"many apps", manyAgents{apps: 30}, 1200},
		{"apps of their own", manyAgents{apps: 30, own: true}, 6000},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.of.n = 5000
			each, f := c.of.bytesEach(t)
			require.Less(t, each, c.most)
			if estimated := float64(f.registry.Use().Bytes()) / float64(c.of.n); !c.of.before {
				require.InEpsilon(t, each, estimated, 0.25)
			}
			requireZeroBytesWithoutAgents(t, f)
		})
	}
}

// requireZeroBytesWithoutAgents removes all agents.
func requireZeroBytesWithoutAgents(t *testing.T, f *Fleet) {
	var workspaces []agent.ID
	for w := range f.registry.workspaces.All() {
		workspaces = append(workspaces, w.reg.Load().ID)
	}
	_, err := f.Deregister(t.Context(), nil, workspaces)
	require.NoError(t, err)
	require.Zero(t, f.registry.Use().Bytes())
}

func BenchmarkRegistrations(b *testing.B) {
	for _, before := range []bool{false, true} {
		for _, n := range []int{10_000, 50_000, 200_000} {
			b.Run(fmt.Sprintf("had-session=%v/%d", before, n), func(b *testing.B) {
				m := &manyAgents{n: n, before: before}
				for b.Loop() {
					each, f := m.bytesEach(b)
					b.ReportMetric(each, "B/agent")
					b.ReportMetric(float64(f.registry.Use().Bytes())/float64(n), "estimated-B/agent")
				}
			})
		}
	}
}

func BenchmarkUnchangedSync(b *testing.B) {
	for _, n := range []int{10_000, 50_000, 200_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := &manyAgents{n: n}
			f := m.load(b)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				set := m.set()
				s, err := f.BeginSync()
				require.NoError(b, err)
				runtime.GC()
				b.StartTimer()
				_, err = s.Apply(context.Background(), set, false)
				require.NoError(b, err)
			}
		})
	}
}

func BenchmarkScanOfMany(b *testing.B) {
	m := &manyAgents{n: 200_000, before: true}
	f := m.load(b)
	b.ReportAllocs()
	for b.Loop() {
		f.scan(time.Now())
	}
}
