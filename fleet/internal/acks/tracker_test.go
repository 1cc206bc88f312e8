package acks

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

func newTracker() *Tracker {
	return New(prometheus.NewCounter(prometheus.CounterOpts{Name: "summarized"}))
}

// TestTrackerModel compares the tracker with lists of all pending parts and unwritten
// reports.
func TestTrackerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stream, wakes := &Stream{}, make(chan struct{}, 1)
		stream.Watch(waker(wakes))
		tr := newTracker()
		tr.Attach(stream, 0)
		var pending, unwritten []int64
		var received, acked, durable int64
		var held bool
		var resolvedHeld []int64
		model := func() Progress {
			p := Progress{Received: received}
			if len(unwritten) > 0 {
				p.Received = min(received, slices.Min(unwritten)-1)
			}
			p.Durable = p.Received
			if waits := slices.Concat(pending, resolvedHeld); len(waits) > 0 {
				p.Durable = min(p.Durable, slices.Min(waits)-1)
			}
			return p
		}
		resolvedNow := func(seq int64) {
			if held && !slices.Contains(pending, seq) {
				resolvedHeld = append(resolvedHeld, seq)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				p := tr.Progress()
				require.Equal(t, model(), p)
				require.LessOrEqual(t, p.Durable, p.Received)
				require.GreaterOrEqual(t, p.Durable, durable, "durable never falls")
				require.GreaterOrEqual(t, p.Received, acked, "received never falls")
				acked, durable = p.Received, p.Durable
				distinct := slices.Clone(pending)
				slices.Sort(distinct)
				require.Len(t, tr.pending, len(slices.Compact(distinct)), "what is resolved takes no memory")
			},
			"receive": func(t *rapid.T) {
				seq := received + rapid.Int64Range(1, 5).Draw(t, "gap")
				require.True(t, tr.IsNew(seq))
				for range rapid.IntRange(0, 3).Draw(t, "pending") {
					tr.AddPending(seq)
					pending = append(pending, seq)
				}
				if rapid.Bool().Draw(t, "has counts") {
					tr.AddUnwritten(seq)
					if rapid.Bool().Draw(t, "written at once") {
						tr.ReportWritten(seq)
					} else {
						unwritten = append(unwritten, seq)
					}
				}
				// A flush may resolve before the request is received wholly.
				if len(pending) > 0 && rapid.Bool().Draw(t, "resolved at once") {
					last := pending[len(pending)-1]
					tr.Resolve([]agent.Resolution{{Sequence: last}})
					pending = pending[:len(pending)-1]
					resolvedNow(last)
				}
				require.LessOrEqual(t, tr.Progress().Durable, received)
				tr.MarkReceived(seq)
				require.False(t, tr.IsNew(seq))
				received = seq
			},
			"resolve": func(t *rapid.T) {
				var resolved []agent.Resolution
				before := model()
				for range rapid.IntRange(0, 4).Draw(t, "n") {
					if len(pending) == 0 {
						break
					}
					i := rapid.IntRange(0, len(pending)-1).Draw(t, "which")
					seq := pending[i]
					resolved = append(resolved, agent.Resolution{Sequence: seq})
					pending = slices.Delete(pending, i, i+1)
					resolvedNow(seq)
				}
				select {
				case <-wakes:
				default:
				}
				tr.Resolve(resolved)
				require.Equal(t, model() != before, len(wakes) == 1, "woken when durable moved, and only then")
			},
			"write": func(t *rapid.T) {
				if len(unwritten) == 0 {
					return
				}
				select {
				case <-wakes:
				default:
				}
				before := model()
				i := rapid.IntRange(0, len(unwritten)-1).Draw(t, "which report")
				seq := unwritten[i]
				unwritten = slices.Delete(unwritten, i, i+1)
				tr.ReportWritten(seq)
				require.Equal(t, model() != before, len(wakes) == 1, "woken when received moved, and only then")
				tr.ReportWritten(seq) // again
				if len(unwritten) == 0 {
					require.LessOrEqual(t, cap(tr.unwritten), maxIdleUnwritten, "what is written takes no memory")
				}
			},
			"hold": func(*rapid.T) {
				held = true
				tr.Hold()
			},
			"release": func(t *rapid.T) {
				select {
				case <-wakes:
				default:
				}
				before := model()
				held, resolvedHeld = false, nil
				tr.Release()
				require.Equal(t, model() != before, len(wakes) == 1, "woken when durable moved, and only then")
			},
			"resolve what is not pending": func(t *rapid.T) {
				tr.Resolve([]agent.Resolution{{Sequence: received + 100}})
			},
		})
	})
}

// What is refused is sent before an ack covers it, however much it is.
func TestTrackerRefusals(t *testing.T) {
	tr := newTracker()
	var s Stream
	require.Equal(t, Progress{}, tr.Attach(&s, 0))
	const over = 3
	for seq := range int64(maxUnsent + over) {
		tr.AddPending(seq + 1)
		tr.MarkReceived(seq + 1)
		tr.Resolve([]agent.Resolution{{Sequence: seq + 1, Refusal: &agent.Refusal{Reason: "store", Names: []string{fmt.Sprint(seq)}, Count: 1}}})
	}
	require.Empty(t, tr.pending)
	require.Equal(t, Progress{maxUnsent + over, 0}, tr.Progress(), "nothing is sent")
	progress, refusals, sends := tr.NextAck(&s)
	require.True(t, sends)
	require.Equal(t, Progress{maxUnsent + over, maxUnsent + over}, progress)
	require.Len(t, refusals, maxUnsent+1)
	require.Equal(t, Refusal{0, 1, agent.Refusal{Reason: "store", Names: []string{"0"}, Count: 1}}, refusals[0])
	require.Equal(t, Refusal{maxUnsent + 1, maxUnsent + over, summaryOf(over)}, refusals[maxUnsent])
	require.Equal(t, float64(over), testutil.ToFloat64(tr.summarized))
	_, refusals, _ = tr.NextAck(&s)
	require.Empty(t, refusals)
}

// What the database refuses of one request is one refusal.
func TestTrackerJoinsRefusals(t *testing.T) {
	tr := newTracker()
	var s Stream
	tr.Attach(&s, 0)
	const keys = agent.MaxRefusalNames + 4
	var resolved []agent.Resolution
	for n := range keys {
		tr.AddPending(7)
		resolved = append(resolved, agent.Resolution{Sequence: 7, Refusal: &agent.Refusal{Reason: "rejected", Names: []string{fmt.Sprint(n)}, Count: 1}})
	}
	tr.AddRefusals(7, []agent.Refusal{{Reason: "key_length", Names: []string{"x"}, Count: 1}})
	tr.MarkReceived(7)
	tr.Resolve(resolved)
	_, refusals, _ := tr.NextAck(&s)
	require.Len(t, refusals, 2)
	require.Equal(t, "key_length", refusals[0].Reason)
	require.Len(t, refusals[1].Names, agent.MaxRefusalNames)
	require.Equal(t, keys, refusals[1].Count)
}

// A refusal that was sent may not have arrived: the next stream sends it again
// unless the instance knows an ack that covers it.
func TestTrackerSendsAgain(t *testing.T) {
	refuse := func(tr *Tracker, seq int64) {
		tr.AddRefusals(seq, []agent.Refusal{{Reason: "invalid_key", Names: []string{"k"}, Count: 1}})
		tr.MarkReceived(seq)
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
			tr := newTracker()
			var first, second Stream
			tr.Attach(&first, 0)
			tr.MarkReceived(3)
			refuse(tr, 4)
			refuse(tr, 6)
			progress, refusals, _ := tr.NextAck(&first)
			require.Equal(t, Progress{6, 6}, progress)
			require.Len(t, refusals, 2)
			tr.MarkReceived(9)
			require.Equal(t, c.resume, tr.Attach(&second, c.confirmed))
			_, _, sends := tr.NextAck(&first)
			require.False(t, sends, "it is detached")
			progress, refusals, sends = tr.NextAck(&second)
			require.True(t, sends)
			require.Equal(t, c.again, refusals)
			require.Equal(t, Progress{9, 9}, progress)
		})
	}
}

// What is refused between two sessions is above what the next one resumes from.
func TestTrackerRefusesBetweenSessions(t *testing.T) {
	tr := newTracker()
	var first, second Stream
	tr.Attach(&first, 0)
	tr.AddPending(1)
	tr.MarkReceived(1)
	tr.Detach(&first)
	tr.Resolve([]agent.Resolution{{Sequence: 1, Refusal: &agent.Refusal{Reason: "rejected", Count: 1}}})
	require.Equal(t, Progress{1, 0}, tr.Attach(&second, 0))
	progress, refusals, _ := tr.NextAck(&second)
	require.Len(t, refusals, 1)
	require.Equal(t, Progress{1, 1}, progress)
}

// A session resumes from what is acked as received. What is received and not written is
// not new, though.
func TestTrackerResumesFromWhatIsWritten(t *testing.T) {
	tr := newTracker()
	var first, second Stream
	tr.Attach(&first, 0)
	tr.MarkReceived(1)
	tr.AddUnwritten(2)
	tr.MarkReceived(2)
	tr.MarkReceived(3)
	require.Equal(t, Progress{1, 1}, tr.Attach(&second, 1))
	require.False(t, tr.IsNew(3))
	tr.ReportWritten(2)
	progress, _, _ := tr.NextAck(&second)
	require.Equal(t, Progress{3, 3}, progress)
}

func TestTrackerWakesTheNewestStream(t *testing.T) {
	tr := newTracker()
	var wakes [2]chan struct{}
	var streams [2]Stream
	for i := range streams {
		wakes[i] = make(chan struct{}, 1)
		streams[i].Watch(waker(wakes[i]))
		tr.Attach(&streams[i], 0)
	}
	tr.Detach(&streams[0])
	tr.AddPending(1000)
	tr.Resolve([]agent.Resolution{{Sequence: 1000, Refusal: &agent.Refusal{}}})
	require.Len(t, wakes[1], 1, "an older stream does not detach a newer one")
	require.Empty(t, wakes[0])
}

func waker(ch chan<- struct{}) func() {
	return func() {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
