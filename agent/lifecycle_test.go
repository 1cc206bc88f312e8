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
