package batcher

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/documented"
)

func gather(t *testing.T, reg *prometheus.Registry) map[string]*dto.MetricFamily {
	families, err := reg.Gather()
	require.NoError(t, err)
	byName := make(map[string]*dto.MetricFamily)
	for _, f := range families {
		byName[f.GetName()] = f
	}
	return byName
}

// value returns the value of a counter without labels.
func value(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	f := gather(t, reg)[name]
	require.NotNil(t, f, name)
	return f.GetMetric()[0].GetCounter().GetValue()
}

// The families of Coder are as documented, and there before the first flush.
func TestDocumentedFamilies(t *testing.T) {
	reg := prometheus.NewRegistry()
	_, err := New(&fakeStore{}, &fakePublisher{}, Options{}, reg, quiet)
	require.NoError(t, err)
	families := gather(t, reg)

	seen := 0
	for _, want := range documented.Families() {
		if want.Origin != "metadata-batcher" {
			continue
		}
		seen++
		name, labels := want.Name, want.Labels
		f := families[name]
		require.NotNil(t, f, name)
		require.Equal(t, strings.ToUpper(want.Type), f.GetType().String(), name)
		require.Equal(t, want.Help, f.GetHelp(), name)
		var reasons []string
		for _, m := range f.GetMetric() {
			var names []string
			if len(m.GetLabel()) > 0 {
				names = append(names, m.GetLabel()[0].GetName())
				reasons = append(reasons, m.GetLabel()[0].GetValue())
			}
			require.Equal(t, labels, names, name)
			require.LessOrEqual(t, len(m.GetLabel()), 1, name)
			var bounds []string
			for _, b := range m.GetHistogram().GetBucket() {
				bounds = append(bounds, strconv.FormatFloat(b.GetUpperBound(), 'g', -1, 64))
			}
			require.Equal(t, want.Buckets, bounds, name)
		}
		if slices.Equal(labels, []string{"reason"}) {
			require.Equal(t, []string{"capacity", "scheduled", "shutdown"}, slices.Sorted(slices.Values(reasons)), name)
		}
	}
	require.Equal(t, 7, seen)
}

func TestOwnFamilies(t *testing.T) {
	reg := prometheus.NewRegistry()
	store := &fakeStore{rejects: func(r agent.Metadata) bool { return r.Value == "bad" }}
	b, err := New(store, &fakePublisher{}, Options{}, reg, quiet)
	require.NoError(t, err)
	b.Add(now, report(id(1), 1, 1, nil, "a=1", "a=2", "b=bad", "c=1"))
	flushAll(t, b)
	b.Add(now, report(id(1), 0, 1, nil, "a=1", "=empty"))
	flushAll(t, b)
	b.Add(now, report(id(1), 1, 2, nil, "a=1"))
	store.before = func(context.Context, []agent.Metadata) error { return errDown }
	require.Error(t, b.flushWaiting(t.Context(), t.Context()))

	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP agentstatsd_metadata_dropped_entries_total Metadata entries that were not stored, nor a newer value of their key.
# TYPE agentstatsd_metadata_dropped_entries_total counter
agentstatsd_metadata_dropped_entries_total{reason="agent_share"} 0
agentstatsd_metadata_dropped_entries_total{reason="capacity"} 0
agentstatsd_metadata_dropped_entries_total{reason="deregistered"} 0
agentstatsd_metadata_dropped_entries_total{reason="empty_key"} 1
agentstatsd_metadata_dropped_entries_total{reason="invalid_key"} 0
agentstatsd_metadata_dropped_entries_total{reason="key_bytes"} 0
agentstatsd_metadata_dropped_entries_total{reason="key_length"} 0
agentstatsd_metadata_dropped_entries_total{reason="owner_share"} 0
agentstatsd_metadata_dropped_entries_total{reason="rejected"} 1
# HELP agentstatsd_metadata_entries_total Metadata entries by what became of them: received is the sum of the others and of those pending.
# TYPE agentstatsd_metadata_entries_total counter
agentstatsd_metadata_entries_total{outcome="coalesced"} 2
agentstatsd_metadata_entries_total{outcome="dropped"} 2
agentstatsd_metadata_entries_total{outcome="flushed"} 2
agentstatsd_metadata_entries_total{outcome="received"} 7
agentstatsd_metadata_entries_total{outcome="unchanged"} 0
# HELP agentstatsd_metadata_flush_errors_total Flushes of metadata that the database did not take; they are tried again.
# TYPE agentstatsd_metadata_flush_errors_total counter
agentstatsd_metadata_flush_errors_total 1
# HELP agentstatsd_metadata_pending Metadata entries that wait for the database or are being written.
# TYPE agentstatsd_metadata_pending gauge
agentstatsd_metadata_pending 1
# HELP agentstatsd_metadata_quarantined_agents Agents whose metadata is written apart, a few rows at a time, as the database refused some of it.
# TYPE agentstatsd_metadata_quarantined_agents gauge
agentstatsd_metadata_quarantined_agents 1
# HELP agentstatsd_metadata_quarantines_total Times that an agent's metadata began to be written apart, as the database refused some of it.
# TYPE agentstatsd_metadata_quarantines_total counter
agentstatsd_metadata_quarantines_total 1
# HELP coderd_agentapi_metadata_batches_total Total number of metadata batches flushed.
# TYPE coderd_agentapi_metadata_batches_total counter
coderd_agentapi_metadata_batches_total{reason="capacity"} 0
coderd_agentapi_metadata_batches_total{reason="scheduled"} 3
coderd_agentapi_metadata_batches_total{reason="shutdown"} 0
# HELP coderd_agentapi_metadata_flushed_total Total number of unique metadatas flushed.
# TYPE coderd_agentapi_metadata_flushed_total counter
coderd_agentapi_metadata_flushed_total 2
`), "agentstatsd_metadata_dropped_entries_total", "agentstatsd_metadata_entries_total",
		"agentstatsd_metadata_flush_errors_total", "agentstatsd_metadata_pending",
		"agentstatsd_metadata_quarantined_agents", "agentstatsd_metadata_quarantines_total",
		"coderd_agentapi_metadata_batches_total", "coderd_agentapi_metadata_flushed_total"))

	families, err := reg.Gather()
	require.NoError(t, err)
	own := slices.DeleteFunc(families, func(f *dto.MetricFamily) bool { return !strings.HasPrefix(f.GetName(), "agentstatsd_") })
	require.Len(t, own, 11)
	problems, err := promlint.NewWithMetricFamilies(own).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
}

// The numbers of what is pending are those of one moment, its age included.
func TestPendingGauges(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		store := &fakeStore{before: func(context.Context, []agent.Metadata) error {
			time.Sleep(2 * time.Second)
			return nil
		}}
		b, err := New(store, &fakePublisher{}, Options{BatchSize: 5, MaxPending: 10, MaxPendingPerAgent: 5, MaxPendingPerOwner: 7}, reg, quiet)
		require.NoError(t, err)
		gauge := func(name string) (values []float64) {
			for _, m := range gather(t, reg)[name].GetMetric() {
				values = append(values, m.GetGauge().GetValue())
			}
			return values
		}
		require.Equal(t, []float64{0}, gauge("agentstatsd_metadata_oldest_pending_seconds"))
		add := func(agentID, owner byte, entries ...string) {
			r := report(id(agentID), 1, 1, nil, entries...)
			r.Owner = id(owner)
			b.Add(time.Now(), r)
		}
		add(1, 8, "a=1", "b=1")
		time.Sleep(3 * time.Second)
		add(2, 8, "a=1")
		add(3, 9, "a=1")
		require.Equal(t, []float64{3}, gauge("agentstatsd_metadata_oldest_pending_seconds"))
		// By what: in all, of one agent, of one owner.
		require.Equal(t, []float64{10, 5, 7}, gauge("agentstatsd_limit"))
		require.Equal(t, []float64{4, 2, 3}, gauge("agentstatsd_usage"))
		require.Equal(t, []float64{0}, gauge("agentstatsd_metadata_last_flush_seconds"))
		flushAll(t, b)
		require.Equal(t, []float64{0}, gauge("agentstatsd_metadata_oldest_pending_seconds"))
		require.Equal(t, []float64{2}, gauge("agentstatsd_metadata_last_flush_seconds"))
		require.Equal(t, []float64{0, 0, 0}, gauge("agentstatsd_usage"))
	})
}

// Coder's counter has what a flush brought to the database, whether that wrote it or had
// it already; the service's own counts the two apart.
func TestUnchangedEntriesAreFlushed(t *testing.T) {
	reg := prometheus.NewRegistry()
	b, err := New(&fakeStore{}, &fakePublisher{}, Options{}, reg, quiet)
	require.NoError(t, err)
	for range 2 {
		b.Add(now, report(id(1), 1, 1, nil, "a=1"))
		flushAll(t, b)
	}
	l, _ := b.counts()
	require.Equal(t, ledger{received: 2, flushed: 1, unchanged: 1}, l)
	require.Equal(t, 2.0, value(t, reg, "coderd_agentapi_metadata_flushed_total"))
}

// The size of a batch is observed before a flush, also one that fails; its
// time after a good one.
func TestBatchObservations(t *testing.T) {
	reg := prometheus.NewRegistry()
	store := &fakeStore{}
	b, err := New(store, &fakePublisher{}, Options{BatchSize: 4}, reg, quiet)
	require.NoError(t, err)
	count := func(name string) (n, sum int) {
		for _, m := range gather(t, reg)[name].GetMetric() {
			n += int(m.GetHistogram().GetSampleCount())
			sum += int(m.GetHistogram().GetSampleSum())
		}
		return n, sum
	}
	b.Add(now, report(id(1), 1, 1, nil, "a=1", "b=1", "c=1"))
	b.Add(now, report(id(2), 1, 1, nil, "a=1", "b=1"))
	check := func(flushes, agents, rows, good int) {
		n, sum := count("coderd_agentapi_metadata_batch_size")
		require.Equal(t, []int{flushes, rows}, []int{n, sum})
		n, sum = count("coderd_agentapi_metadata_batch_utilization")
		require.Equal(t, []int{agents, rows}, []int{n, sum})
		n, _ = count("coderd_agentapi_metadata_flush_duration_seconds")
		require.Equal(t, good, n)
	}
	store.before = func(context.Context, []agent.Metadata) error {
		check(1, 2, 4, 0)
		return errDown
	}
	require.Error(t, b.flushWaiting(t.Context(), t.Context()))
	check(1, 2, 4, 0)
	store.before = nil
	flushAll(t, b)
	check(3, 5, 9, 2)
}
