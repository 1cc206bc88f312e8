package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/notification"
	"github.com/coder/agentstatsd/internal/bubble"
)

// startCutReplicas returns two replicas that share a store, in which agent 1 is
// registered, and send each other nothing any more. The clock of slow is half an hour
// behind that of fast.
func startCutReplicas(t *testing.T) (store *memStore, fast, slow parts) {
	t.Helper()
	c := newCluster()
	store = newMemStore(&journal{})
	fast = startReplica(t, c, store, 0, Options{Now: func() time.Time { return time.Now().Add(time.Hour / 2) }})
	slow = startReplica(t, c, store, 1, Options{FollowInterval: time.Hour})
	awaitReplicas()
	_, err := fast.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
	require.NoError(t, err)
	awaitReplicas()
	c.setCut(true, fast, slow)
	return store, fast, slow
}

// A new process of an agent connects to a replica with a slow clock that got
// nothing of the process before. What it says loses against what is stored: it is not
// acked, the session ends, and the next one is above.
func TestEpochBelowTheStoredOne(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store, fast, slow := startCutReplicas(t)
		say := func(s *Session, sequence int64, state agent.LifecycleState) {
			receive(t, s, sequence, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: state}, 0) })
		}
		before := connectTo(t, fast, 1, hello(1, 1))
		say(before, 1, agent.LifecycleReady)
		before.Close(EndDisconnect)
		awaitReplicas()
		high := store.state(nid(1)).LifecycleOrder.Epoch

		s := connectTo(t, slow, 1, hello(2, 1))
		require.Less(t, s.Info().Epoch, high)
		say(s, 1, agent.LifecycleShuttingDown)
		awaitReplicas()
		require.Equal(t, Progress{Received: 1, Durable: 0}, s.Progress(), "it is not stored")
		require.True(t, closed(s.Done()))
		s = connectTo(t, slow, 1, hello(2, 2))
		require.Equal(t, Progress{}, s.Resume(), "nothing is known of the instance")
		require.Greater(t, s.Info().Epoch, high)
		say(s, 2, agent.LifecycleShuttingDown)
		awaitReplicas()
		require.Equal(t, Progress{Received: 2, Durable: 2}, s.Progress())
		require.Equal(t, agent.LifecycleShuttingDown, store.state(nid(1)).Lifecycle.State)
	})
}

// The same, but nothing is stored of the process before except its session. Another
// process with a higher epoch may have values that wait to be written, and takes all
// lower ones for older.
func TestEpochBelowTheStoredSession(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store, fast, slow := startCutReplicas(t)
		connectTo(t, fast, 1, hello(1, 1)).Close(EndGoodbye)
		awaitReplicas()
		high := store.epoch(nid(1))

		s := connectTo(t, slow, 1, hello(2, 1))
		require.Less(t, s.Info().Epoch, high)
		receive(t, s, 1, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0) })
		awaitReplicas()
		require.Equal(t, Progress{Received: 1, Durable: 0}, s.Progress(), "it may be replaced")
		require.True(t, closed(s.Done()))
		s = connectTo(t, slow, 1, hello(2, 2))
		require.Equal(t, Progress{}, s.Resume(), "nothing is known of the instance")
		require.Greater(t, s.Info().Epoch, high)
		receive(t, s, 2, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0) })
		awaitReplicas()
		require.Equal(t, Progress{Received: 2, Durable: 2}, s.Progress())
	})
}

// What is stored is acked once the record of its session was written, over whatever
// sessions the instance had on this replica since. Requests of which nothing is to be
// stored do not wait.
func TestAcksWaitForTheSession(t *testing.T) {
	c := newCluster()
	store := newMemStore(&journal{})
	p := joined(t, c, store, 0, Options{})
	_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
	require.NoError(t, err)
	e, err := p.entry(nid(1))
	require.NoError(t, err)
	say := func(s *Session, sequence int64) {
		receive(t, s, sequence, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: day}, 0) })
	}
	s := connectTo(t, p, 1, hello(1, 1))
	reportOn(t, s, 1)
	require.Equal(t, Progress{Received: 1, Durable: 1}, s.Progress())
	say(s, 2)
	require.NoError(t, p.writeStates(t.Context()))
	require.Equal(t, Progress{Received: 2, Durable: 1}, s.Progress())
	s = connectTo(t, p, 1, hello(1, 2))
	require.Equal(t, Progress{Received: 2, Durable: 1}, s.Resume())
	say(s, 3)
	require.NoError(t, p.writeStates(t.Context()))
	require.NoError(t, p.writeSessions(t.Context()))
	require.Equal(t, Progress{Received: 3, Durable: 3}, s.Progress())

	// It has another session by the time the record is written.
	say(s, 4)
	require.NoError(t, p.write(t.Context()))
	require.Equal(t, Progress{Received: 4, Durable: 4}, s.Progress())
	s = connectTo(t, p, 1, hello(1, 3))
	say(s, 5)
	record := e.history().newest
	s = connectTo(t, p, 1, hello(1, 4))
	say(s, 6)
	require.NoError(t, p.writeStates(t.Context()))
	p.confirmSessions(e, record.Epoch, agent.SessionRecord{Epoch: record.Epoch - 1})
	require.Equal(t, Progress{Received: 6, Durable: 4}, s.Progress())
	// Its answer was lost: this replica's own record is there.
	p.confirmSessions(e, e.history().newest.Epoch, record)
	require.Equal(t, Progress{Received: 6, Durable: 6}, s.Progress())

	// It may have overlooked a session between its two, as its own record is all that it reads.
	s = connectTo(t, p, 1, hello(1, 5))
	say(s, 7)
	s = connectTo(t, p, 1, hello(1, 6))
	require.NoError(t, p.writeStates(t.Context()))
	p.confirmSessions(e, e.history().newest.Epoch, e.history().newest)
	require.NoError(t, p.follow(t.Context()))
	require.True(t, closed(s.Done()))
	require.Equal(t, EndOutdated, s.End())
}

// A session whose epoch is below the stored one, as the batcher found out, ends as
// outdated. If the reason is a newer session on another replica, it ends as a takeover.
// So the two do not take over from each other for ever.
func TestSuperseded(t *testing.T) {
	for want, open := range map[End]bool{EndOutdated: false, EndTakeover: true} {
		bubble.Test(t, func(t *testing.T) {
			c, r := startReplicasWith(t, 2, Options{FollowInterval: time.Hour})
			_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
			require.NoError(t, err)
			awaitReplicas()
			c.setCut(true, r...)
			s := connectTo(t, r[0], 1, hello(1, 1))
			receive(t, s, 1, func(q Request) { q.Tracker().AddPending(1) })
			epoch := s.Info().Epoch + int64(time.Minute)
			if open {
				saveSessions(t, r[0].store, []agent.SessionRecord{
					{Agent: nid(1), Epoch: epoch, Replica: replicaID(1), Open: true},
				})
			}
			s.instance.Supersede(epoch)
			awaitReplicas()
			require.True(t, closed(s.Done()))
			require.Equal(t, want, s.End())
			next := connectTo(t, r[0], 1, hello(1, 2))
			require.Equal(t, Progress{}, next.Resume())
			require.Greater(t, next.Info().Epoch, epoch)

			s.instance.Supersede(epoch) // of what was said before
			awaitReplicas()
			require.False(t, closed(next.Done()))
		})
	}
}

// The newest session is known from notifications only, and its replica goes before it
// wrote it. A replica that received nothing has a session below it. That one ends, as the
// others would take the agent for gone.
func TestUnwrittenSessionOfAReplicaThatIsGone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		s := connectTo(t, r[1], 1, hello(1, 1))
		awaitReplicas()
		c.setLive(replicaID(7), true)
		unwritten := agent.SessionRecord{Agent: nid(1), Epoch: s.Info().Epoch + int64(time.Minute), Replica: replicaID(7)}
		r[0].handleNotification(notification.Encode(notification.Sessions, replicaID(7), []agent.SessionRecord{unwritten}))
		awaitReplicas()
		c.setLive(replicaID(7), false)
		awaitReplicas()
		require.False(t, closed(s.Done()), "it may still be written")

		time.Sleep(unwrittenScans * scanInterval)
		awaitReplicas()
		require.True(t, closed(s.Done()))
		require.Equal(t, EndTakeover, s.End())
		s = connectTo(t, r[1], 1, hello(1, 2))
		require.Greater(t, s.Info().Epoch, unwritten.Epoch)
		awaitReplicas()
		require.False(t, closed(s.Done()))
		for _, p := range r {
			info, err := p.Agent(nid(1))
			require.NoError(t, err)
			require.True(t, info.Connected)
		}
	})
}

// The session that nobody wrote had a report: with the record above it, series that
// another replica retained from before that report go.
func TestUnwrittenSessionHadAReport(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		s := connectTo(t, r[1], 1, hello(1, 1))
		reportOn(t, s, 1)
		s.Close(EndDisconnect)
		c.setLive(replicaID(7), true)
		r[0].handleNotification(notification.Encode(notification.Sessions, replicaID(7), []agent.SessionRecord{
			{Agent: nid(1), Epoch: s.Info().Epoch + int64(time.Minute), Replica: replicaID(7), Open: true, Reported: true},
		}))
		awaitReplicas()
		require.NotContains(t, r[1].journal.take(), "series remove 1", "it had no notification")
		c.setLive(replicaID(7), false)
		time.Sleep(unwrittenScans * scanInterval)
		awaitReplicas()
		require.Contains(t, r[1].journal.take(), "series remove 1")
	})
}

// A fleet that is alone looks for nobody.
func TestSupersededAlone(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s := connect(t, p, 1)
	epoch := s.Info().Epoch + int64(time.Hour)
	s.instance.Supersede(epoch)
	require.True(t, closed(s.Done()))
	require.Equal(t, EndOutdated, s.End())
	require.Greater(t, connect(t, p, 1).Info().Epoch, epoch)
}

// The state of an ended session waits to be written, or is put back after a failed
// write. Then a stored state of a higher epoch is read. The stored one is written,
// which does not resolve the session's acks. It is not acked.
func TestStoredStateTakesThePlaceOfWhatWaits(t *testing.T) {
	for name, underWay := range map[string]bool{"waits": false, "is put back": true} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				p := loaded(t, Options{}, registration(1, 1, 1))
				s := connectTo(t, p, 1, hello(1, 1))
				receive(t, s, 1, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0) })
				s.Close(EndDisconnect)
				e, err := p.entry(nid(1))
				require.NoError(t, err)
				stored := agent.State{Agent: nid(1)}
				stored.SetLifecycle(agent.Lifecycle{State: agent.LifecycleShuttingDown}, agent.Order{Epoch: s.Info().Epoch + 1, Sequence: 1})
				var w stateWrite
				if underWay {
					w, _ = e.drainState()
				}
				p.applyState(e, &stored, time.Now())
				if underWay {
					p.requeueState(w)
				}
				require.NoError(t, p.write(t.Context()))
				s = connectTo(t, p, 1, hello(1, 2))
				require.Equal(t, Progress{}, s.Resume(), "it is said again")
				require.Greater(t, s.Info().Epoch, stored.LifecycleOrder.Epoch)
			})
		})
	}
}

// Two replicas that go beyond the same epoch, as their clocks are behind it, do not
// come to the same one.
func TestNextEpochsOfReplicas(t *testing.T) {
	last := time.Now().Add(time.Hour).UnixNano()
	seen := make(map[int64]struct{})
	for n := range 3 {
		next := agent.NextEpoch(time.Now(), last, replicaID(n), 0)
		require.Greater(t, next, last)
		require.LessOrEqual(t, next, last+int64(time.Millisecond))
		seen[next] = struct{}{}
	}
	require.Len(t, seen, 3)
}

// An agent is removed and registered again. Then its replica knows the same last epoch as
// before, which is ahead of the clock. The session has another epoch than the earlier one.
func TestEpochAfterRemoval(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		ahead := time.Now().Add(time.Minute).UnixNano()
		var epochs []int64
		for range 2 {
			_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
			require.NoError(t, err)
			s := connectTo(t, r[0], 1, Hello{Instance: instanceID(1), Ordinal: 2, Epoch: ahead})
			epochs = append(epochs, s.Info().Epoch)
			_, err = r[0].Deregister(t.Context(), ids(1), nil)
			require.NoError(t, err)
		}
		require.Greater(t, min(epochs[0], epochs[1]), ahead)
		require.NotEqual(t, epochs[0], epochs[1])
	})
}

// An instance comes back within the time in which records are written, after a session
// on another replica, whose record is stored first. It sends again what it sent here,
// and keeps its session.
func TestBackBeforeTheRecordIsWritten(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		say := func(s *Session, sequence int64) {
			receive(t, s, sequence, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0) })
		}
		first := connectTo(t, r[0], 1, hello(1, 1))
		say(first, 1)
		second := connectTo(t, r[1], 1, Hello{Instance: instanceID(1), Ordinal: 2, Epoch: first.Info().Epoch})
		require.NoError(t, r[1].writeSessions(t.Context()))
		third := connectTo(t, r[0], 1, Hello{Instance: instanceID(1), Ordinal: 3, Epoch: second.Info().Epoch})
		require.Equal(t, Progress{}, third.Resume())
		say(third, 2)
		awaitReplicas()
		require.False(t, closed(third.Done()))
		require.Equal(t, Progress{Received: 2, Durable: 2}, third.Progress())
	})
}
