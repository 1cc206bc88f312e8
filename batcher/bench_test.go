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
		reports[i].Tracker = &fakeTracker{}
		binary.BigEndian.PutUint64(reports[i].Agent[:], uint64(i)+1)
		for k := range 10 {
			reports[i].Entries = append(reports[i].Entries, agent.MetadataEntry{
				Key: fmt.Sprintf("%d_metadata_key", k), Value: "0.42 load, 3.1/16 GiB memory, 40%",
			})
		}
	}
	return reports
}

// A report of 10 keys in turn from 10,000 agents whose keys all wait.
func BenchmarkAddKnown10(b *testing.B) {
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
		batcher.Add(now, *r)
	}
}

// The same when none of the keys waits, and a store that takes no time.
func BenchmarkAddNew10(b *testing.B) {
	batcher := newBatcher(b, &nullStore{}, Options{})
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

// What a flush of 500 rows costs beside the database, of 100,000 that wait: it
// fails, so that all of them wait again.
func BenchmarkFlush500Of100k(b *testing.B) {
	batcher := newBatcher(b, &downStore{}, Options{})
	for _, r := range benchReports(10_000) {
		batcher.Add(now, r)
	}
	b.ReportAllocs()
	for b.Loop() {
		if n, err := batcher.flush(b.Context(), flushScheduled, 500); n != 500 || err == nil {
			b.Fatal(n, err)
		}
	}
}

type nullStore struct{ changed []agent.ID }

func (s *nullStore) UpsertMetadata(_ context.Context, rows []agent.Metadata) ([]agent.ID, error) {
	s.changed = s.changed[:0]
	for i := range rows {
		s.changed = append(s.changed, rows[i].Agent)
	}
	return s.changed, nil
}

type downStore struct{}

func (downStore) UpsertMetadata(context.Context, []agent.Metadata) ([]agent.ID, error) {
	return nil, errDown
}
