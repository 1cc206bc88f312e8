package fleet

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/notification"
	"github.com/coder/agentstatsd/internal/bubble"
)

// What is registered on one replica is known on the others: at once to whoever
// asks for it, and without asking soon.
func TestRegistrationsReachAllReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 3)
		c.setCut(true, r...)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		id, err := r[1].Authenticate(t.Context(), token(1))
		require.NoError(t, err, "it is looked for before it is refused")
		require.Equal(t, nid(1), id)
		_, err = r[2].Authenticate(t.Context(), token(99))
		require.ErrorIs(t, err, ErrUnknownToken)
		require.Equal(t, ids(1), registered(r[2].Fleet), "it was read meanwhile")

		_, err = r[2].Register(t.Context(), Set{Agents: []agent.Registration{registration(2, 2, 1), registration(3, 1, 2)}})
		require.NoError(t, err)
		awaitReplicas()
		for _, p := range r {
			_, err = p.Authenticate(t.Context(), token(1))
			require.ErrorIs(t, err, ErrUnknownToken)
			require.Equal(t, ids(2, 3), registered(p.Fleet), "3 superseded 1")
		}
		n, err := r[1].Deregister(t.Context(), nil, []agent.ID{nid(1001), nid(1002)})
		require.NoError(t, err)
		require.Equal(t, 2, n)
		awaitReplicas()
		for _, p := range r {
			require.Empty(t, registered(p.Fleet))
			require.Zero(t, p.registry.workspaces.Len())
		}
		require.Empty(t, r[0].store.agents())
	})
}

// Notifications make what happens on one replica known on the others long before they look
// by themselves.
func TestNotifications(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicasWith(t, 2, Options{FollowInterval: time.Hour})
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		require.Equal(t, ids(1), registered(r[1].Fleet))
		s := connectTo(t, r[0], 1, hello(1, 1))
		receive(t, s, 1, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: day}, 0) })
		awaitReplicas()
		info, err := r[1].Agent(nid(1))
		require.NoError(t, err)
		require.Equal(t, agent.StatusConnected, info.Status)
		require.Equal(t, agent.LifecycleReady, info.State.Lifecycle.State)

		// What is late says nothing new.
		e, err := r[0].entry(nid(1))
		require.NoError(t, err)
		open := e.history().newest
		s.Close(EndGoodbye)
		awaitReplicas()
		r[1].handleNotification(notification.Encode(notification.Sessions, replicaID(0), []agent.SessionRecord{open}))
		info, err = r[1].Agent(nid(1))
		require.NoError(t, err)
		require.Equal(t, agent.StatusDisconnected, info.Status)
	})
}

// A session can be read before the registration of its agent: then it is read
// again.
func TestSessionBeforeRegistration(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		store := r[0].store
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		for _, n := range []int{2, 1} { // the other write comes later
			saveSessions(t, store, []agent.SessionRecord{{Agent: nid(n), Epoch: 1 << 60, Replica: replicaID(7)}})
		}
		awaitReplicas()
		_, err = r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(2, 2, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		for _, p := range r {
			e, err := p.entry(nid(2))
			require.NoError(t, err)
			require.Equal(t, int64(1<<60), e.history().newest.Epoch)
		}
	})
}

// A token cannot be called unknown while nobody can look.
func TestUnknownTokenWhileTheDatabaseIsDown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		r[0].store.fail(errDown)
		_, err := r[1].Authenticate(t.Context(), token(1))
		require.ErrorIs(t, err, ErrUnavailable)
		_, err = r[1].Connect(t.Context(), nid(1), hello(1, 1))
		require.ErrorIs(t, err, ErrUnavailable)
		awaitReplicas()
		require.ErrorContains(t, r[1].Healthy(), "follow the other replicas: read registrations: ")
		r[0].store.fail(nil)
		awaitReplicas()
		require.NoError(t, r[1].Healthy())
		_, err = r[1].Authenticate(t.Context(), token(1))
		require.ErrorIs(t, err, ErrUnknownToken)
	})
}

// Metadata that is not written again is stored only as far as is known what other replicas
// did: up to when the last good pass began.
func TestPendingFollows(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		followed := func() time.Time {
			r[1].journal.mu.Lock()
			defer r[1].journal.mu.Unlock()
			return r[1].journal.followed
		}
		before := time.Now()
		r[0].store.fail(errDown)
		awaitReplicas()
		require.False(t, followed().IsZero())
		require.False(t, followed().After(before))
		r[0].store.fail(nil)
		mended := time.Now()
		awaitReplicas()
		require.True(t, followed().After(mended))
		require.True(t, followed().Before(time.Now()))

		began := time.Now()
		c := newCluster()
		c.setLive(replicaID(3), true)
		late := newPartsOn(t, Options{}, r[0].store, &journal{})
		late.Join(membership{c, replicaID(3)}, membership{c, replicaID(3)})
		require.NoError(t, late.Load(t.Context()))
		require.Equal(t, began, late.journal.followed, "it makes no pass yet")

		p := loaded(t, Options{}, registration(1, 1, 1))
		defer running(t, p)()
		awaitReplicas()
		require.Zero(t, p.journal.followed, "nobody else writes")
	})
}

// Strangers do not have the database asked as often as they like.
func TestStrangersWaitTogether(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		asked := 0
		r[0].store.mu.Lock()
		r[0].store.before = func() { asked++ }
		r[0].store.mu.Unlock()
		var strangers sync.WaitGroup
		began := time.Now()
		for range r[0].opts.Load().MaxLookups {
			strangers.Go(func() {
				_, err := r[0].Authenticate(t.Context(), token(99))
				require.ErrorIs(t, err, ErrUnknownToken)
			})
		}
		strangers.Wait()
		require.LessOrEqual(t, time.Since(began), 2*followPause)
		require.LessOrEqual(t, asked, 3*3, "three calls of the store for a look")
	})
}

// Two replicas that change the registrations at once both have their way.
func TestChangesOfTwoReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		const n = 20
		var changing sync.WaitGroup
		for i, p := range r {
			changing.Go(func() {
				for k := range n {
					number := 1 + 2*k + i
					_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{registration(number, number, 1)}})
					require.NoError(t, err)
					if k%4 == 0 {
						_, err = p.Deregister(t.Context(), ids(number), nil)
						require.NoError(t, err)
					}
				}
			})
		}
		changing.Wait()
		awaitReplicas()
		require.Len(t, registered(r[0].Fleet), 2*(n-n/4))
		require.Equal(t, registered(r[0].Fleet), registered(r[1].Fleet))
		require.ElementsMatch(t, r[0].store.agents(), registered(r[0].Fleet))
	})
}

// An agent that another replica deregisters is cut off.
func TestDeregisteredElsewhere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		_, err := r[1].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		s := connectTo(t, r[0], 1, hello(1, 1))
		r[0].journal.take()
		_, err = r[1].Deregister(t.Context(), ids(1), nil)
		require.NoError(t, err)
		<-s.Done()
		synctest.Wait()
		require.Equal(t, EndDeregistered, s.End())
		require.Equal(t, []string{"series remove 1", "pending remove 1"}, r[0].journal.take())
		require.ErrorIs(t, s.Receive(time.Now(), 1, nil), ErrSessionOver)
	})
}

// An agent that moves counts once: its old session ends when it connects, its old
// series go when the new replica has a report.
func TestAgentMoves(t *testing.T) {
	for name, cut := range map[string]bool{"by notifications": false, "by the database": true} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c, r := startReplicas(t, 3)
				_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
				require.NoError(t, err)
				awaitReplicas()
				require.Equal(t, "connecting", statusOf(t, "ws1", r...))
				old := connectTo(t, r[1], 1, hello(1, 1))
				reportOn(t, old, 1)
				awaitReplicas()
				require.Equal(t, "connected", statusOf(t, "ws1", r...))
				require.Equal(t, 1.0, connectedIn(t, "ws1", r...))
				r[1].journal.take()

				c.setCut(cut, r...)
				s := connectTo(t, r[2], 1, hello(1, 2))
				require.Greater(t, s.Info().Epoch, old.Info().Epoch)
				require.False(t, old.Info().Unknown)
				require.True(t, s.Info().Unknown)
				<-old.Done()
				require.Equal(t, EndTakeover, old.End())
				awaitReplicas()
				require.Equal(t, []string{"close 1 goodbye=false"}, r[1].journal.take(), "the new replica has no report yet")
				require.Equal(t, "connected", statusOf(t, "ws1", r...))
				for _, p := range r {
					info, err := p.Agent(nid(1))
					require.NoError(t, err)
					require.True(t, info.Connected)
				}
				reportOn(t, s, 2)
				awaitReplicas()
				require.Equal(t, []string{"series remove 1"}, r[1].journal.take())

				// Back again: what it counted meanwhile was counted elsewhere.
				back := connectTo(t, r[1], 1, hello(1, 3))
				require.True(t, back.Info().Moved)
				require.False(t, back.Info().First)
				require.Equal(t, []string{"open 1 ws1 first=false"}, r[1].journal.take())
				awaitReplicas()
				back.Close(EndGoodbye)
				awaitReplicas()
				require.Equal(t, "disconnected", statusOf(t, "ws1", r...), "one of them serves it")
				require.Equal(t, 0.0, connectedIn(t, "ws1", r...))
			})
		})
	}
}

// An agent moves while neither notifications nor writes get through. When notifications
// do again, the sessions that are not written are sent, whichever replica missed
// something.
func TestAgentMovesUnseen(t *testing.T) {
	type outage struct {
		missing int // the replica that misses notifications
		hangs   bool
	}
	for name, o := range map[string]outage{
		"the old one misses notifications, writes fail":   {0, false},
		"the old one misses notifications, a write hangs": {0, true},
		"the new one cannot publish, writes fail":         {1, false},
		"the new one cannot publish, a write hangs":       {1, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c, r := startReplicas(t, 2)
				_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
				require.NoError(t, err)
				awaitReplicas()
				old := connectTo(t, r[0], 1, hello(1, 1))
				reportOn(t, old, 1)
				awaitReplicas()
				r[0].journal.take()

				c.setCut(true, r[o.missing])
				if o.hangs {
					hanging := make(chan struct{})
					defer close(hanging)
					r[0].store.hang(hanging)
				} else {
					r[0].store.fail(errDown)
				}
				reportOn(t, connectTo(t, r[1], 1, hello(1, 2)), 2)
				awaitReplicas()
				require.False(t, closed(old.Done()), "nobody could notify it")
				c.setCut(false, r[o.missing])
				awaitReplicas()
				require.True(t, closed(old.Done()))
				require.Equal(t, EndTakeover, old.End())
				require.Equal(t, []string{"close 1 goodbye=false", "series remove 1"}, r[0].journal.take())
				require.Equal(t, "connected", statusOf(t, "ws1", r...))
			})
		})
	}
}

// The epoch that an agent sends makes up for clocks that differ and for notifications
// that are late. An epoch that no clock can have is ignored.
func TestEpochThatTheAgentSends(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	ahead := time.Now().Add(10 * time.Minute).UnixNano()
	s := connectTo(t, p, 1, Hello{Instance: instanceID(1), Ordinal: 2, Epoch: ahead})
	require.Equal(t, ahead+1, s.Info().Epoch)
	s = connectTo(t, p, 1, Hello{Instance: instanceID(1), Ordinal: 3, Epoch: time.Now().Add(2 * time.Hour).UnixNano()})
	require.Equal(t, ahead+2, s.Info().Epoch)
}

// A replica with a session learns that another had one with a higher epoch: the
// agent is asked back, and then has the highest.
func TestClockBehind(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		s := connectTo(t, r[0], 1, hello(1, 1))
		ahead := s.Info().Epoch + int64(time.Minute)
		r[0].handleNotification(notification.Encode(notification.Sessions, replicaID(7), []agent.SessionRecord{{Agent: nid(1), Epoch: ahead, Reported: true}}))
		<-s.Done()
		require.Equal(t, EndTakeover, s.End())
		s = connectTo(t, r[0], 1, hello(2, 1))
		require.Greater(t, s.Info().Epoch, ahead)
		require.LessOrEqual(t, s.Info().Epoch, ahead+int64(agent.MaxEpochStep))
	})
}

// The agents of a replica that dies are the others' to serve, until they are back
// somewhere.
func TestReplicaDies(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 3)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1), registration(2, 2, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		for n := 1; n <= 2; n++ {
			reportOn(t, connectTo(t, r[2], n, hello(byte(n), 1)), 1)
		}
		awaitReplicas()
		alive := r[:2]
		c.setLive(replicaID(2), false)
		awaitReplicas()
		require.Empty(t, served(t, r[2]), "one that the others take for gone serves nothing of theirs")
		require.Equal(t, "disconnected", statusOf(t, "ws1", alive...))
		reportOn(t, connectTo(t, r[1], 1, hello(1, 2)), 2)
		awaitReplicas()
		require.Equal(t, "connected", statusOf(t, "ws1", alive...))
		require.Equal(t, "disconnected", statusOf(t, "ws2", alive...))

		c.setServing(replicaID(0), false) // it leaves
		awaitReplicas()
		require.Empty(t, served(t, r[0]))
		require.Equal(t, "disconnected", statusOf(t, "ws2", alive...))

		// It was only cut off: the agent that stayed is its own again.
		c.setLive(replicaID(2), true)
		awaitReplicas()
		require.Equal(t, "connected", statusOf(t, "ws2", r...))
		require.Equal(t, "connected", statusOf(t, "ws1", r...))
	})
}

// A replica that is out of touch keeps no series for agents that left it: they
// may be elsewhere.
func TestOutOfTouchKeepsNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1), registration(2, 2, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		left := connectTo(t, r[1], 1, hello(1, 1))
		stays := connectTo(t, r[1], 2, hello(2, 1))
		left.Close(EndDisconnect)
		r[1].journal.take()
		c.setLive(replicaID(1), false)
		awaitReplicas()
		require.Equal(t, []string{"series remove 1"}, r[1].journal.take())
		stays.Close(EndDisconnect)
		require.Equal(t, []string{"close 2 goodbye=true"}, r[1].journal.take())
	})
}

// States that agents report to one replica are known on all, and a build whose agents
// are on different replicas is observed once.
func TestStatesReachAllReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 3)
		second := registration(2, 1, 1)
		second.Name = "second"
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1), second}})
		require.NoError(t, err)
		awaitReplicas()
		var mu sync.Mutex
		stored := map[agent.ID]bool{}
		defer r[0].Watch(func(ids []agent.ID) {
			mu.Lock()
			defer mu.Unlock()
			for _, id := range ids {
				stored[id] = true
			}
		})()
		ready := agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: day.Add(2 * time.Hour)}
		for n := 1; n <= 2; n++ {
			s := connectTo(t, r[n], n, hello(byte(n), 1))
			receive(t, s, 1, func(q Request) { q.SetLifecycle(ready, 0) })
			receive(t, s, 2, func(q Request) {
				q.SetAppHealth(map[agent.ID]agent.AppHealth{nid(5000 + n): agent.AppHealthHealthy}, nil)
			})
		}
		awaitReplicas()
		for _, p := range r {
			for n := 1; n <= 2; n++ {
				info, err := p.Agent(nid(n))
				require.NoError(t, err)
				require.Equal(t, ready, info.State.Lifecycle)
				require.Equal(t, agent.AppHealthHealthy, info.State.AppHealth[nid(5000+n)])
				require.Equal(t, agent.StatusConnected, info.Status)
			}
		}
		require.Equal(t, map[agent.ID]bool{nid(1): true, nid(2): true}, stored)
		var builds []string
		for _, p := range r {
			builds = append(builds, observed(t, p)...)
		}
		require.Equal(t, []string{"false  success docker start: 1 3600"}, builds)
	})
}

// All replicas know whether an agent is relayed, and notify when that changes.
func TestRelayedReachesAllReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		changes := make(chan struct{}, 1000)
		defer r[1].Watch(func([]agent.ID) { changes <- struct{}{} })()
		relayedOn := func(on int, want bool) {
			t.Helper()
			for len(changes) > 0 {
				<-changes
			}
			connectTo(t, r[on], 1, Hello{Instance: instanceID(byte(len(r) + on)), Ordinal: 1, Relayed: want})
			awaitReplicas()
			for _, p := range r {
				info, err := p.Agent(nid(1))
				require.NoError(t, err)
				require.True(t, info.Connected)
				require.Equal(t, want, info.Relayed)
			}
			require.NotEmpty(t, changes)
		}
		relayedOn(0, true)
		relayedOn(0, false)
		relayedOn(1, true)
		late := startReplica(t, c, r[0].store, 2, Options{})
		awaitReplicas()
		info, err := late.Agent(nid(1))
		require.NoError(t, err)
		require.True(t, info.Relayed, "by the database")
		relayedOn(1, false)
	})
}

// Notifications that are lost, late, twice or malformed change nothing in the end.
func TestNotificationsAreParsed(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	c := newCluster()
	at := membership{c, replicaID(1)}
	p.Join(at, at)
	e, err := p.entry(nid(1))
	require.NoError(t, err)
	e.historyLocked().newest = agent.SessionRecord{Agent: nid(1), Epoch: 1 << 60, Replica: replicaID(1), Open: true, Reported: true}
	p.peers.outbox.AddSessions(e)
	for range 2 {
		p.peers.notify(notification.Registrations)
		p.peers.notify(notification.States)
		p.peers.notify(notification.Request)
	}
	payloads := p.peers.drainMessages()
	require.Len(t, payloads, 4)
	require.Empty(t, p.peers.drainMessages(), "they are sent once")
	for i, kind := range []notification.Kind{notification.Registrations, notification.States, notification.Request, notification.Sessions} {
		got, from, records, err := notification.Decode(payloads[i])
		require.NoError(t, err)
		require.Equal(t, kind, got)
		require.Equal(t, replicaID(1), from)
		if kind == notification.Sessions {
			want := e.history().newest
			want.Incarnation = e.reg.Load().Incarnation
			require.NotZero(t, want.Incarnation)
			require.Equal(t, []agent.SessionRecord{want}, records)
		}
	}
	for _, bad := range []string{"x", "s", "s" + strings.Repeat("!", 22), string(payloads[3][:40]), string(payloads[3]) + "AAAA"} {
		_, _, _, err := notification.Decode([]byte(bad))
		require.Error(t, err, bad)
		require.NotPanics(t, func() { p.handleNotification([]byte(bad)) })
	}
	require.Equal(t, 5.0, testutil.ToFloat64(p.metrics.notificationsMalformed))

	// As many as fit.
	for n := range notification.MaxRecords + 1 {
		other := newEntry(nid(n), &kept.Registration{})
		other.historyLocked().newest = agent.SessionRecord{Agent: nid(n), Replica: replicaID(1)}
		p.peers.outbox.AddSessions(other)
	}
	payloads = p.peers.drainMessages()
	require.Len(t, payloads, 2)
	require.LessOrEqual(t, len(payloads[0]), 7977)
	require.Greater(t, len(payloads[0]), 7900)
}

// A fleet that is alone writes no more of its sessions than it needs.
func TestAloneWritesNoEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{}, registration(1, 1, 1))
		defer running(t, p)()
		s := connect(t, p, 1)
		reportOn(t, s, 1)
		awaitReplicas()
		require.Equal(t, s.Info().Epoch, p.store.epoch(nid(1)))
		moved := p.store.moved
		s.Close(EndDisconnect)
		awaitReplicas()
		require.Equal(t, moved, p.store.moved)
	})
}

// A replica is killed before it wrote the session that an agent moved to. Replicas that
// start later must not read that the agent is connected where it was before.
func TestSessionThatIsNeverWritten(t *testing.T) {
	for name, noticed := range map[string]bool{"open here": false, "closed here": true} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c, r := startReplicas(t, 1)
				_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
				require.NoError(t, err)
				s := connectTo(t, r[0], 1, hello(1, 1))
				awaitReplicas()
				if noticed {
					s.Close(EndDisconnect)
				}
				require.True(t, r[0].applySessions([]agent.SessionRecord{
					{Agent: nid(1), Epoch: s.Info().Epoch + 1, Replica: replicaID(2), Open: true},
				}, 1<<60))
				awaitReplicas()
				later := startReplica(t, c, r[0].store, 1, Options{})
				awaitReplicas()
				for _, p := range []parts{r[0], later} {
					info, err := p.Agent(nid(1))
					require.NoError(t, err)
					require.False(t, info.Connected)
				}
				require.Equal(t, "disconnected", statusOf(t, "ws1", r[0], later))
			})
		})
	}
}
