package replica

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// idsOf returns the ids of replicas in the order of Sharing; nil: none.
func idsOf(replicas ...*running) (ids []agent.ID) {
	for _, r := range replicas {
		ids = append(ids, r.Self())
	}
	slices.SortFunc(ids, func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

// requireShared fails unless each of these sees exactly those share.
func requireShared(t *testing.T, want []agent.ID, by ...*running) {
	t.Helper()
	for _, r := range by {
		require.Equal(t, want, r.Sharing())
		families, err := r.reg.Gather()
		require.NoError(t, err)
		at := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == "agentstatsd_replicas_sharing" })
		require.EqualValues(t, len(want), families[at].GetMetric()[0].GetGauge().GetValue())
	}
}

// A replica shares from when it serves until it leaves, which all notice at once. Who
// leaves alone goes on.
func TestSharing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		requireShared(t, nil, a, b)
		a.Serve()
		synctest.Wait()
		requireShared(t, idsOf(a), a, b)
		b.Serve()
		b.Serve()
		synctest.Wait()
		requireShared(t, idsOf(a, b), a, b)
		a.Leave()
		a.Serve()
		synctest.Wait()
		requireShared(t, idsOf(b), a, b)
		b.handleMessage([]byte(message{kind: kindHeartbeat, from: a.Self(), phase: agent.ReplicaServing}.String()))
		requireShared(t, idsOf(b), b) // it was late
		b.Leave()
		synctest.Wait()
		requireShared(t, idsOf(a, b), a, b)
		a.stop()
		synctest.Wait()
		requireShared(t, idsOf(b), a, b)
		c := w.start(t)
		c.Serve()
		synctest.Wait()
		requireShared(t, idsOf(c), b, c)
		<-c.Changed()
		select {
		case <-c.Changed():
			require.Fail(t, "more changes than one element says")
		default:
		}
		b.stop()
		synctest.Wait()
		<-c.Changed()
	})
}

// Phases are known by the database where no message arrives.
func TestSharingWithoutPubSub(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		a.access.setDeaf(true)
		a.Serve()
		b.Serve()
		synctest.Wait()
		require.Contains(t, a.Sharing(), a.Self(), "it does not wait for its message")
		wait(lease / heartbeatShare)
		requireShared(t, idsOf(a, b), a, b)
		a.Leave()
		wait(lease / heartbeatShare)
		requireShared(t, idsOf(b), a, b)
	})
}

// One that is killed shares until its lease has run out, then not any more; one that is cut
// off from all gives up before the others take its share.
func TestSharingOfTheDead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b, c := w.start(t), w.start(t), w.start(t)
		for _, r := range []*running{a, b, c} {
			r.Serve()
		}
		wait(time.Minute)
		requireShared(t, idsOf(a, b, c), a, b, c)
		a.kill()
		b.access.setCut(true)
		b.access.setDeaf(true)
		for slices.Contains(c.Sharing(), b.Self()) {
			wait(100 * time.Millisecond)
		}
		require.NotContains(t, b.Sharing(), b.Self())
		wait(lease)
		requireShared(t, idsOf(c), c)
		b.access.setCut(false)
		b.access.setDeaf(false)
		wait(2 * lease) // it watches all anew
		requireShared(t, idsOf(b, c), b, c)
	})
}

// Who starts after one was killed, and its lease has run out, knows at once that it is gone;
// and that one is back that was only cut off.
func TestSharingAfterTheDead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		a.Serve()
		b.Serve()
		wait(time.Minute)
		a.access.setCut(true)
		a.access.setDeaf(true)
		for slices.Contains(b.Sharing(), a.Self()) {
			wait(100 * time.Millisecond)
		}
		wait(lease / heartbeatShare) // it is noted
		c := w.start(t)
		synctest.Wait()
		require.False(t, c.Live(a.Self()))
		requireShared(t, idsOf(b), b, c)
		c.Serve()
		synctest.Wait()
		requireShared(t, idsOf(b, c), b, c)
		a.access.setCut(false)
		a.access.setDeaf(false)
		wait(2 * lease / heartbeatShare)
		requireShared(t, idsOf(a, b, c), b, c)
		d := w.start(t)
		synctest.Wait()
		requireShared(t, idsOf(a, b, c), b, c, d)
	})
}

// Who starts before the lease of one that was killed has run out sees it end with the others.
func TestSharingWithTheDead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		a.Serve()
		b.Serve()
		wait(time.Minute)
		b.kill()
		wait(lease / 2)
		c := w.start(t)
		c.Serve()
		synctest.Wait()
		requireShared(t, idsOf(a, b, c), a, c)
		wait(time.Second)
		a.wakeRun() // its heartbeats are at other times than c's
		for slices.Contains(a.Sharing(), b.Self()) {
			require.Equal(t, a.Sharing(), c.Sharing())
			wait(100 * time.Millisecond)
		}
		requireShared(t, idsOf(a, c), a, c)
	})
}

// Where it takes long to note who is gone, heartbeats come as often as before.
func TestHeartbeatsWhileNotingIsStuck(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		a.access.setStuck(true)
		wait(time.Minute)
		b.kill()
		wait(2 * lease)
		before := w.row(a.Self()).Heartbeats
		wait(2 * lease)
		require.GreaterOrEqual(t, w.row(a.Self()).Heartbeats, before+2*heartbeatShare)
		require.NotEqual(t, agent.ReplicaGone, w.row(b.Self()).Phase)
		require.True(t, a.Member())
		a.access.setStuck(false)
		wait(lease)
		require.Equal(t, agent.ReplicaGone, w.row(b.Self()).Phase)
	})
}

// A replica that is cut off from the database goes on for as long as its messages arrive,
// also beyond the time after which rows of others are removed. It takes notice of those
// that come.
func TestSharingWithoutDatabase(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a, b := w.start(t), w.start(t)
		a.Serve()
		b.Serve()
		wait(time.Minute)
		a.access.setCut(true)
		wait(lease)
		c := w.start(t)
		c.Serve()
		synctest.Wait()
		for range 2 * forgetAfter {
			requireShared(t, idsOf(a, b, c), a, b, c)
			require.Equal(t, agent.ReplicaServing, w.row(a.Self()).Phase)
			wait(lease)
		}
		c.stop()
		synctest.Wait()
		requireShared(t, idsOf(a, b), a, b)
		w.setDown(agent.ErrStoreDown)
		a.access.setCut(false)
		wait(10 * lease)
		requireShared(t, idsOf(a, b), a, b)
	})
}

// A replica of another deployment whose database was copied does not share.
func TestSharingWithStrangers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		a := w.start(t)
		a.Serve()
		other := newWorld()
		other.shared = &w.bus
		b := other.start(t)
		b.Serve()
		wait(lease)
		require.True(t, a.Live(b.Self()))
		requireShared(t, idsOf(a), a)
		requireShared(t, idsOf(b), b)
	})
}

// While a replica lives of a version that leaves all to the holder of the lease, the others
// do so, too.
func TestSharingWithOlderVersion(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		older := agent.ID{0: 1}
		heartbeat := func() {
			a := &access{database: w.database, bus: &w.bus}
			_, _, err := a.RecordHeartbeat(t.Context(), agent.Replica{ID: older}, -1)
			require.NoError(t, err)
		}
		heartbeat() // it leads
		a, b := w.start(t), w.start(t)
		a.Serve()
		b.Serve()
		for range 3 {
			heartbeat()
			wait(lease / heartbeatShare)
			requireShared(t, []agent.ID{older}, a, b)
		}
		require.NoError(t, a.access.RemoveReplicas(t.Context(), []agent.ID{older}))
		wait(lease)
		requireShared(t, idsOf(a, b), a, b)
		heartbeat()
		wait(lease / heartbeatShare)
		requireShared(t, a.leader(), a, b)
		require.Equal(t, 1, leaders(a, b))
	})
}

// leader returns the holder of the lease.
func (r *running) leader() []agent.ID { return []agent.ID{r.access.lease.Holder} }
