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

// trackerOf returns that of an agent of its own.
func trackerOf() *tracker {
	f := &Fleet{opts: Options{}.withDefaults(), metrics: newMetrics(prometheus.NewRegistry())}
	return newTracker(f, &entry{}, instanceID(1))
}

// TestTrackerModel compares the tracker with a list of all holds.
func TestTrackerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		session, notify := &Session{}, make(chan struct{}, 1)
		session.Watch(waker(notify))
		tr := trackerOf()
		tr.attach(session, 0)
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
				require.Len(t, tr.pending, len(slices.Compact(distinct)), "what is settled takes no memory")
			},
			"receive": func(t *rapid.T) {
				seq := received + rapid.Int64Range(1, 5).Draw(t, "gap")
				require.True(t, tr.isNew(seq))
				for range rapid.IntRange(0, 3).Draw(t, "holds") {
					tr.AddPending(seq)
					holds = append(holds, seq)
				}
				// A flush may settle before the request is received wholly.
				if len(holds) > 0 && rapid.Bool().Draw(t, "settled at once") {
					tr.Resolve([]agent.Resolution{{Sequence: holds[len(holds)-1]}})
					holds = holds[:len(holds)-1]
				}
				require.LessOrEqual(t, tr.progress().Durable, received)
				tr.markReceived(seq)
				require.False(t, tr.isNew(seq))
				received = seq
			},
			"settle": func(t *rapid.T) {
				var settled []agent.Resolution
				before := model()
				for range rapid.IntRange(0, 4).Draw(t, "n") {
					if len(holds) == 0 {
						break
					}
					i := rapid.IntRange(0, len(holds)-1).Draw(t, "which")
					settled = append(settled, agent.Resolution{Sequence: holds[i]})
					holds = slices.Delete(holds, i, i+1)
				}
				select {
				case <-notify:
				default:
				}
				tr.Resolve(settled)
				require.Equal(t, model() != before, len(notify) == 1, "woken when durable moved, and only then")
			},
			"settle what is not held": func(t *rapid.T) {
				tr.Resolve([]agent.Resolution{{Sequence: received + 100}})
			},
		})
	})
}

// What is refused is told before an ack covers it, however much it is.
func TestTrackerRefusals(t *testing.T) {
	tr := trackerOf()
	var s Session
	require.Equal(t, Progress{}, tr.attach(&s, 0))
	const over = 3
	for seq := range int64(maxUnsent + over) {
		tr.AddPending(seq + 1)
		tr.markReceived(seq + 1)
		tr.Resolve([]agent.Resolution{{Sequence: seq + 1, Refusal: &agent.Refusal{Reason: "store", Names: []string{fmt.Sprint(seq)}, Count: 1}}})
	}
	require.Empty(t, tr.pending)
	require.Equal(t, Progress{maxUnsent + over, 0}, tr.progress(), "nothing is told")
	progress, refusals, tells := tr.nextAck(&s)
	require.True(t, tells)
	require.Equal(t, Progress{maxUnsent + over, maxUnsent + over}, progress)
	require.Len(t, refusals, maxUnsent+1)
	require.Equal(t, Refusal{0, 1, agent.Refusal{Reason: "store", Names: []string{"0"}, Count: 1}}, refusals[0])
	require.Equal(t, Refusal{maxUnsent + 1, maxUnsent + over, summaryOf(over)}, refusals[maxUnsent])
	require.Equal(t, float64(over), testutil.ToFloat64(tr.fleet.metrics.summarized))
	_, refusals, _ = tr.nextAck(&s)
	require.Empty(t, refusals)
}

// What the database refuses of one request is one refusal.
func TestTrackerJoinsRefusals(t *testing.T) {
	tr := trackerOf()
	var s Session
	tr.attach(&s, 0)
	const keys = agent.MaxRefusalNames + 4
	var settled []agent.Resolution
	for n := range keys {
		tr.AddPending(7)
		settled = append(settled, agent.Resolution{Sequence: 7, Refusal: &agent.Refusal{Reason: "rejected", Names: []string{fmt.Sprint(n)}, Count: 1}})
	}
	tr.addRefusals(7, []agent.Refusal{{Reason: "key_length", Names: []string{"x"}, Count: 1}})
	tr.markReceived(7)
	tr.Resolve(settled)
	_, refusals, _ := tr.nextAck(&s)
	require.Len(t, refusals, 2)
	require.Equal(t, "key_length", refusals[0].Reason)
	require.Len(t, refusals[1].Names, agent.MaxRefusalNames)
	require.Equal(t, keys, refusals[1].Count)
}

// A refusal that was sent may not have arrived: the next session tells it again
// unless the instance knows an ack that covers it.
func TestTrackerTellsAgain(t *testing.T) {
	refuse := func(tr *tracker, seq int64) {
		tr.addRefusals(seq, []agent.Refusal{{Reason: "invalid_key", Names: []string{"k"}, Count: 1}})
		tr.markReceived(seq)
	}
	for _, c := range []struct {
		name      string
		confirmed int64
		resume    Progress
		again     []Refusal
	}{
		{"none known", 0, Progress{9, 3}, []Refusal{{4, 6, summaryOf(2)}}},
		{"some known", 5, Progress{9, 5}, []Refusal{{6, 6, summaryOf(2)}}},
		{"all known", 6, Progress{9, 9}, nil},
		{"beyond all", 100, Progress{9, 9}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := trackerOf()
			var first, second Session
			tr.attach(&first, 0)
			tr.markReceived(3)
			refuse(tr, 4)
			refuse(tr, 6)
			progress, refusals, _ := tr.nextAck(&first)
			require.Equal(t, Progress{6, 6}, progress)
			require.Len(t, refusals, 2)
			tr.markReceived(9)
			require.Equal(t, c.resume, tr.attach(&second, c.confirmed))
			_, _, tells := tr.nextAck(&first)
			require.False(t, tells, "it is the second one's to tell")
			progress, refusals, tells = tr.nextAck(&second)
			require.True(t, tells)
			require.Equal(t, c.again, refusals)
			require.Equal(t, Progress{9, 9}, progress)
		})
	}
}

// What is refused between two sessions is above what the next one resumes from.
func TestTrackerRefusesBetweenSessions(t *testing.T) {
	tr := trackerOf()
	var first, second Session
	tr.attach(&first, 0)
	tr.AddPending(1)
	tr.markReceived(1)
	tr.detach(&first)
	tr.Resolve([]agent.Resolution{{Sequence: 1, Refusal: &agent.Refusal{Reason: "rejected", Count: 1}}})
	require.Equal(t, Progress{1, 0}, tr.attach(&second, 0))
	progress, refusals, _ := tr.nextAck(&second)
	require.Len(t, refusals, 1)
	require.Equal(t, Progress{1, 1}, progress)
}

func TestTrackerWakesTheNewestSession(t *testing.T) {
	tr := trackerOf()
	var wakes [2]chan struct{}
	var sessions [2]Session
	for i := range sessions {
		wakes[i] = make(chan struct{}, 1)
		sessions[i].Watch(waker(wakes[i]))
		tr.attach(&sessions[i], 0)
	}
	tr.detach(&sessions[0])
	tr.AddPending(1000)
	tr.Resolve([]agent.Resolution{{Sequence: 1000, Refusal: &agent.Refusal{}}})
	require.Len(t, wakes[1], 1, "an older session does not detach a newer one")
	require.Empty(t, wakes[0])
}

func BenchmarkReceive(b *testing.B) {
	p := benchFleet(b)
	s, err := p.Connect(b.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
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
