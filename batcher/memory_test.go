package batcher

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// everyPath is a life of a batcher in which each text of a report takes each
// way that it can take; add is its Add. It returns all that came out.
func everyPath(t *testing.T, add func(b *Batcher, r agent.MetadataReport) []agent.Refusal) (out []any) {
	store := &fakeStore{rejects: func(r agent.Metadata) bool { return strings.HasPrefix(r.Value, "rejected") }}
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	b, err := New(store, &fakePublisher{}, Options{BatchSize: 10, MaxPending: 12}, prometheus.NewRegistry(), log)
	require.NoError(t, err)
	tracker := &fakeTracker{}
	sequence := int64(0)
	take := func(n byte, entries ...agent.MetadataEntry) {
		sequence++
		out = append(out, add(b, agent.MetadataReport{
			Agent: id(n), Order: agent.Order{Epoch: 1, Sequence: sequence}, Tracker: tracker, Entries: entries,
		}))
	}
	long := strings.Repeat("\u00e9", 2000)
	known := []agent.MetadataEntry{
		{Key: "plain", Value: "1", Error: "one"}, {Key: "same", Value: "1"},
		{Key: "cut", Value: long}, {Key: "cut after a clean start", Value: "\x00" + long},
		{Key: "replaced", Value: "a\x00b", Error: "\xffc"}, {Key: "long error", Error: long},
		{Key: "rejected", Value: "rejected", Error: "for good"}, {Key: "twice", Value: "1"}, {Key: "twice", Value: "2"},
	}
	take(1, known...)
	take(1, known...)
	take(1,
		agent.MetadataEntry{Key: "plain", Value: "2"}, agent.MetadataEntry{Key: "same", Value: "1", Error: "new"},
		agent.MetadataEntry{}, agent.MetadataEntry{Value: "without a key"},
		agent.MetadataEntry{Key: "NUL\x00"}, agent.MetadataEntry{Key: "not\xffUTF-8"}, agent.MetadataEntry{Key: long + "\xff"},
		agent.MetadataEntry{Key: strings.Repeat("k", 2000)}, agent.MetadataEntry{Key: "over the limit"}, agent.MetadataEntry{Key: long},
	)
	take(2, agent.MetadataEntry{Key: "a"}, agent.MetadataEntry{Key: "b"}, agent.MetadataEntry{Key: "c"}, agent.MetadataEntry{Key: "no room"},
		agent.MetadataEntry{Key: long})
	store.before = func(context.Context, []agent.Metadata) error {
		store.before = nil
		take(1, agent.MetadataEntry{Key: "plain", Value: "newer"}, agent.MetadataEntry{Key: "rejected", Value: "rejected", Error: "again"})
		take(2, agent.MetadataEntry{Key: "removed"})
		return errDown
	}
	require.ErrorIs(t, b.flushWaiting(t.Context(), t.Context()), errDown)
	requireLaw(t, b)
	b.Remove(id(2))
	require.NoError(t, b.flushWaiting(t.Context(), t.Context()))
	requireLaw(t, b)
	for _, c := range store.calls {
		out = append(out, c.rows)
	}
	slices.SortStableFunc(tracker.resolved, func(a, b agent.Resolution) int {
		return strings.Compare(fmt.Sprint(a.Refusal), fmt.Sprint(b.Refusal)) // keys of one agent are in no order
	})
	return append(out, tracker.resolved, logged.String())
}

// A report's memory is somebody else's after Add: nothing that comes out then
// or later is in it.
func TestAddKeepsNoMemory(t *testing.T) {
	want := everyPath(t, func(b *Batcher, r agent.MetadataReport) []agent.Refusal { return b.Add(now, r) })
	got := everyPath(t, func(b *Batcher, r agent.MetadataReport) []agent.Refusal {
		r, spoil := borrowed(r)
		defer spoil()
		return b.Add(now, r)
	})
	require.Equal(t, want, got)
	all := fmt.Sprintf("%+v", want)
	for _, path := range []string{
		"key_bytes", "key_length", "empty_key", "invalid_key", "no new key now", "value of 4000 bytes exceeded", "error of 4000 bytes exceeded",
		"a\uFFFDb", "database refused metadata",
	} {
		require.Contains(t, all, path)
	}
}
