package fleet

import (
	"fmt"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// TestTrackerModel compares the tracker with a list of all holds.
func TestTrackerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		session, notify := &Session{}, make(chan struct{}, 1)
		session.Watch(waker(notify))
		tr := newTracker(instance(1), prometheus.NewCounter(prometheus.CounterOpts{}))
		tr.attach(session)
		var holds []int64
		var received, durable int64
		model := func() Progress {
			p := Progress{received, received}
			if len(holds) > 0 {
				p.Durable = min(received, slices.Min(holds)-1)
			}
			return p
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				p := tr.progress()
				require.Equal(t, model(), p)
				require.LessOrEqual(t, p.Durable, p.Received)
				require.GreaterOrEqual(t, p.Durable, durable, "durable never falls")
				durable = p.Durable
				distinct := slices.Clone(holds)
				slices.Sort(distinct)
				require.Len(t, tr.held, len(slices.Compact(distinct)), "what is settled takes no memory")
			},
			"receive": func(t *rapid.T) {
				seq := received + rapid.Int64Range(1, 5).Draw(t, "gap")
				require.True(t, tr.fresh(seq))
				for range rapid.IntRange(0, 3).Draw(t, "holds") {
					tr.Hold(seq)
					holds = append(holds, seq)
				}
				// A flush may settle before the request is received wholly.
				if len(holds) > 0 && rapid.Bool().Draw(t, "settled at once") {
					tr.Settle([]agent.Settled{{Sequence: holds[len(holds)-1]}})
					holds = holds[:len(holds)-1]
				}
				require.LessOrEqual(t, tr.progress().Durable, received)
				tr.receive(seq)
				require.False(t, tr.fresh(seq))
				received = seq
			},
			"settle": func(t *rapid.T) {
				var settled []agent.Settled
				before := model()
				for range rapid.IntRange(0, 4).Draw(t, "n") {
					if len(holds) == 0 {
						break
					}
					i := rapid.IntRange(0, len(holds)-1).Draw(t, "which")
					settled = append(settled, agent.Settled{Sequence: holds[i]})
					holds = slices.Delete(holds, i, i+1)
				}
				select {
				case <-notify:
				default:
				}
				tr.Settle(settled)
				require.Equal(t, model() != before, len(notify) == 1, "woken when durable moved, and only then")
			},
			"settle what is not held": func(t *rapid.T) {
				tr.Settle([]agent.Settled{{Sequence: received + 100}})
			},
		})
	})
}

func TestTrackerLateRefusals(t *testing.T) {
	dropped := prometheus.NewCounter(prometheus.CounterOpts{})
	tr := newTracker(instance(1), dropped)
	for seq := range int64(maxLateRefusals + 3) {
		tr.Hold(seq + 1)
		tr.Settle([]agent.Settled{{Sequence: seq + 1, Refusal: &agent.Refusal{Reason: "store", Names: []string{fmt.Sprint(seq)}}}})
	}
	late := tr.takeLate()
	require.Len(t, late, maxLateRefusals)
	require.Equal(t, LateRefusal{1, agent.Refusal{Reason: "store", Names: []string{"0"}}}, late[0])
	require.Equal(t, 3.0, testutil.ToFloat64(dropped))
	require.Empty(t, tr.takeLate())
	require.Empty(t, tr.held)

	var wakes [2]chan struct{}
	var sessions [2]Session
	for i := range sessions {
		wakes[i] = make(chan struct{}, 1)
		sessions[i].Watch(waker(wakes[i]))
		tr.attach(&sessions[i])
	}
	tr.detach(&sessions[0])
	tr.Hold(1000)
	tr.Settle([]agent.Settled{{Sequence: 1000, Refusal: &agent.Refusal{}}})
	require.Len(t, wakes[1], 1, "an older session does not detach a newer one")
	require.Empty(t, wakes[0])
}

func BenchmarkReceive(b *testing.B) {
	p := benchFleet(b)
	s, err := p.Connect(b.Context(), nid(1), Hello{Instance: instance(1), Ordinal: 1})
	require.NoError(b, err)
	b.ReportAllocs()
	seq := int64(0)
	for b.Loop() {
		seq++
		if err := s.Receive(seq, func(Request) {}); err != nil {
			b.Fatal(err)
		}
	}
}
