package fleet

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

func TestTakeover(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	first, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	require.NoError(t, first.Receive(time.Now(), 3, func(Request) {}))

	second, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 2})
	require.NoError(t, err)
	require.True(t, closed(first.Done()))
	require.Equal(t, EndTakeover, first.End())
	require.Greater(t, second.Info().Epoch, first.Info().Epoch)
	require.True(t, first.Info().First)
	require.False(t, second.Info().First)
	require.Equal(t, Progress{Received: 3, Durable: 3}, second.Resume())
	require.Equal(t, instanceID(1), second.Info().Instance)
	require.ErrorIs(t, first.Receive(time.Now(), 4, func(Request) { t.Error("taken in") }), ErrSessionOver)
	first.Close(EndDisconnect) // does not touch the second
	require.False(t, closed(second.Done()))

	second.Close(EndDisconnect)
	require.True(t, closed(second.Done()))
	second.Close(EndDisconnect)
	third, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	third.Close(EndDisconnect)
	require.Equal(t, []string{
		"open 1 ws1 first=true", "open 1 ws1 first=false", "close 1 goodbye=false",
		"open 1 ws1 first=false", "close 1 goodbye=false", // it was here before, whatever it says
	}, p.journal.take())
	require.Equal(t, []string{"disconnect 2", "takeover 1"}, metric(t, p, "agentstatsd_sessions_ended_total"))
	require.Empty(t, metric(t, p, "agentstatsd_sessions"))
}

// lockedSeries reports whether requestMu was locked when its series opened.
type lockedSeries struct {
	seriesJournal
	requestMu func() *sync.Mutex
	free      bool
}

func (s *lockedSeries) Open(agent.ID, agent.Identity, agent.Session) {
	s.free = s.free || s.requestMu().TryLock()
}

// TestTakeoverWaitsForRequests shows that a request is not lost between two
// sessions: it is taken in before the second one learns where to resume.
func TestTakeoverWaitsForRequests(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	requestMu := func() *sync.Mutex { return &p.registry.agents.Get(nid(1)).requestMu }
	series := &lockedSeries{seriesJournal: seriesJournal{p.journal, newStateSeries()}, requestMu: requestMu}
	p.series = series
	s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	require.NoError(t, s.Receive(time.Now(), 1, func(Request) { series.free = series.free || requestMu().TryLock() }))
	s.Close(EndDisconnect)
	require.False(t, series.free)
}

func TestDuplicatesAndGaps(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	var taken []int64
	for _, seq := range []int64{1, 1, 5, 4, 3, 100, 100, 101} {
		require.NoError(t, s.Receive(time.Now(), seq, func(r Request) { taken = append(taken, r.Order().Sequence) }))
	}
	require.Equal(t, []int64{1, 5, 100, 101}, taken)
	require.Equal(t, []string{"4"}, metric(t, p, "agentstatsd_duplicate_requests_total"))
	require.Equal(t, Progress{Received: 101, Durable: 101}, s.Progress())
}

func TestGoodbye(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	require.NoError(t, s.Receive(time.Now(), 1, func(r Request) { r.Tracker().AddPending(1) }))
	p.journal.take()
	s.Close(EndGoodbye)
	require.Equal(t, []string{"close 1 goodbye=true"}, p.journal.take())
	require.Equal(t, Progress{Received: 1, Durable: 0}, s.Progress())

	woken := notified(s)
	s.instance.Resolve([]agent.Resolution{{Sequence: 1}})
	require.True(t, closed(woken), "its last ack is still sent")
	require.Equal(t, Progress{Received: 1, Durable: 1}, s.Progress())
	s.Close(EndGoodbye)
	require.Empty(t, p.journal.take())
}

func TestInstancesAreBounded(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	for n := range byte(6) {
		s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(n), Ordinal: 1})
		require.NoError(t, err)
		require.NoError(t, s.Receive(time.Now(), int64(n)+1, func(r Request) { r.SetNetwork(agent.Network{NodeID: uint64(n)}, 0) }))
	}
	e := p.registry.agents.Get(nid(1))
	require.Len(t, e.active.instances, maxInstances)
	require.Len(t, e.active.state.pendingAcks, maxInstances)
	require.Equal(t, []string{"2"}, metric(t, p, "agentstatsd_instances_dropped_total"))
	s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(3), Ordinal: 2})
	require.NoError(t, err)
	require.Equal(t, Progress{Received: 4, Durable: 3}, s.Resume())
	s, err = p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(0), Ordinal: 2})
	require.NoError(t, err)
	require.Equal(t, Progress{}, s.Resume())
	require.False(t, s.Info().First, "the agent says that it is not the first")
}

func TestSessionAge(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{SessionAge: time.Hour}, registration(1, 1, 1), registration(2, 2, 1))
		defer running(t, p)()
		start := time.Now()
		stays, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
		require.NoError(t, err)
		goes, err := p.Connect(t.Context(), nid(2), Hello{Instance: instanceID(2), Ordinal: 1})
		require.NoError(t, err)
		goesWoken, staysWoken := notified(goes), notified(stays)
		go func() {
			<-goesWoken
			goes.Close(EndDisconnect)
		}()

		<-staysWoken
		require.True(t, stays.Aged())
		asked := time.Since(start)
		require.GreaterOrEqual(t, asked, 54*time.Minute)
		require.LessOrEqual(t, asked, 66*time.Minute+scanInterval)

		<-stays.Done()
		require.Equal(t, EndAged, stays.End())
		require.Equal(t, 30*time.Second, time.Since(start)-asked)
		<-goes.Done()
		require.True(t, goes.Aged())
		require.Equal(t, EndDisconnect, goes.End())
	})
}

func TestInstanceRetention(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{InstanceRetention: time.Minute}, registration(1, 1, 1))
		s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
		require.NoError(t, err)
		require.NoError(t, s.Receive(time.Now(), 7, func(Request) {}))
		time.Sleep(time.Hour)
		p.scan(time.Now())
		s.Close(EndDisconnect)
		time.Sleep(time.Minute - 1)
		p.scan(time.Now())
		s, err = p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 2})
		require.NoError(t, err)
		require.Equal(t, Progress{Received: 7, Durable: 7}, s.Resume())
		s.Close(EndDisconnect)
		time.Sleep(time.Minute)
		p.scan(time.Now())
		s, err = p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 3})
		require.NoError(t, err)
		require.Equal(t, Progress{}, s.Resume())
	})
}

func TestMetadataKeys(t *testing.T) {
	entries := func(keys ...string) []agent.MetadataEntry {
		var out []agent.MetadataEntry
		for _, k := range keys {
			out = append(out, agent.MetadataEntry{Key: k})
		}
		return out
	}
	p := loaded(t, Options{MaxMetadataKeys: 3},
		registration(1, 1, 1),
		with(registration(2, 2, 1), func(r *agent.Registration) { r.MetadataKeys = []string{"mem", "cpu"} }))
	admit := func(n int, keys ...string) (kept []agent.MetadataEntry, refused []agent.Refusal) {
		request(t, p, n, func(r Request) { kept, refused = r.AdmitMetadata(entries(keys...)) })
		return kept, refused
	}

	kept, refused := admit(1, "a", "b", "a", "", "x\x00", "c", "d", "e")
	require.Equal(t, entries("a", "b", "a", "", "x\x00", "c"), kept)
	require.Equal(t, []agent.Refusal{{
		Kind: agent.RefusedLimit, Reason: "too_many_keys", Count: 2, Names: []string{"d", "e"},
		Message: "metadata keys: want at most 3 of an agent whose template declares none (--metadata-max-keys)",
	}}, refused)
	kept, refused = admit(1, "c", "a")
	require.Equal(t, entries("c", "a"), kept)
	require.Empty(t, refused)

	many := make([]string, 40)
	for i := range many {
		many[i] = fmt.Sprint("k", i)
	}
	kept, refused = admit(2, append(many, "cpu", "mem")...)
	require.Equal(t, entries("cpu", "mem"), kept)
	require.Equal(t, 40, refused[0].Count)
	require.Equal(t, many[:agent.MaxRefusalNames], refused[0].Names)
	require.Equal(t, "undeclared_key", refused[0].Reason)
	require.Equal(t, agent.RefusedNotAllowed, refused[0].Kind)
	require.Equal(t, []string{"too_many_keys 2", "undeclared_key 40"}, metric(t, p, "agentstatsd_metadata_refused_keys_total"))

	_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{registration(2, 2, 1)}})
	require.NoError(t, err)
	kept, _ = admit(2, "x", "y", "cpu")
	require.Equal(t, entries("cpu"), kept, "a registration that names no keys keeps them")
}

// TestSessionsRace has agents connect, report, say things and go while they are
// registered and removed.
func TestSessionsRace(t *testing.T) {
	p := loaded(t, Options{WriteInterval: time.Millisecond}, registration(1, 1, 1), registration(2, 2, 1))
	ctx, cancel := context.WithCancel(t.Context())
	var run, agents sync.WaitGroup
	run.Go(func() { require.NoError(t, p.Run(ctx)) })
	for n := range 8 {
		agents.Go(func() {
			id := nid(n%2 + 1)
			for i := range 200 {
				s, err := p.Connect(t.Context(), id, Hello{Instance: instanceID(byte(n)), Ordinal: int64(i + 1)})
				if err != nil {
					continue
				}
				for seq := s.Resume().Received + 1; ; seq++ {
					err := s.Receive(time.Now(), seq, func(r Request) {
						r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0)
						r.AdmitMetadata([]agent.MetadataEntry{{Key: fmt.Sprint(seq)}})
					})
					if err != nil || seq%7 == 0 {
						break
					}
				}
				s.Close(EndGoodbye)
			}
		})
	}
	agents.Go(func() {
		for i := range 100 {
			_, _ = p.Deregister(ctx, ids(1), nil)
			_, _ = p.Register(ctx, Set{Agents: []agent.Registration{registration(1, 1, 1), with(registration(2, 2, 1), func(r *agent.Registration) {
				r.Workspace.Name = fmt.Sprint("ws", i)
			})}})
			p.List(uuid.Nil, 10)
			p.scan(time.Now())
		}
	})
	agents.Wait()
	cancel()
	run.Wait()
	require.Empty(t, metric(t, p, "agentstatsd_sessions"))
	requireConsistent(t, p)
}

func benchFleet(b *testing.B) *Fleet {
	b.Helper()
	j := &quiet{}
	f, err := New(newMemStore(&journal{}), j, j, Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(b, err)
	require.NoError(b, f.Load(b.Context()))
	_, err = f.Register(b.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
	require.NoError(b, err)
	return f
}

type quiet struct{}

func (quiet) Open(agent.ID, agent.Identity, agent.Session) {}
func (quiet) Close(agent.ID, int64, bool)                  {}
func (quiet) SetStates([]agent.KeySeries) error            { return nil }
func (quiet) Relabel(agent.ID, agent.Identity)             {}
func (quiet) Remove(agent.ID)                              {}
func (quiet) Followed(time.Time)                           {}

func BenchmarkConnect(b *testing.B) {
	f := benchFleet(b)
	b.ReportAllocs()
	for b.Loop() {
		s, err := f.Connect(b.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 2})
		if err != nil {
			b.Fatal(err)
		}
		s.Close(EndDisconnect)
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	f := benchFleet(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Authenticate(b.Context(), token(1)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRegisterOne registers a rename of one agent among 100,000.
func BenchmarkRegisterOne(b *testing.B) {
	f := benchFleet(b)
	var set Set
	for n := range 100_000 {
		r := registration(1, 1, 1)
		r.ID = uuid.New()
		r.Workspace.ID = uuid.New()
		r.TokenHash = sha256.Sum256(fmt.Append(nil, n))
		set.Agents = append(set.Agents, r)
	}
	one := set.Agents[500]
	_, err := f.Register(b.Context(), set)
	require.NoError(b, err)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		one.Workspace.Name = fmt.Sprint(i)
		if _, err := f.Register(b.Context(), Set{Agents: []agent.Registration{one}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScan looks at 100,000 agents.
func BenchmarkScan(b *testing.B) {
	f := benchFleet(b)
	var set Set
	for n := range 100_000 {
		r := registration(1, 1, 1)
		r.ID = uuid.New()
		r.Workspace.ID = uuid.New()
		r.TokenHash = sha256.Sum256(fmt.Append(nil, n))
		set.Agents = append(set.Agents, r)
	}
	_, err := f.Register(b.Context(), set)
	require.NoError(b, err)
	now := time.Now()
	for b.Loop() {
		f.scan(now)
	}
}

func BenchmarkReceive(b *testing.B) {
	p := benchFleet(b)
	s, err := p.Connect(b.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(b, err)
	b.ReportAllocs()
	seq := int64(0)
	for b.Loop() {
		seq++
		if err := s.Receive(time.Now(), seq, func(Request) {}); err != nil {
			b.Fatal(err)
		}
	}
}
