package batcher

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// manyKeys are entries with the value, under keys that start so.
func manyKeys(start, value string, n int) (entries []string) {
	for i := range n {
		entries = append(entries, fmt.Sprintf("%s%d=%s", start, i, value))
	}
	return entries
}

// What finding an agent's refused rows takes is bounded in each flush, and delays
// nobody else.
func TestQuarantine(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store := &fakeStore{rejects: func(r agent.Metadata) bool { return r.Value == "bad" }}
		// A call takes its time, so that they can be counted by it.
		store.before = func(context.Context, []agent.Metadata) error { time.Sleep(5 * time.Millisecond); return nil }
		reg := prometheus.NewRegistry()
		var logged bytes.Buffer
		b, err := New(store, &fakePublisher{}, Options{}, reg, slog.New(slog.NewTextHandler(&logged, nil)))
		require.NoError(t, err)
		stop := run(t, b)
		good, bad := &fakeTracker{}, &fakeTracker{}
		sequence := int64(0)
		const hostile = 8
		worst := time.Duration(0)
		for round := range 12 {
			for n := range byte(hostile) {
				sequence++
				b.Add(time.Now(), report(id(n), 1, sequence, bad, manyKeys(fmt.Sprint("k", round, "-"), "bad", 80)...))
			}
			sequence++
			b.Add(time.Now(), report(id(100), 1, sequence, good, fmt.Sprint("a=", sequence)))
			began := time.Now()
			for len(good.sequences()) > 0 {
				time.Sleep(5 * time.Millisecond)
				synctest.Wait()
			}
			if round > 0 {
				worst = max(worst, time.Since(began))
			}
			time.Sleep(5*time.Second - time.Since(began))
			requireLaw(t, b)
		}
		require.LessOrEqual(t, worst, 5*time.Second+(quarantineCalls+20)*5*time.Millisecond)
		require.Less(t, len(store.flushes(time.Now())), 13*(quarantineCalls+20))
		require.Equal(t, float64(hostile), gather(t, reg)["agentstatsd_metadata_quarantined_agents"].GetMetric()[0].GetGauge().GetValue())
		require.NotEmpty(t, bad.sequences(), "they wait for their own")
		stop()
		require.Empty(t, bad.sequences(), "the end takes what it takes")
		require.Empty(t, append(bad.wrong, good.wrong...))
		require.Len(t, bad.resolved, hostile*12*80)
		lines := regexp.MustCompile(`(?m)^time=(\S+) level=WARN msg="database refused metadata" rows=([1-9]\d*) first_error=`).FindAllStringSubmatch(logged.String(), -1)
		require.GreaterOrEqual(t, len(lines), 2)
		require.Equal(t, len(lines), strings.Count(logged.String(), "refused"))
		var last time.Time
		for _, line := range lines {
			at, err := time.Parse(time.RFC3339, line[1])
			require.NoError(t, err)
			require.GreaterOrEqual(t, at.Sub(last), time.Minute-time.Millisecond)
			last = at
		}
	})
}

// An agent in quarantine gets its good rows written, in their order, and comes out
// of it when its time is over.
func TestQuarantineEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store := &fakeStore{rejects: func(r agent.Metadata) bool { return r.Value == "bad" }}
		b := newBatcher(t, store, Options{})
		tracker := &fakeTracker{}
		b.Add(time.Now(), report(id(1), 1, 1, tracker, manyKeys("first", "1", 20)...))
		b.Add(time.Now(), report(id(1), 1, 2, tracker, "a=bad"))
		b.Add(time.Now(), report(id(1), 1, 3, tracker, manyKeys("last", "1", 200)...))
		b.Add(time.Now(), report(id(2), 1, 1, nil, "other=1"))
		flushAll(t, b)
		require.Equal(t, []string{"other=1"}, texts(lastRows(store, id(2))))
		require.Len(t, store.rows, 1+16+7, "up to the part with the refused row")
		require.Equal(t, 1, b.snapshot().quarantined)
		require.Equal(t, slices.Repeat([]int64{3}, 197), tracker.sequences(), "the oldest first")
		flushAll(t, b)
		require.Len(t, store.rows, 1+220, "none is refused: all of it")
		require.Empty(t, tracker.sequences())

		time.Sleep(quarantineTime / 2)
		b.Add(time.Now(), report(id(1), 1, 4, tracker, "a=bad"))
		flushAll(t, b)
		time.Sleep(quarantineTime / 2)
		flushAll(t, b)
		require.Equal(t, 1, b.snapshot().quarantined, "put off by the refusal")
		time.Sleep(quarantineTime/2 + time.Second)
		flushAll(t, b)
		require.Zero(t, b.snapshot().quarantined)
		require.EqualValues(t, 1, b.snapshot().confined)
		b.Add(time.Now(), report(id(1), 1, 5, tracker, "a=1"))
		b.Add(time.Now(), report(id(2), 1, 2, nil, "other=2"))
		flushAll(t, b)
		require.Equal(t, []string{"a=1", "other=2"}, texts(store.calls[len(store.calls)-1].rows), "together again")

		// It is forgotten with the agent.
		b.Add(time.Now(), report(id(1), 1, 6, tracker, "a=bad"))
		flushAll(t, b)
		b.Add(time.Now(), report(id(1), 1, 7, tracker, "a=2"))
		b.Remove(id(1))
		require.Zero(t, b.snapshot().quarantined)
		requireLaw(t, b)
		require.Empty(t, tracker.sequences())
	})
}

// lastRows are those of an agent in the last call that had any.
func lastRows(s *fakeStore, id agent.ID) (rows []agent.Metadata) {
	for _, c := range s.calls {
		of := slices.DeleteFunc(slices.Clone(c.rows), func(r agent.Metadata) bool { return r.Agent != id })
		if len(of) > 0 {
			rows = of
		}
	}
	return rows
}

// An agent, and all agents of an owner, have a share of what may wait.
func TestShares(t *testing.T) {
	store := &fakeStore{}
	reg := prometheus.NewRegistry()
	b, err := New(store, &fakePublisher{}, Options{BatchSize: 10, MaxPending: 40, MaxPendingPerAgent: 6}, reg, quiet)
	require.NoError(t, err)
	require.Equal(t, 10, b.opts.Load().MaxPendingPerOwner, "a quarter")
	owned := func(a byte, owner agent.ID, sequence int64, entries ...string) []agent.Refusal {
		r := report(id(a), 1, sequence, nil, entries...)
		r.Owner = owner
		refused := b.Add(now, r)
		requireLaw(t, b)
		return refused
	}
	first, second := id(201), id(202)
	refused := owned(1, first, 1, manyKeys("a", "1", 8)...)
	require.Equal(t, []agent.Refusal{{
		Kind: agent.RefusedLimit, Reason: "agent_share", Names: []string{"a6", "a7"}, Count: 2,
		Message: "6 metadata keys of the agent wait for the database, limit 6 of one agent (--metadata-max-pending-per-agent): no new key now",
	}}, refused)
	refused = owned(2, first, 1, manyKeys("a", "1", 5)...)
	require.Equal(t, []agent.Refusal{{
		Kind: agent.RefusedLimit, Reason: "owner_share", Names: []string{"a4"}, Count: 1,
		Message: "10 metadata keys of agents of the workspace's owner wait for the database, limit 10 of one owner (--metadata-max-pending-per-owner): no new key now",
	}}, refused)
	require.Empty(t, owned(1, first, 2, manyKeys("a", "2", 6)...), "known keys are overwritten all the same")
	require.Empty(t, owned(3, second, 1, manyKeys("a", "1", 6)...), "others have theirs")
	require.Empty(t, owned(4, agent.ID{}, 1, manyKeys("a", "1", 6)...))
	require.Equal(t, 3.0, value(t, reg, "coderd_agentapi_metadata_dropped_keys_total"))

	// A workspace that changes hands takes its keys along.
	require.Empty(t, owned(1, second, 3, "a0=3"))
	require.Len(t, owned(3, second, 2, "b=1"), 1)
	require.Empty(t, owned(2, first, 2, "a4=1"))
	b.Remove(id(1))
	requireLaw(t, b)
	require.Empty(t, owned(5, second, 1, "b=1"), "what is removed makes room")

	// So does what is written, even if the agent is removed meanwhile.
	store.before = func(context.Context, []agent.Metadata) error {
		store.before = nil
		b.Remove(id(3))
		require.Empty(t, owned(3, second, 3, "a0=1"))
		return nil
	}
	flushAll(t, b)
	flushAll(t, b)
	require.Empty(t, b.pending.owners)
	require.Empty(t, b.pending.agents)
}

// With no room in quarantine the refused rows of an agent are found at once. Its good
// rows are written, and nobody waits for it.
func TestQuarantineIsFull(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store := &fakeStore{rejects: func(r agent.Metadata) bool { return r.Value == "bad" }}
		b, err := New(store, &fakePublisher{}, Options{BatchSize: 2}, prometheus.NewRegistry(), quiet)
		require.NoError(t, err)
		for n := range maxQuarantined {
			b.pending.confine(agent.ID{1, byte(n >> 8), byte(n)}, time.Now())
		}
		stop := run(t, b)
		tracker := &fakeTracker{}
		b.Add(time.Now(), report(id(1), 1, 1, tracker, "a=good", "b=bad"))
		for n := byte(2); n < 12; n++ {
			b.Add(time.Now(), report(id(n), 1, 1, tracker, "a=good"))
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Zero(t, b.waiting())
		require.Empty(t, tracker.sequences(), "none is pending")
		require.Less(t, len(store.flushes(time.Now())), 20)
		stop()
	})
}
