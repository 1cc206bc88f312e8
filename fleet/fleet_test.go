package fleet

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/coder/agentstatsd/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal is the order in which things happened.
type journal struct {
	mu    sync.Mutex
	lines []string

	followed time.Time
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

func (j *journal) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines
	j.lines = nil
	return lines
}

type seriesJournal struct {
	*journal
	states *stateSeries
}

func (s seriesJournal) SetStates(states []agent.KeySeries) error {
	s.states.noteSize(len(states))
	for _, k := range states {
		s.states.set(k.Key, k.Series)
	}
	return nil
}

func (s seriesJournal) Open(id agent.ID, ident agent.Identity, i agent.Session) {
	s.add("open %s %s first=%v", short(id), ident.WorkspaceName, i.First)
}

func (s seriesJournal) Close(id agent.ID, _ int64, goodbye bool) {
	s.add("close %s goodbye=%v", short(id), goodbye)
}

func (s seriesJournal) Relabel(id agent.ID, ident agent.Identity) {
	s.add("relabel %s %s/%s/%s/%s", short(id), ident.Username, ident.WorkspaceName, ident.AgentName, ident.TemplateName)
}
func (s seriesJournal) Remove(id agent.ID) { s.add("series remove %s", short(id)) }

type pendingJournal struct{ *journal }

func (p pendingJournal) Remove(id agent.ID) { p.add("pending remove %s", short(id)) }

func (p pendingJournal) Followed(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.followed = at
}

// nid is the nth id; short is its inverse, for people.
func nid(n int) agent.ID {
	var id agent.ID
	id[0], id[14], id[15] = 1, byte(n>>8), byte(n)
	return id
}

func short(id agent.ID) string { return fmt.Sprint(int(id[14])<<8 | int(id[15])) }

func token(n int) string { return fmt.Sprintf("token-%d", n) }

// day is before the time at which the bubbles of synctest begin.
var day = time.Date(1999, 3, 1, 12, 0, 0, 0, time.UTC)

// registration is agent n of workspace w in its build b.
func registration(n, w, b int) agent.Registration {
	return agent.Registration{
		ID:        nid(n),
		Name:      "main",
		CreatedAt: day.Add(time.Duration(b) * time.Hour),
		TokenHash: sha256.Sum256([]byte(token(n))),
		Workspace: agent.Workspace{
			ID:            nid(1000 + w),
			Name:          fmt.Sprintf("ws%d", w),
			OwnerID:       nid(2000),
			OwnerUsername: "ada",
			Template:      agent.Template{ID: nid(3000), Name: "docker", Version: "v1"},
			Build:         agent.Build{ID: nid(4000 + b), CreatedAt: day.Add(time.Duration(b) * time.Hour), Transition: "start"},
		},
		Apps: []agent.App{{ID: nid(5000 + n), Slug: "code", DisplayName: "code", Health: agent.AppHealthInitializing}},
	}
}

type parts struct {
	*Fleet
	store   *memStore
	journal *journal
	reg     *prometheus.Registry
	states  *stateSeries
}

func newParts(t *testing.T, opts Options) parts {
	t.Helper()
	j := &journal{}
	return newPartsOn(t, opts, newMemStore(j), j)
}

func newPartsOn(t require.TestingT, opts Options, s *memStore, j *journal) parts {
	reg := prometheus.NewPedanticRegistry()
	states := newStateSeries()
	f, err := New(s, seriesJournal{j, states}, pendingJournal{j}, opts, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return parts{f, s, j, reg, states}
}

// loaded has the agents registered.
func loaded(t *testing.T, opts Options, regs ...agent.Registration) parts {
	t.Helper()
	p := newParts(t, opts)
	require.NoError(t, p.Load(t.Context()))
	_, err := p.Register(t.Context(), Set{Agents: regs})
	require.NoError(t, err)
	p.journal.take()
	return p
}

func instanceID(n byte) agent.Instance { return agent.Instance{15: n} }

// waker returns what notes in the channel that it was woken.
func waker(ch chan<- struct{}) func() {
	return func() {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// notified returns a channel that has an element when s has something to send.
func notified(s *Session) <-chan struct{} {
	ch := make(chan struct{}, 1)
	s.Watch(waker(ch))
	return ch
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func ids(numbers ...int) []agent.ID {
	var out []agent.ID
	for _, n := range numbers {
		out = append(out, nid(n))
	}
	return out
}

func registered(f *Fleet) []agent.ID {
	var out []agent.ID
	for _, i := range f.List(uuid.Nil, 1<<20) {
		out = append(out, i.Registration.ID)
	}
	return out
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		opts Options
		want string
	}{
		{Options{MaxAgents: -1}, "fleet options: max agents: want at least 0, got -1"},
		{Options{SessionAge: time.Second}, "fleet options: session age: want 0 or at least 10s, got 1s"},
	} {
		_, err := New(nil, nil, nil, c.opts, prometheus.NewRegistry(), nil)
		require.EqualError(t, err, c.want)
	}
}

func TestMetricsPassLint(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	problems, err := testutil.GatherAndLint(p.reg)
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestAuthenticate(t *testing.T) {
	p := newParts(t, Options{})
	_, err := p.Authenticate(t.Context(), token(1))
	require.ErrorIs(t, err, ErrUnavailable, "before the registrations are loaded")
	require.ErrorIs(t, p.Ready(), ErrUnavailable)
	_, err = p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.ErrorIs(t, err, ErrUnavailable)
	_, err = p.Register(t.Context(), Set{})
	require.ErrorIs(t, err, ErrUnavailable)
	_, err = p.BeginSync()
	require.ErrorIs(t, err, ErrUnavailable)

	require.NoError(t, p.Load(t.Context()))
	require.NoError(t, p.Ready())
	_, err = p.Authenticate(t.Context(), token(1))
	require.ErrorIs(t, err, ErrUnknownToken)
	_, err = p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.ErrorIs(t, err, ErrUnknownAgent)

	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
	require.NoError(t, err)
	id, err := p.Authenticate(t.Context(), token(1))
	require.NoError(t, err)
	require.Equal(t, nid(1), id)
}

func TestListPages(t *testing.T) {
	var regs []agent.Registration
	for n := range 200 {
		regs = append(regs, registration(n+1, n+1, 1))
	}
	p := loaded(t, Options{}, regs...)
	var got []agent.ID
	var after agent.ID
	for {
		page := p.List(after, 7)
		for _, i := range page {
			got = append(got, i.Registration.ID)
		}
		if len(page) < 7 {
			break
		}
		after = got[len(got)-1]
	}
	var want []agent.ID
	for _, r := range regs {
		want = append(want, r.ID)
	}
	require.Equal(t, want, got)
	require.Equal(t, ids(4), []agent.ID{p.List(nid(3), 1)[0].Registration.ID}, "after is excluded")

	_, err := p.Deregister(t.Context(), want[:150], nil)
	require.NoError(t, err)
	require.Equal(t, want[150:], registered(p.Fleet))
	_, err = p.Deregister(t.Context(), want[160:163], nil)
	require.NoError(t, err)
	require.Equal(t, slices.Concat(want[150:160], want[163:]), registered(p.Fleet))
}

func TestLoad(t *testing.T) {
	j := &journal{}
	s := newMemStore(j)
	p := newPartsOn(t, Options{}, s, j)
	require.NoError(t, p.Load(t.Context()))
	declared := registration(2, 2, 1)
	declared.MetadataKeys = []string{"mem", "cpu", "cpu"}
	_, err := p.Register(t.Context(), Set{
		Agents:     []agent.Registration{registration(1, 1, 1), declared},
		Workspaces: []agent.Workspace{registration(3, 3, 1).Workspace},
	})
	require.NoError(t, err)
	future := time.Now().Add(time.Hour).UnixNano()
	s.keys[nid(1)] = []string{"b", "a"}
	s.sessions[nid(1)] = agent.SessionRecord{Agent: nid(1), Epoch: future}
	s.states[nid(2)] = agent.State{
		Agent:     nid(2),
		Lifecycle: agent.Lifecycle{State: agent.LifecycleReady}, LifecycleOrder: agent.Order{Epoch: future + 9},
		AppHealth: map[agent.ID]agent.AppHealth{nid(5002): agent.AppHealthHealthy, nid(1): agent.AppHealthHealthy},
	}
	s.states[nid(77)] = agent.State{Agent: nid(77)}

	again := newPartsOn(t, Options{MaxMetadataKeys: 2}, s, j)
	require.NoError(t, again.Load(t.Context()))
	require.NoError(t, again.Load(t.Context()), "a second time does nothing")
	require.Equal(t, ids(1, 2), registered(again.Fleet))
	require.Equal(t, 3.0, testutil.ToFloat64(again.metrics.workspaces))
	i, err := again.Agent(nid(2))
	require.NoError(t, err)
	require.Equal(t, agent.LifecycleReady, i.State.Lifecycle.State)
	require.Equal(t, map[agent.ID]agent.AppHealth{nid(5002): agent.AppHealthHealthy}, i.State.AppHealth, "apps that are not registered are dropped")

	one, err := again.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	require.Equal(t, future+1, one.Info().Epoch)
	two, err := again.Connect(t.Context(), nid(2), Hello{Instance: instanceID(2), Ordinal: 1})
	require.NoError(t, err)
	require.Equal(t, future+10, two.Info().Epoch, "a state's epoch counts too")

	require.NoError(t, one.Receive(time.Now(), 1, func(r Request) {
		kept, refused := r.AdmitMetadata([]agent.MetadataEntry{{Key: "c"}, {Key: "a"}, {Key: "b"}})
		require.Equal(t, []agent.MetadataEntry{{Key: "a"}, {Key: "b"}}, kept, "stored keys count")
		require.Equal(t, "too_many_keys", refused[0].Reason)
	}))

	// The same again is no write.
	writes := s.writeCount()
	declared.MetadataKeys = []string{"cpu", "mem"}
	_, err = again.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1), declared}})
	require.NoError(t, err)
	require.Equal(t, writes, s.writeCount())
}

func TestNextEpoch(t *testing.T) {
	for _, c := range []struct {
		name      string
		now, last int64
		want      int64
	}{
		{"first", 100, 0, 100},
		{"clock goes on", 100, 90, 100},
		{"same moment", 100, 100, 101},
		{"clock goes back", 100, 5000, 5001},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, agent.NextEpoch(time.Unix(0, c.now), c.last, agent.ID{}, 0))
		})
	}
}

var errDown = errors.New("database is down")

// metric returns the lines of a family of counters with their labels.
func metric(t *testing.T, p parts, name string) []string {
	t.Helper()
	families, err := p.reg.Gather()
	require.NoError(t, err)
	var out []string
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetValue())
			}
			if v := m.GetCounter().GetValue() + m.GetGauge().GetValue(); v != 0 {
				out = append(out, strings.TrimSpace(fmt.Sprintf("%s %v", strings.Join(labels, ","), v)))
			}
		}
	}
	return out
}
