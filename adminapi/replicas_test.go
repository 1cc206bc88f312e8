package adminapi_test

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	"github.com/coder/agentstatsd/internal/memstore"
	"github.com/coder/agentstatsd/internal/readiness"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/replica"
)

// replicaLease is that of the tests' replicas.
const replicaLease = 5 * time.Second

// member is one of several replicas over a database.
type member struct {
	*edgetest.Service
	t  *testing.T
	id agent.ID
	// cut: it does not reach the database.
	cut  atomic.Bool
	stop func()
}

// startMember starts a replica that is named by its number.
func startMember(t *testing.T, database *memstore.Database, engine pubsub.Engine, n byte) *member {
	t.Helper()
	m := &member{t: t, id: agent.ID{n + 1}}
	store := database.Open(memstore.Options{Fault: func(string, bool) (f memstore.Fault) {
		if m.cut.Load() {
			f.Err = memstore.ErrRefused
		}
		return f
	}})
	replicas, err := replica.New(store, engine, replica.Options{ID: m.id, LeaseDuration: replicaLease}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	m.Service = edgetest.Start(t, edgetest.Settings{ChangeAdmin: func(c *adminapi.Components) {
		c.Identity = adminapi.Identity{ID: m.id, Name: string('a' + rune(n)), URL: "https://stats.example.com/" + string('a'+rune(n))}
		c.Replicas, c.Statuses = replicas, store
		c.Self = func() adminapi.Self { return adminapi.Self{Readiness: readiness.Answer{Ready: true}} }
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { require.NoError(t, replicas.Run(ctx)) })
	running.Go(func() { require.NoError(t, m.Admin.Run(ctx)) })
	m.stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(m.stop)
	return m
}

// statuses returns what the replica says of all, by their names.
func (m *member) statuses() []*pb.ReplicaStatus {
	m.t.Helper()
	resp, err := m.Operators().GetStatus(m.AsOperator(), &pb.GetStatusRequest{})
	require.NoError(m.t, err)
	return resp.GetReplicas()
}

func namesOf(all []*pb.ReplicaStatus) (names string) {
	for _, r := range all {
		names += r.GetName()
	}
	return names
}

// Each replica answers for all: how it is itself at this moment, and what the others said
// last, how long ago, and whether they live.
func TestStatusOfReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		engine, err := pubsub.NewMemory(prometheus.NewRegistry())
		require.NoError(t, err)
		b, a, c := startMember(t, database, engine, 1), startMember(t, database, engine, 0), startMember(t, database, engine, 2)
		time.Sleep(15 * time.Second)
		for m, want := range map[*member]string{a: "abc", b: "bac", c: "cab"} {
			all := m.statuses()
			require.Equal(t, want, namesOf(all), "it is first, the others are in the order of their names")
			require.Zero(t, all[0].GetAgeSeconds())
			for _, r := range all {
				require.True(t, r.GetAlive() && r.GetReady(), "%v", r)
				require.LessOrEqual(t, r.GetAgeSeconds(), 21.0)
			}
			require.Positive(t, all[1].GetAgeSeconds())
			require.Equal(t, b.id.String(), all[map[*member]int{a: 1, b: 0, c: 2}[m]].GetId())
		}
		name, page := a.Admin.Place(b.id)
		require.Equal(t, []string{"b", "https://stats.example.com/b"}, []string{name, page})
		name, page = a.Admin.Place(agent.ID{99})
		require.Empty(t, name+page)

		// One is killed: its last words stay for a while.
		b.cut.Store(true)
		b.stop()
		time.Sleep(15 * time.Second)
		all := a.statuses()
		require.Equal(t, "abc", namesOf(all))
		require.False(t, all[1].GetAlive() || all[1].GetReady() || all[1].GetLeads(), "%v", all[1])
		require.GreaterOrEqual(t, all[1].GetAgeSeconds(), 15.0)
		require.True(t, all[2].GetAlive())
		time.Sleep(21 * replicaLease) // it is forgotten
		require.Equal(t, "ac", namesOf(a.statuses()))

		// Without the database it says how it is, and what it knew of the others.
		a.cut.Store(true)
		time.Sleep(15 * time.Second)
		all = a.statuses()
		require.Equal(t, "ac", namesOf(all))
		require.Zero(t, all[0].GetAgeSeconds())
		require.True(t, all[1].GetAlive(), "by its messages")
		require.Greater(t, all[1].GetAgeSeconds(), 5.0)
		require.Positive(t, a.Counter("agentstatsd_status_exchange_errors_total", ""))
		require.Contains(t, a.Log.String(), "the replicas do not tell each other how they are, trying again")
		a.cut.Store(false)
		time.Sleep(11 * time.Second)
		require.LessOrEqual(t, a.statuses()[1].GetAgeSeconds(), 21.0)

		// One that stops goes at once.
		c.stop()
		time.Sleep(11 * time.Second)
		require.Equal(t, "a", namesOf(a.statuses()))
	})
}

// What other replicas stored is bounded, and shown only if it can be read.
func TestRefusedStatuses(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		engine, err := pubsub.NewMemory(prometheus.NewRegistry())
		require.NoError(t, err)
		store := database.Open(memstore.Options{})
		save := func(n byte, status []byte) {
			id := agent.ID{1, n}
			_, _, err := store.RecordHeartbeat(t.Context(), agent.Replica{ID: id}, -1)
			require.NoError(t, err)
			_, stored, err := store.ExchangeStatus(t.Context(), id, status, 0, 0)
			require.NoError(t, err)
			require.True(t, stored)
		}
		save(1, make([]byte, 32<<10+1))
		save(2, []byte("no status"))
		a := startMember(t, database, engine, 0)
		synctest.Wait()
		require.Len(t, a.statuses(), 1)
		refused := func(reason string) float64 { return a.Counter("agentstatsd_statuses_refused_total", reason) }
		require.Positive(t, refused("bytes"))
		require.Positive(t, refused("undecodable"))
		require.Zero(t, refused("replicas"))
		time.Sleep(time.Second) // these are newer
		for n := range 110 {
			save(byte(10+n), []byte{})
		}
		time.Sleep(11 * time.Second)
		require.Equal(t, 101, len(a.statuses()))
		require.Positive(t, refused("replicas"))
	})
}
