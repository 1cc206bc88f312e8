package agent_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func TestLifecycleClaimReplaces(t *testing.T) {
	at := func(second int64) time.Time { return time.Unix(second, 0) }
	known := agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: at(20)}
	order := agent.Order{Epoch: 5, Sequence: 3}
	above, below := agent.Order{Epoch: 6, Sequence: 1}, agent.Order{Epoch: 5, Sequence: 2}
	older := agent.Lifecycle{State: agent.LifecycleStarting, ChangedAt: at(10)}
	for _, c := range []struct {
		name  string
		claim agent.LifecycleClaim
		known agent.Order
		want  bool
	}{
		{"later in its session", agent.LifecycleClaim{Lifecycle: older, Order: above}, order, true},
		{"of a lower order", agent.LifecycleClaim{Lifecycle: agent.Lifecycle{State: agent.LifecycleOff, ChangedAt: at(30)}, Order: below}, order, false},
		{"of the same order", agent.LifecycleClaim{Lifecycle: older, Order: order}, order, false},
		{"nothing is known", agent.LifecycleClaim{Lifecycle: older, Order: above, First: true}, agent.Order{}, true},
		{"of a new process whose clock is behind", agent.LifecycleClaim{Lifecycle: older, Order: above, First: true, Own: true}, order, true},
		{"of who said the newest", agent.LifecycleClaim{Lifecycle: older, Order: above, First: true, Same: true}, order, true},
		{"late, and reached before", agent.LifecycleClaim{Lifecycle: older, Order: above, First: true}, order, false},
		{"late, and reached after", agent.LifecycleClaim{Lifecycle: agent.Lifecycle{State: agent.LifecycleStarting, ChangedAt: at(21)}, Order: above, First: true}, order, true},
		{"late, and the same", agent.LifecycleClaim{Lifecycle: known, Order: above, First: true}, order, false},
		{"late, an earlier state of that moment", agent.LifecycleClaim{Lifecycle: agent.Lifecycle{State: agent.LifecycleStarting, ChangedAt: at(20)}, Order: above, First: true}, order, false},
		{"late, a later state of that moment", agent.LifecycleClaim{Lifecycle: agent.Lifecycle{State: agent.LifecycleShuttingDown, ChangedAt: at(20)}, Order: above, First: true}, order, true},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, c.claim.Replaces(known, c.known)) })
	}
}

// What a relay could not say before replaces what was said earlier, and what it said
// itself.
func TestOrderReplaces(t *testing.T) {
	known := agent.Order{Epoch: 50, Sequence: 3, Said: 70}
	for _, c := range []struct {
		name  string
		order agent.Order
		known agent.Order
		want  bool
	}{
		{"nothing is known", agent.Order{Epoch: 80, Sequence: 1, Said: 10}, agent.Order{}, true},
		{"said later", agent.Order{Epoch: 80, Sequence: 1, Said: 71}, known, true},
		{"said earlier", agent.Order{Epoch: 80, Sequence: 1, Said: 69}, known, false},
		{"said earlier, to the relay that said what is known", agent.Order{Epoch: 80, Sequence: 1, Said: 69, Previous: 50}, known, true},
		{"said later, in an earlier session", agent.Order{Epoch: 49, Sequence: 1, Said: 71}, known, false},
		{"said during a session without a time", agent.Order{Epoch: 80, Sequence: 1, Said: 51}, agent.Order{Epoch: 50, Sequence: 3}, true},
		{"said before a session without a time", agent.Order{Epoch: 80, Sequence: 1, Said: 49}, agent.Order{Epoch: 50, Sequence: 3}, false},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, c.order.Replaces(c.known)) })
	}
}

// What a lifecycle that came too late says of the startup is kept, unless it is of an
// earlier start.
func TestLateStartup(t *testing.T) {
	at := func(second int64) time.Time { return time.Unix(second, 0) }
	order := func(epoch int64) agent.Order { return agent.Order{Epoch: epoch, Sequence: 5} }
	var s agent.State
	s.SetLifecycle(agent.Lifecycle{State: agent.LifecycleStarting, ChangedAt: at(10)}, order(1))
	s.SetLifecycle(agent.Lifecycle{State: agent.LifecycleShuttingDown, ChangedAt: at(30)}, order(2))
	require.False(t, s.SetLateStartup(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: at(9)}, order(3)), "of an earlier start")
	require.True(t, s.SetLateStartup(agent.Lifecycle{State: agent.LifecycleStartTimeout, ChangedAt: at(15)}, order(3)))
	require.True(t, s.SetLateStartup(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: at(20)}, order(4)))
	require.False(t, s.SetLateStartup(agent.Lifecycle{State: agent.LifecycleStartError, ChangedAt: at(19)}, order(5)))
	require.Equal(t, agent.Startup{StartedAt: at(10), ReadyAt: at(20), Result: agent.LifecycleReady}, s.Startup)
	require.Equal(t, agent.LifecycleShuttingDown, s.CurrentLifecycle())

	var read agent.State
	s = agent.State{}
	s.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: at(20)}, order(2))
	require.False(t, s.SetLateStartup(agent.Lifecycle{State: agent.LifecycleStarting, ChangedAt: at(10)}, order(3)))
	want := agent.Startup{StartedAt: at(10), ReadyAt: at(20), Result: agent.LifecycleReady}
	require.Equal(t, want, s.Startup)
	require.True(t, s.StartEnded())
	read.Merge(&s)
	require.Equal(t, want, read.Startup)
}
