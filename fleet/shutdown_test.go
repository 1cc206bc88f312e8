package fleet

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/notification"
	"github.com/coder/agentstatsd/internal/bubble"
)

// manualSubscriber takes messages like a server behind a route that drops all packets.
type manualSubscriber struct{ membership }

func (manualSubscriber) Publish(ctx context.Context, _ string, _ []byte) error {
	<-ctx.Done()
	return ctx.Err()
}

// A pubsub that swallows delays a shutdown once, not for each message.
func TestShutdownWithoutPubsub(t *testing.T) {
	const agents = 4000
	bubble.Test(t, func(t *testing.T) {
		c := newCluster()
		c.setLive(replicaID(0), true)
		p := newPartsOn(t, Options{}, newMemStore(&journal{}), &journal{})
		p.Join(membership{c, replicaID(0)}, manualSubscriber{membership{c, replicaID(0)}})
		stop := running(t, p)
		time.Sleep(time.Second)
		var set Set
		for n := range agents {
			set.Agents = append(set.Agents, registration(n+1, n+1, 1))
			set.Agents[n].Workspace.ID = agent.ID{0: 2, 14: byte((n + 1) >> 8), 15: byte(n + 1)}
		}
		_, err := p.Register(t.Context(), set)
		require.NoError(t, err)
		for n := range agents {
			defer connectTo(t, p, n+1, hello(1, 1)).Close(EndDrain)
		}
		time.Sleep(time.Minute)
		for _, e := range p.registry.order {
			e.liveLocked().Close(EndDrain)
			time.Sleep(7500 * time.Millisecond / agents)
		}
		began := time.Now()
		stop()
		require.LessOrEqual(t, time.Since(began), 3*publishTimeout)
	})
}

// Whatever is ready when a replica stops, its notifications are sent once more, and once
// after the last write. In each round a select chooses anew.
func TestShutdownNotifiesOnce(t *testing.T) {
	for range 50 {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster()
			c.setLive(replicaID(0), true)
			busy := &busyPubSub{membership: membership{c, replicaID(0)}}
			p := newPartsOn(t, Options{FollowInterval: publishTimeout}, newMemStore(&journal{}), &journal{})
			p.Join(membership{c, replicaID(0)}, busy)
			busy.publishMore = func() { p.peers.notify(notification.States) }
			ctx, cancel := context.WithCancel(t.Context())
			busy.cancel = cancel
			p.peers.notify(notification.States)
			require.NoError(t, p.Run(ctx))
			require.LessOrEqual(t, busy.afterCancel, 2)
		})
	}
}

// busyPubSub swallows messages, queues more with each, and ends the replica
// with the first that is under way while the next look is due.
type busyPubSub struct {
	membership
	publishMore, cancel func()
	// published and afterCancel count the messages.
	published, afterCancel int
}

func (n *busyPubSub) Publish(ctx context.Context, _ string, _ []byte) error {
	n.published++
	switch {
	case n.published > 2:
		n.afterCancel++
	case n.published == 2:
		n.cancel()
	}
	n.publishMore()
	<-ctx.Done()
	return ctx.Err()
}

// What a replica has queued when it stops is sent, also if it is gathered just
// then: here the database takes nothing.
func TestLastNotificationsAreSent(t *testing.T) {
	for _, wait := range []time.Duration{0, publishDelay / 2, publishDelay - 1, publishDelay} {
		bubble.Test(t, func(t *testing.T) {
			c, r := startReplicas(t, 1)
			leaving := newPartsOn(t, Options{}, r[0].store, &journal{})
			c.setLive(replicaID(1), true)
			leaving.Join(membership{c, replicaID(1)}, membership{c, replicaID(1)})
			stop := running(t, leaving)
			_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
			require.NoError(t, err)
			awaitReplicas()
			s := connectTo(t, leaving, 1, hello(1, 1))
			awaitReplicas()
			r[0].store.fail(errDown)
			s.Close(EndDrain)
			time.Sleep(wait)
			stop()
			synctest.Wait()
			info, err := r[0].Agent(nid(1))
			require.NoError(t, err)
			require.False(t, info.Connected, "%v after the end of the session", wait)
			r[0].store.fail(nil)
		})
	}
}

// A clean exit logs nothing that looks like a fault.
func TestCleanExitLogsNoErrors(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster()
		c.setLive(replicaID(0), true)
		p := newPartsOn(t, Options{}, newMemStore(&journal{}), &journal{})
		var lines bytes.Buffer
		p.log = slog.New(slog.NewTextHandler(&lines, nil))
		p.Join(membership{c, replicaID(0)}, membership{c, replicaID(0)})
		stop := running(t, p)
		time.Sleep(10 * time.Second)
		// It stops while it looks for what others wrote.
		synctest.Wait()
		p.store.mu.Lock()
		p.store.before = func() { time.Sleep(time.Second) }
		p.store.mu.Unlock()
		p.peers.passes.Ask()
		time.Sleep(500 * time.Millisecond)
		stop()
		require.Empty(t, lines.String())
	})
}
