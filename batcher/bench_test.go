package batcher

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// benchReports are reports of n agents with 10 keys each.
func benchReports(n int) []agent.MetadataReport {
	reports := make([]agent.MetadataReport, n)
	for i := range reports {
		reports[i].Tracker = &nullTracker{}
		binary.BigEndian.PutUint64(reports[i].Agent[:], uint64(i)+1)
		for k := range 10 {
			reports[i].Entries = append(reports[i].Entries, agent.MetadataEntry{
				Key: fmt.Sprintf("%d_metadata_key", k), Value: "0.42 load, 3.1/16 GiB memory, 40%",
			})
		}
	}
	return reports
}

// A report of 10 keys in turn from 10,000 agents whose keys all wait, with the
// values of the report before.
func BenchmarkAddKnown10(b *testing.B) { benchmarkAdd(b, func(*agent.MetadataReport) {}) }

// The same with other values.
func BenchmarkAddChanged10(b *testing.B) {
	values := [2]string{"1.42 load, 3.2/16 GiB memory, 41%", "2.42 load, 3.3/16 GiB memory, 42%"}
	benchmarkAdd(b, func(r *agent.MetadataReport) {
		for k := range r.Entries {
			r.Entries[k].Value = values[r.Order.Sequence%2]
		}
	})
}

func benchmarkAdd(b *testing.B, change func(*agent.MetadataReport)) {
	batcher := newBatcher(b, &fakeStore{}, Options{})
	reports := benchReports(10_000)
	for _, r := range reports {
		batcher.Add(now, r)
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		r := &reports[i]
		i = (i + 1) % len(reports)
		r.Order.Sequence++
		change(r)
		batcher.Add(now, *r)
	}
}

// The same when none of the keys waits, 50 reports in each iteration.
func BenchmarkAddNew10(b *testing.B) {
	batcher := newBatcher(b, &switchStore{}, Options{})
	reports := benchReports(50)
	b.ReportAllocs()
	for b.Loop() {
		for i := range reports {
			reports[i].Order.Sequence++
			batcher.Add(now, reports[i])
		}
		b.StopTimer()
		require.NoError(b, batcher.flushWaiting(b.Context(), b.Context()))
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(reports)), "ns/report")
}

// What the limits cost a report of 10 keys that is within them.
func BenchmarkLimitReport10(b *testing.B) {
	entries := benchReports(1)[0].Entries
	var kept []agent.MetadataEntry
	b.ReportAllocs()
	for b.Loop() {
		var refused refusals
		kept = limitReport(kept[:0], entries, &refused)
	}
}

// What a flush of 500 rows costs beside the database, of n that wait: it fails,
// so that all of them wait again.
func BenchmarkFlush500(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint("Of", n), func(b *testing.B) {
			batcher := newBatcher(b, &switchStore{err: errDown}, Options{})
			for _, r := range benchReports(n / 10) {
				batcher.Add(now, r)
			}
			b.ReportAllocs()
			for b.Loop() {
				if n, err := batcher.flushReady(b.Context(), flushScheduled, 500); n != 500 || err == nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// The same of 500 that wait, when the flush is good: 50 agents are acked.
func BenchmarkFlush500Written(b *testing.B) {
	batcher := newBatcher(b, &switchStore{}, Options{})
	batcher.publisher = nullPublisher{}
	reports := benchReports(50)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range reports {
			reports[i].Order.Sequence++
			batcher.Add(now, reports[i])
		}
		b.StartTimer()
		if n, err := batcher.flushReady(b.Context(), flushScheduled, 500); n != 500 || err != nil {
			b.Fatal(n, err)
		}
	}
}

// switchStore takes no time, fails if it is to, and keeps nothing.
type switchStore struct {
	err     error
	changed []agent.ID
}

func (s *switchStore) UpsertMetadata(_ context.Context, rows []agent.Metadata) ([]agent.ID, []agent.StoredEpoch, error) {
	s.changed = s.changed[:0]
	for i := range rows {
		s.changed = append(s.changed, rows[i].Agent)
	}
	return s.changed, nil, s.err
}

type nullPublisher struct{}

func (nullPublisher) PublishMetadata(context.Context, []agent.ID) error { return nil }

// nullTracker is not empty, so that each has an address of its own.
type nullTracker struct{ _ byte }

func (*nullTracker) AddPending(int64)           {}
func (*nullTracker) Resolve([]agent.Resolution) {}
func (*nullTracker) Supersede(int64)            {}
