package agentapi

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func TestWatchNews(t *testing.T) {
	one, two := agent.ID{1}, agent.ID{2}
	row := func(id agent.ID, key string, sequence int64) agent.Metadata {
		return agent.Metadata{Agent: id, Key: key, Order: agent.Order{Epoch: 5, Sequence: sequence}, CollectedAt: time.Unix(sequence, 0)}
	}
	w := newWatch([]agent.ID{one, two})
	told := func(rows ...agent.Metadata) (keys []string) {
		for _, part := range w.news(w.ids, rows) {
			for _, a := range part.GetAgents() {
				for _, v := range a.GetValues() {
					keys = append(keys, string('0'+rune(a.GetAgentId()[0]))+v.GetKey())
				}
			}
		}
		return keys
	}
	require.Equal(t, []string{"1a", "1b", "2a"}, told(row(one, "a", 1), row(one, "b", 1), row(two, "a", 1)))
	require.Empty(t, told(row(one, "a", 1), row(one, "b", 1), row(two, "a", 1)), "nothing is told twice")
	require.Equal(t, []string{"1b"}, told(row(one, "a", 1), row(one, "b", 2), row(two, "a", 1)))
	require.Empty(t, told(row(one, "a", 1), row(one, "b", 2)))
	require.Len(t, w.sent, 1, "nothing is kept of who has nothing stored")
	require.Equal(t, []string{"2a"}, told(row(one, "a", 1), row(one, "b", 2), row(two, "a", 1)), "it came back")

	w.changed([]agent.ID{{9}})
	require.Empty(t, w.wake)
	w.changed([]agent.ID{one, {9}})
	require.Len(t, w.wake, 1)
	require.Equal(t, []agent.ID{one}, w.take())
	<-w.wake
	w.putBack([]agent.ID{one})
	require.Empty(t, w.wake, "what failed does not wake: it would fail again at once")
	require.Equal(t, []agent.ID{one}, w.take())
	w.changed(nil)
	require.Len(t, w.take(), 2)
}
