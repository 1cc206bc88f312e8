package batcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestOptions(t *testing.T) {
	for want, opts := range map[string]Options{
		"batch size: want 1 to 10000, got -1":    {BatchSize: -1},
		"batch size: want 1 to 10000, got 10001": {BatchSize: 10_001},
		"max pending: want at least the batch size of 10, got 9": {
			BatchSize: 10, MaxPending: 9,
		},
		"max pending per agent: want at least 1, got -1": {MaxPendingPerAgent: -1},
		"max pending per owner: want at least 1, got -1": {MaxPendingPerOwner: -1},
		"flush interval: want at least 0, got -1ns":      {FlushInterval: -1},
		"flush timeout: want at least 0, got -1ns":       {FlushTimeout: -1},
		"publish timeout: want at least 0, got -1ns":     {PublishTimeout: -1},
		"shutdown timeout: want at least 0, got -1ns":    {ShutdownTimeout: -1},
	} {
		_, err := New(&fakeStore{}, &fakePublisher{}, opts, prometheus.NewRegistry(), quiet)
		require.EqualError(t, err, "batcher options: "+want)
	}
	require.Equal(t, Options{
		BatchSize: 500, FlushInterval: 5 * time.Second, MaxPending: 500_000, MaxPendingPerAgent: 1000, MaxPendingPerOwner: 125_000,
		FlushTimeout: 10 * time.Second, PublishTimeout: 5 * time.Second, ShutdownTimeout: 15 * time.Second,
	}, newBatcher(t, &fakeStore{}, Options{}).Options())

	reg := prometheus.NewRegistry()
	_, err := New(&fakeStore{}, &fakePublisher{}, Options{}, reg, quiet)
	require.NoError(t, err)
	_, err = New(&fakeStore{}, &fakePublisher{}, Options{}, reg, quiet)
	require.ErrorContains(t, err, "batcher: register metrics: duplicate metrics collector")
}

// flushAll flushes what waits; it is what the schedule does.
func flushAll(t *testing.T, b *Batcher) {
	t.Helper()
	require.NoError(t, b.flushWaiting(t.Context(), t.Context()))
	requireLaw(t, b)
}

func TestLatestValueWins(t *testing.T) {
	store := &fakeStore{}
	b := newBatcher(t, store, Options{})
	require.Empty(t, b.Add(now, report(id(1), 1, 1, nil, "a=1", "b=1", "c=1")))
	require.Empty(t, b.Add(now.Add(time.Second), report(id(1), 1, 2, nil, "b=2", "d=2", "d=2 again")))
	require.Empty(t, b.Add(now, report(id(1), 0, 9, nil, "a=of an older session")))
	require.Empty(t, b.Add(now, report(id(2), 1, 1, nil, "a=other")))
	requireLaw(t, b)
	require.ElementsMatch(t, []string{"a", "b", "c", "d"}, b.PendingKeys(id(1)))
	flushAll(t, b)
	require.Empty(t, b.PendingKeys(id(1)))
	require.Len(t, store.calls, 1)
	// An overwritten entry keeps its place.
	require.Equal(t, []string{"a=1", "b=2", "c=1", "d=2 again", "a=other"}, texts(store.calls[0].rows))
	require.Equal(t, agent.Metadata{
		Agent: id(1), Key: "b", Value: "2", CollectedAt: now.Add(time.Second), Order: agent.Order{Epoch: 1, Sequence: 2},
	}, store.rows[rowKey{id(1), "b"}])
	l, pending := b.counts()
	require.Equal(t, ledger{received: 8, flushed: 5, coalesced: 3}, l)
	require.Zero(t, pending)
	require.Empty(t, b.pending.agents)
	flushAll(t, b)
	require.Len(t, store.calls, 1, "nothing waits: no call")
}

// A value that lost against one of a higher epoch is not acked: its tracker is notified
// instead, once a flush. What is beside it, or was replaced while it was written, is
// as ever.
func TestSuperseded(t *testing.T) {
	store := &fakeStore{}
	tracker, other := &fakeTracker{}, &fakeTracker{}
	b := newBatcher(t, store, Options{})
	b.Add(now, report(id(1), 5, 1, nil, "a=new", "c=new"))
	flushAll(t, b)
	b.Add(now, report(id(1), 4, 1, tracker, "a=old", "b=1"))
	b.Add(now, report(id(1), 4, 2, tracker, "c=old"))
	b.Add(now, report(id(2), 4, 1, other, "a=1"))
	store.before = func(context.Context, []agent.Metadata) error {
		store.before = nil
		b.Add(now, report(id(1), 6, 3, tracker, "c=newest"))
		return nil
	}
	flushAll(t, b)
	require.Equal(t, "new", store.rows[rowKey{id(1), "a"}].Value)
	require.Equal(t, []int64{5, 5}, tracker.superseded)
	require.Equal(t, []agent.Resolution{{Sequence: 1}}, tracker.resolved)
	require.Equal(t, []int64{1, 2}, tracker.sequences()[:2])
	require.Equal(t, []agent.Resolution{{Sequence: 1}}, other.resolved)
	flushAll(t, b)
	require.Equal(t, "newest", store.rows[rowKey{id(1), "c"}].Value)
	require.Equal(t, []int64{1, 2}, tracker.sequences(), "what lost stays pending")
	l, _ := b.counts()
	require.Equal(t, ledger{received: 7, flushed: 5, coalesced: 2}, l)
}

// Watchers are notified of agents whose rows changed, each once, and of nobody else.
func TestOnlyChangesArePublished(t *testing.T) {
	store, publisher := &fakeStore{}, &fakePublisher{}
	b, err := New(store, publisher, Options{}, prometheus.NewRegistry(), quiet)
	require.NoError(t, err)
	b.Add(now, report(id(2), 5, 1, nil, "a=1", "b=1"))
	b.Add(now, report(id(1), 5, 1, nil, "a=1"))
	flushAll(t, b)
	b.Add(now, report(id(2), 4, 1, nil, "a=old"))
	b.Add(now, report(id(1), 6, 1, nil, "a=2"))
	flushAll(t, b)
	b.Add(now, report(id(2), 4, 1, nil, "a=old"))
	flushAll(t, b)
	require.Equal(t, [][]agent.ID{{id(1), id(2)}, {id(1)}}, publisher.agents)
}

func TestFailedFlushIsMergedBack(t *testing.T) {
	store := &fakeStore{}
	b := newBatcher(t, store, Options{BatchSize: 3, MaxPending: 5})
	tracker := &fakeTracker{}
	b.Add(now, report(id(1), 1, 1, tracker, "a=1", "b=1", "c=1", "d=1"))
	store.before = func(context.Context, []agent.Metadata) error {
		requireLaw(t, b)
		store.before = nil
		// During the write a newer value of b arrives, and an older one of c.
		b.Add(now, report(id(1), 1, 2, tracker, "b=2"))
		b.Add(now, report(id(1), 0, 9, tracker, "c=old"))
		_, pending := b.counts()
		require.Equal(t, 5, pending)
		require.Equal(t, []int64{1, 1, 1, 1, 2}, tracker.sequences())
		return errDown
	}
	require.ErrorIs(t, b.flushWaiting(t.Context(), t.Context()), errDown)
	requireLaw(t, b)
	require.Equal(t, []int64{1, 1, 1, 1}, tracker.sequences(), "b's older ack stays pending")
	require.Equal(t, 1, tracker.calls)
	flushAll(t, b)
	require.Equal(t, []string{"a=1", "b=2", "c=1"}, texts(store.calls[1].rows))
	require.Equal(t, []string{"d=1"}, texts(store.calls[2].rows))
	require.Empty(t, tracker.sequences())
	require.Empty(t, tracker.wrong)
	require.Equal(t, 3, tracker.calls, "once a flush")
	l, _ := b.counts()
	require.Equal(t, ledger{received: 6, flushed: 4, coalesced: 2}, l)
}

func TestPendingOfNewProcess(t *testing.T) {
	store := &fakeStore{}
	b := newBatcher(t, store, Options{})
	old, young := &fakeTracker{}, &fakeTracker{}
	b.Add(now, report(id(1), 1, 7, old, "a=1", "b=1"))
	b.Add(now, report(id(1), 2, 1, young, "a=2"))
	require.Equal(t, []int64{7}, old.sequences())
	require.Equal(t, []agent.Resolution{{Sequence: 7}}, old.resolved)
	require.Equal(t, []int64{1}, young.sequences())
	// A value without a tracker resolves the ack too, and the other way round.
	b.Add(now, report(id(1), 3, 1, nil, "a=3"))
	require.Empty(t, young.sequences())
	b.Add(now, report(id(1), 4, 4, young, "a=4"))
	require.Equal(t, []int64{4}, young.sequences())
	// A lower sequence in a newer session is the pending one.
	b.Add(now, report(id(1), 5, 2, young, "a=5"))
	require.Equal(t, []int64{2}, young.sequences())

	// The same while the older value is being written in vain.
	store.before = func(context.Context, []agent.Metadata) error {
		store.before = nil
		b.Add(now, report(id(1), 6, 1, old, "a=6"))
		require.Equal(t, []int64{1, 7}, old.sequences())
		return errDown
	}
	require.ErrorIs(t, b.flushWaiting(t.Context(), t.Context()), errDown)
	require.Empty(t, young.sequences())
	require.Equal(t, []int64{1, 7}, old.sequences())
	flushAll(t, b)
	require.Empty(t, old.sequences())
	require.Empty(t, append(old.wrong, young.wrong...))
	require.Equal(t, "6", store.rows[rowKey{id(1), "a"}].Value)
}

// A value that a relay could not send before does not replace a pending one that another
// relay was given later. It does not wait for that either.
func TestPendingOfAnOlderRelay(t *testing.T) {
	store := &fakeStore{}
	b := newBatcher(t, store, Options{})
	newer, older := &fakeTracker{}, &fakeTracker{}
	late := func(sequence int64, said time.Time, pairs ...string) agent.MetadataReport {
		r := report(id(1), 2, sequence, older, pairs...)
		r.LateOrder = agent.Order{Epoch: 2, Sequence: sequence, Previous: 7}
		for i := range r.Entries {
			r.Entries[i].Said = said.UnixNano()
		}
		return r
	}
	b.Add(now, report(id(1), 1, 1, newer, "a=1", "b=1"))
	b.Add(now.Add(time.Minute), late(1, now.Add(-time.Second), "a=2", "c=2"))
	require.Equal(t, []int64{1}, older.sequences(), "of c")
	b.Add(now.Add(time.Minute), late(2, now.Add(time.Second), "b=3"))
	require.Equal(t, []int64{1, 2}, older.sequences())
	b.Add(now.Add(time.Minute), late(3, now.Add(-time.Hour), "b=4")) // it knows its own order
	flushAll(t, b)
	require.Empty(t, older.sequences())
	require.Empty(t, append(older.wrong, newer.wrong...))
	require.Equal(t, "1", store.rows[rowKey{id(1), "a"}].Value)
	b4, c2 := store.rows[rowKey{id(1), "b"}], store.rows[rowKey{id(1), "c"}]
	require.Equal(t, "4", b4.Value)
	require.Equal(t, "2", c2.Value)
	require.True(t, c2.Late)
	require.Equal(t, now.Add(-time.Second).UnixNano(), c2.CollectedAt.UnixNano())
	require.Equal(t, int64(7), c2.Order.Previous)
	l, _ := b.counts()
	require.Equal(t, ledger{received: 6, flushed: 3, coalesced: 3}, l)
	requireLaw(t, b)
}

func TestRejectedRowsAreIsolated(t *testing.T) {
	store := &fakeStore{rejects: func(r agent.Metadata) bool { return r.Value == "bad" }}
	publisher := &fakePublisher{}
	b, err := New(store, publisher, Options{}, prometheus.NewRegistry(), quiet)
	require.NoError(t, err)
	tracker, bad := &fakeTracker{}, &fakeTracker{}
	for n := range byte(50) {
		b.Add(now, report(id(n), 1, 3, tracker, "a=1", "b=1"))
	}
	b.Add(now, report(id(50), 1, 4, bad, "first=bad", "second=bad"))
	b.Add(now, report(id(49), 1, 5, bad, "third=bad"))
	flushAll(t, b)

	require.Len(t, store.rows, 100)
	require.Less(t, len(store.calls), 30, "halves, not single rows")
	require.Len(t, tracker.resolved, 100)
	require.Empty(t, tracker.sequences())
	require.Empty(t, bad.sequences())
	require.ElementsMatch(t, []agent.Resolution{
		{Sequence: 4, Refusal: refusedByStore("first")},
		{Sequence: 4, Refusal: refusedByStore("second")},
		{Sequence: 5, Refusal: refusedByStore("third")},
	}, bad.resolved)
	l, _ := b.counts()
	want := ledger{received: 103, flushed: 100}
	want.dropped[dropRejected] = 3
	require.Equal(t, want, l)
	require.NoError(t, b.Healthy(), "the database works")
	require.Len(t, publisher.agents, 2, "of id(49) apart")
	require.Len(t, publisher.agents[0], 49)
	require.Equal(t, []agent.ID{id(49)}, publisher.agents[1])
}

func refusedByStore(key string) *agent.Refusal {
	return &agent.Refusal{
		Kind: agent.RefusedStore, Reason: "rejected", Names: []string{key}, Count: 1,
		Message: fmt.Sprintf("the database refused the value of key %q", key),
	}
}

// The database goes down while the refused row is looked for: what was written
// and refused by then is resolved, the rest waits.
func TestRejectedThenDown(t *testing.T) {
	store := &fakeStore{rejects: func(r agent.Metadata) bool { return r.Value == "bad" }}
	store.before = func(_ context.Context, rows []agent.Metadata) error {
		if rows[0].Key == "c" {
			return errDown
		}
		return nil
	}
	b := newBatcher(t, store, Options{})
	tracker := &fakeTracker{}
	b.Add(now, report(id(1), 1, 1, tracker, "a=1", "b=bad", "c=1", "d=bad"))
	require.ErrorIs(t, b.flushWaiting(t.Context(), t.Context()), errDown)
	requireLaw(t, b)
	require.Equal(t, []int64{1, 1}, tracker.sequences())
	require.ErrorIs(t, b.Healthy(), errDown)
	store.before = nil
	flushAll(t, b)
	require.Equal(t, []string{"c=1", "d=bad"}, texts(store.calls[5].rows))
	require.Empty(t, tracker.sequences())
	l, _ := b.counts()
	want := ledger{received: 4, flushed: 2}
	want.dropped[dropRejected] = 2
	require.Equal(t, want, l)
}

func TestCapacity(t *testing.T) {
	store := &fakeStore{}
	reg := prometheus.NewRegistry()
	b, err := New(store, &fakePublisher{}, Options{BatchSize: 3, MaxPending: 4}, reg, quiet)
	require.NoError(t, err)
	tracker := &fakeTracker{}
	require.Empty(t, b.Add(now, report(id(1), 1, 1, tracker, "a=1", "b=1", "c=1")))
	refused := b.Add(now, report(id(2), 1, 2, tracker, "a=1", "b=1", "c=1", "="))
	require.Equal(t, []agent.Refusal{
		{Kind: agent.RefusedInvalid, Reason: "empty_key", Message: "metadata key is empty", Names: []string{""}, Count: 1},
		{
			Kind: agent.RefusedLimit, Reason: "capacity", Names: []string{"b", "c"}, Count: 2,
			Message: "4 metadata values wait for the database, limit 4 (--metadata-max-pending): no new key now",
		},
	}, refused)
	require.Len(t, b.Add(now, report(id(3), 1, 2, tracker, "a=1")), 1)
	requireLaw(t, b)
	require.Equal(t, []int64{1, 1, 1, 2}, tracker.sequences(), "what is refused is not pending")
	// A known key is overwritten all the same, even while it is being written.
	require.Empty(t, b.Add(now, report(id(1), 1, 3, tracker, "a=2")))
	store.before = func(context.Context, []agent.Metadata) error {
		store.before = nil
		require.Empty(t, b.Add(now, report(id(1), 1, 4, tracker, "a=3", "b=3")))
		require.Len(t, b.Add(now, report(id(3), 1, 1, tracker, "a=1")), 1)
		requireLaw(t, b)
		return nil
	}
	flushAll(t, b)
	flushAll(t, b)
	require.Equal(t, "3", store.rows[rowKey{id(1), "a"}].Value)
	require.Empty(t, b.Add(now, report(id(3), 1, 5, nil, "a=1")))
	l, pending := b.counts()
	want := ledger{received: 13, flushed: 6, coalesced: 1}
	want.dropped[dropCapacity], want.dropped[dropEmptyKey] = 4, 1
	require.Equal(t, want, l)
	require.Equal(t, 1, pending)
	require.Equal(t, 4.0, value(t, reg, "coderd_agentapi_metadata_dropped_keys_total"))
}

func TestRemove(t *testing.T) {
	store := &fakeStore{}
	b := newBatcher(t, store, Options{})
	tracker := &fakeTracker{}
	b.Add(now, report(id(1), 1, 1, tracker, "a=1", "b=1"))
	b.Add(now, report(id(2), 1, 1, nil, "a=1"))
	b.Remove(id(1))
	b.Remove(id(1))
	b.Remove(id(9))
	requireLaw(t, b)
	require.Empty(t, tracker.sequences())
	require.ElementsMatch(t, []string{"a", "b"}, []string{tracker.resolved[0].Refusal.Names[0], tracker.resolved[1].Refusal.Names[0]})
	require.Equal(t, &agent.Refusal{
		Kind: agent.RefusedNotAllowed, Reason: "deregistered", Message: "the agent was deregistered",
		Names: tracker.resolved[0].Refusal.Names, Count: 1,
	}, tracker.resolved[0].Refusal)

	// Removed, and registered again, while a write is under way that fails.
	b.Add(now, report(id(1), 1, 2, tracker, "a=2", "b=2"))
	store.before = func(context.Context, []agent.Metadata) error {
		store.before = nil
		b.Add(now, report(id(1), 1, 3, tracker, "a=3"))
		b.Remove(id(1))
		requireLaw(t, b)
		b.Add(now, report(id(1), 2, 1, tracker, "a=4"))
		return errDown
	}
	require.ErrorIs(t, b.flushWaiting(t.Context(), t.Context()), errDown)
	requireLaw(t, b)
	require.Equal(t, []int64{1}, tracker.sequences())
	flushAll(t, b)
	require.Equal(t, []string{"a=1", "a=4"}, texts(store.calls[1].rows), "b=2 is not written again")
	require.Empty(t, tracker.sequences())

	// Removed during a write that the database refuses for that reason, and
	// during one that succeeds.
	for i, rejects := range []bool{true, false} {
		store.rejects = func(r agent.Metadata) bool { return rejects && r.Agent == id(1) }
		b.Add(now, report(id(1), 3, int64(i+1), tracker, "a=5"))
		store.before = func(context.Context, []agent.Metadata) error { b.Remove(id(1)); return nil }
		flushAll(t, b)
		store.before = nil
	}
	require.Empty(t, tracker.sequences())
	require.Empty(t, tracker.wrong)
	l, _ := b.counts()
	want := ledger{received: 9, flushed: 3}
	want.dropped[dropDeregistered] = 6
	require.Equal(t, want, l)
	require.Empty(t, b.pending.agents)
}

func TestPublish(t *testing.T) {
	reg := prometheus.NewRegistry()
	publisher := &fakePublisher{err: errors.New("no pubsub")}
	b, err := New(&fakeStore{}, publisher, Options{BatchSize: 3}, reg, quiet)
	require.NoError(t, err)
	tracker := &fakeTracker{}
	for n := range byte(2) {
		b.Add(now, report(id(n), 1, 1, tracker, "a=1", "b=1"))
	}
	flushAll(t, b)
	require.Equal(t, [][]agent.ID{{id(0), id(1)}, {id(1)}}, publisher.agents)
	require.Empty(t, tracker.sequences(), "what is written is resolved")
	require.NoError(t, b.Healthy())
	require.Equal(t, 2.0, value(t, reg, "coderd_agentapi_metadata_publish_errors_total"))
	require.Equal(t, 4.0, value(t, reg, "coderd_agentapi_metadata_flushed_total"))
}

func TestHealthy(t *testing.T) {
	store := &fakeStore{}
	b := newBatcher(t, store, Options{})
	require.NoError(t, b.Healthy())
	store.before = func(context.Context, []agent.Metadata) error { return errDown }
	b.Add(now, report(id(1), 1, 1, nil, "a=1"))
	before := time.Now().UTC().Truncate(time.Second)
	for range 2 {
		require.ErrorIs(t, b.flushWaiting(t.Context(), t.Context()), errDown)
	}
	err := b.Healthy()
	require.ErrorIs(t, err, errDown)
	text, attempts, _ := strings.Cut(strings.TrimPrefix(err.Error(), "metadata is not written since "), " ")
	require.Equal(t, "(2 attempts): database is down", attempts)
	since, err := time.Parse(time.RFC3339, text)
	require.NoError(t, err)
	require.False(t, since.Before(before))
	store.before = nil
	flushAll(t, b)
	require.NoError(t, b.Healthy())
}

// What was to be flushed can be gone when its turn comes.
func TestRemoveAheadOfFlush(t *testing.T) {
	store := &fakeStore{}
	b := newBatcher(t, store, Options{BatchSize: 2})
	b.Add(now, report(id(1), 1, 1, nil, "a=1", "b=1", "c=1"))
	store.before = func(context.Context, []agent.Metadata) error {
		b.Remove(id(1))
		return nil
	}
	flushAll(t, b)
	require.Len(t, store.calls, 1)
}

// Rows carry the incarnation that their agent had when they were said, and what their
// session knew. So do those that wait again after a write that failed.
func TestRowsCarryTheIncarnation(t *testing.T) {
	store := &fakeStore{before: func(context.Context, []agent.Metadata) error { return errDown }}
	b := newBatcher(t, store, Options{})
	of := func(incarnation, sequence int64, entries ...string) agent.MetadataReport {
		r := report(id(1), 1, sequence, nil, entries...)
		r.Incarnation, r.Order.Basis, r.Order.Previous = incarnation, sequence+10, sequence+20
		return r
	}
	require.Empty(t, b.Add(now, of(3, 1, "a=1", "b=1")))
	require.Error(t, b.flushWaiting(t.Context(), t.Context()))
	require.Empty(t, b.Add(now, of(7, 2, "b=2")))
	store.before = nil
	flushAll(t, b)
	require.EqualValues(t, 3, store.rows[rowKey{id(1), "a"}].Incarnation)
	require.EqualValues(t, 7, store.rows[rowKey{id(1), "b"}].Incarnation)
	require.Equal(t, agent.Order{Epoch: 1, Sequence: 1, Basis: 11, Previous: 21}, store.rows[rowKey{id(1), "a"}].Order)
	require.Equal(t, agent.Order{Epoch: 1, Sequence: 2, Basis: 12, Previous: 22}, store.rows[rowKey{id(1), "b"}].Order)
}
