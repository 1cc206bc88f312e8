package batcher

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// flushedRows hands over a report, flushes, and returns the rows that the store got.
func flushedRows(t *testing.T, b *Batcher, s *fakeStore, r agent.MetadataReport) []string {
	t.Helper()
	before := len(s.calls)
	b.Add(time.Now(), r)
	require.NoError(t, b.flushWaiting(t.Context(), t.Context()))
	requireLaw(t, b)
	var rows []string
	for _, c := range s.calls[before:] {
		rows = append(rows, texts(c.rows)...)
	}
	return rows
}

// What a session reports again unchanged reaches the store once in a touch interval. What
// changed does at once.
func TestUnchangedIsNotWritten(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &fakeStore{}
		b := newBatcher(t, s, Options{TouchInterval: time.Minute})
		sequence := int64(0)
		next := func(entries ...string) []string {
			sequence++
			return flushedRows(t, b, s, report(id(1), 7, sequence, nil, entries...))
		}
		require.Equal(t, []string{"a=1", "b=1"}, next("a=1", "b=1"))
		time.Sleep(59 * time.Second)
		require.Empty(t, next("a=1", "b=1"))
		require.Equal(t, []string{"b=2"}, next("a=1", "b=2"))
		require.Equal(t, []string{"b=1"}, next("b=1"), "it is that of before, and not what is stored")
		require.Equal(t, []string{"c=1"}, next("c=1"))
		time.Sleep(time.Second)
		require.Equal(t, []string{"a=1"}, next("a=1", "b=1", "c=1"))
		time.Sleep(59 * time.Second)
		require.Equal(t, []string{"b=1", "c=1"}, next("a=1", "b=1", "c=1"))
		require.Equal(t, 3, b.pending.stored.values())
		// An error is a part of the value.
		r := report(id(1), 7, 100, nil, "a=1")
		r.Entries[0].Error = "failed"
		require.Equal(t, []string{"a=1"}, flushedRows(t, b, s, r))
		l, _ := b.counts()
		require.EqualValues(t, 6, l.unchanged)
	})
}

// Each thing that may have replaced what is stored has the value written again.
func TestDoubtfulIsWritten(t *testing.T) {
	again := func(r agent.MetadataReport) agent.MetadataReport { r.Order.Sequence++; return r }
	for name, doubt := range map[string]func(*testing.T, *Batcher, *fakeStore, agent.MetadataReport) agent.MetadataReport{
		"another session": func(_ *testing.T, _ *Batcher, _ *fakeStore, r agent.MetadataReport) agent.MetadataReport {
			r.Order.Epoch++
			return r
		},
		"another registration": func(_ *testing.T, _ *Batcher, _ *fakeStore, r agent.MetadataReport) agent.MetadataReport {
			r.Incarnation++
			return again(r)
		},
		"said late": func(_ *testing.T, _ *Batcher, _ *fakeStore, r agent.MetadataReport) agent.MetadataReport {
			r = again(r)
			r.Entries[0].Said, r.LateOrder = time.Now().UnixNano(), r.Order
			return r
		},
		"after what was said late": func(t *testing.T, b *Batcher, s *fakeStore, r agent.MetadataReport) agent.MetadataReport {
			late := again(report(r.Agent, r.Order.Epoch, 1, nil, "a=late"))
			late.Entries[0].Said, late.LateOrder = time.Now().UnixNano(), late.Order
			require.Equal(t, []string{"a=late"}, flushedRows(t, b, s, late))
			return again(again(r))
		},
		"removed": func(_ *testing.T, b *Batcher, _ *fakeStore, r agent.MetadataReport) agent.MetadataReport {
			b.Remove(r.Agent)
			return again(r)
		},
		"removed while it is written": func(t *testing.T, b *Batcher, s *fakeStore, r agent.MetadataReport) agent.MetadataReport {
			s.before = func(context.Context, []agent.Metadata) error {
				b.Remove(r.Agent)
				return nil
			}
			changed := again(r)
			changed.Entries = report(r.Agent, 1, 1, nil, "a=2").Entries
			require.Equal(t, []string{"a=2"}, flushedRows(t, b, s, changed))
			s.before = nil
			return again(changed)
		},
		"stored of a newer session": func(t *testing.T, b *Batcher, s *fakeStore, r agent.MetadataReport) agent.MetadataReport {
			other := s.rows[rowKey{r.Agent, "a"}]
			other.Order.Epoch += 10
			s.rows[rowKey{r.Agent, "a"}] = other
			changed := again(r)
			changed.Entries = report(r.Agent, 1, 1, nil, "a=2").Entries
			require.Equal(t, []string{"a=2"}, flushedRows(t, b, s, changed))
			return again(again(r))
		},
		"a flush failed": func(t *testing.T, b *Batcher, s *fakeStore, r agent.MetadataReport) agent.MetadataReport {
			s.before = func(context.Context, []agent.Metadata) error { return errDown }
			b.Add(time.Now(), report(id(2), 1, 1, nil, "b=1"))
			require.Error(t, b.flushWaiting(t.Context(), t.Context()))
			s.before = nil
			b.Remove(id(2))
			return again(r)
		},
		"no touch interval": func(t *testing.T, b *Batcher, _ *fakeStore, r agent.MetadataReport) agent.MetadataReport {
			require.NoError(t, b.Reconfigure(Options{}))
			return again(r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &fakeStore{}
			b := newBatcher(t, s, Options{TouchInterval: time.Hour})
			r := report(id(1), 5, 1, nil, "a=1")
			require.NotEmpty(t, flushedRows(t, b, s, r))
			require.Empty(t, flushedRows(t, b, s, again(r)))
			last := doubt(t, b, s, again(again(r)))
			require.Len(t, flushedRows(t, b, s, last), 1)
		})
	}
}

// The ack of an unchanged value waits until a session elsewhere would have been heard of,
// and while the database is away.
func TestUnchangedIsAckedLater(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, tracker := &fakeStore{}, &fakeTracker{}
		b := newBatcher(t, s, Options{TouchInterval: time.Hour})
		flush := func() error { return b.flushWaiting(t.Context(), t.Context()) }
		require.NotEmpty(t, flushedRows(t, b, s, report(id(1), 1, 1, tracker, "a=1", "b=1")))
		require.Empty(t, tracker.sequences())
		require.Empty(t, flushedRows(t, b, s, report(id(1), 1, 2, tracker, "a=1", "b=1")))
		require.Equal(t, []int64{2}, tracker.sequences(), "once for the report")
		time.Sleep(confirmTime - time.Millisecond)
		require.NoError(t, flush())
		require.Equal(t, []int64{2}, tracker.sequences())
		require.Equal(t, []string{"c=1"}, flushedRows(t, b, s, report(id(1), 1, 3, tracker, "a=1", "c=1")))
		require.Equal(t, []int64{2, 3}, tracker.sequences(), "what is written is not acked before what is not")

		time.Sleep(time.Millisecond)
		s.before = func(context.Context, []agent.Metadata) error { return errDown }
		b.Add(time.Now(), report(id(1), 1, 4, tracker, "a=2"))
		require.Error(t, flush())
		require.Equal(t, []int64{2, 3, 4}, tracker.sequences())
		s.before = nil
		require.NoError(t, flush())
		require.Equal(t, []int64{3}, tracker.sequences())
		require.NoError(t, flush())
		require.Equal(t, []int64{3}, tracker.sequences())
		b.drain(t.Context())
		require.Empty(t, tracker.sequences(), "at the end nothing is left")
		require.Empty(t, tracker.wrong)
	})
}

// The ack of an unchanged value waits until it is known what other replicas wrote before: one
// may have removed the agent, with what is stored.
func TestUnchangedWaitsForOtherReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, tracker := &fakeStore{}, &fakeTracker{}
		b := newBatcher(t, s, Options{TouchInterval: time.Hour})
		require.NotEmpty(t, flushedRows(t, b, s, report(id(1), 1, 1, tracker, "a=1")))
		b.Followed(time.Now())
		time.Sleep(time.Second)
		said := time.Now()
		require.Empty(t, flushedRows(t, b, s, report(id(1), 1, 2, tracker, "a=1")))
		for _, at := range []time.Time{{}, said.Add(-1), said} {
			time.Sleep(confirmTime)
			if !at.IsZero() {
				b.Followed(at)
			}
			require.Equal(t, []int64{2}, tracker.sequences())
			require.NoError(t, b.flushWaiting(t.Context(), t.Context()))
		}
		require.Empty(t, tracker.sequences())

		require.Empty(t, flushedRows(t, b, s, report(id(1), 1, 3, tracker, "a=1")))
		b.Followed(time.Now())
		require.NoError(t, b.flushWaiting(t.Context(), t.Context()))
		require.Equal(t, []int64{3}, tracker.sequences(), "nor is it acked at once")
	})
}

// What is known is bounded, by number and in time.
func TestKnownValuesAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &fakeStore{}
		b := newBatcher(t, s, Options{TouchInterval: time.Minute, BatchSize: 5, MaxPending: 5})
		for n := range byte(3) {
			require.Len(t, flushedRows(t, b, s, report(id(n), 1, 1, nil, "a=1", "b=1")), 2)
		}
		require.Equal(t, 5, b.pending.stored.values())
		for n, want := range []int{0, 0, 1} {
			require.Len(t, flushedRows(t, b, s, report(id(byte(n)), 1, 2, nil, "a=1", "b=1")), want)
		}
		// Agents that report go on to be known, the others are forgotten.
		for i := range 5 {
			time.Sleep(61 * time.Second)
			require.Len(t, flushedRows(t, b, s, report(id(0), 1, int64(10+i), nil, "a=1", "b=1")), 2)
			require.Empty(t, flushedRows(t, b, s, report(id(0), 1, int64(20+i), nil, "a=1", "b=1")))
		}
		require.Equal(t, 2, b.pending.stored.values())
		require.Len(t, b.pending.stored.newest.agents, 1)

		// Acks that wait are bounded, too: beyond that values are handed to the store.
		time.Sleep(confirmTime)
		require.NoError(t, b.flushWaiting(t.Context(), t.Context()))
		for i, want := range []int{0, 0, 0, 0, 0, 1, 1} {
			require.Len(t, flushedRows(t, b, s, report(id(0), 1, int64(30+i), nil, "a=1")), want, i)
		}
	})
}
