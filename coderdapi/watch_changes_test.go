package coderdapi

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestWatchSendsChanges(t *testing.T) {
	one, two := agent.ID{1}, agent.ID{2}
	row := func(id agent.ID, key string, sequence int64) agent.Metadata {
		return agent.Metadata{Agent: id, Key: key, Order: agent.Order{Epoch: 5, Sequence: sequence}, CollectedAt: time.Unix(sequence, 0)}
	}
	budget := &byteBudget{limit: 1 << 20}
	w := newWatch([]agent.ID{one, two}, 1<<20, budget)
	sent := func(rows ...agent.Metadata) (keys []string) {
		require.NoError(t, w.sendChanged(w.ids, rows, func(part *agentstatsv1.WatchMetadataResponse) error {
			for _, a := range part.GetAgents() {
				for _, v := range a.GetValues() {
					keys = append(keys, string('0'+rune(a.GetAgentId()[0]))+v.GetKey())
				}
			}
			return nil
		}))
		require.Len(t, rows, w.values)
		return keys
	}
	require.Equal(t, []string{"1a", "1b", "2a"}, sent(row(one, "a", 1), row(one, "b", 1), row(two, "a", 1)))
	require.Empty(t, sent(row(one, "a", 1), row(one, "b", 1), row(two, "a", 1)), "nothing is sent twice")
	require.Equal(t, []string{"1b"}, sent(row(one, "a", 1), row(one, "b", 2), row(two, "a", 1)))
	require.Empty(t, sent(row(one, "a", 1), row(one, "b", 2)))
	require.Len(t, w.sent, 1, "nothing is kept of who has nothing stored")
	require.Equal(t, []string{"2a"}, sent(row(one, "a", 1), row(one, "b", 2), row(two, "a", 1)), "it came back")
	require.Equal(t, 2*watchedAgentBytes+3*8, budget.inUse())
	w.close()
	require.Zero(t, budget.inUse())
}

func TestDirtySet(t *testing.T) {
	one, two, three := agent.ID{1}, agent.ID{2}, agent.ID{3}
	take := func(d *dirtySet) string {
		ids, all := d.takeDirty()
		slices.SortFunc(ids, func(a, b agent.ID) int { return int(a[0]) - int(b[0]) })
		text := ""
		for _, id := range ids {
			text += string('0' + rune(id[0]))
		}
		if all {
			text += "all"
		}
		return text
	}
	d := newDirtySet([]agent.ID{one, two}, 2)
	d.markDirty([]agent.ID{{9}})
	require.Empty(t, d.wake)
	d.markDirty([]agent.ID{one, {9}})
	require.Len(t, d.wake, 1)
	require.Equal(t, "1", take(d))
	<-d.wake
	d.putBack([]agent.ID{one})
	require.Empty(t, d.wake, "what failed does not wake: it would fail again at once")
	require.Equal(t, "1", take(d))
	d.markDirty(nil)
	require.Len(t, d.wake, 1)
	d.markDirty([]agent.ID{two})
	require.Equal(t, "all", take(d))
	require.Empty(t, take(d))

	d = newDirtySet(nil, 2)
	d.markDirty([]agent.ID{one, two})
	require.Equal(t, "12", take(d))
	d.markDirty([]agent.ID{one, two, three})
	require.Equal(t, "all", take(d), "more than the limit")
	d.markDirty([]agent.ID{one, two, three})
	d.putBack([]agent.ID{one, two, three})
	require.Empty(t, d.ids)
}
