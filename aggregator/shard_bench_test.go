package aggregator

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkShards scrapes a million series and ten, all with new values, as a whole and in four
// shards at once. x-million is the time for each series, as a multiple of that at a
// million.
func BenchmarkShards(b *testing.B) {
	million := make(map[string]float64)
	for _, n := range []int{1_000_000, 10_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkShards(b, n, million) })
	}
}

func benchmarkShards(b *testing.B, n int, million map[string]float64) {
	a := fleetOf(b, n, limitsFor(n))
	h := newScrape(b, a)
	round := 0
	for _, c := range []struct {
		encoding string
		shards   int
	}{{"identity", 1}, {"identity", 4}, {"gzip", 1}, {"gzip", 4}} {
		name := fmt.Sprintf("%s in %d", c.encoding, c.shards)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				round++
				for i := range n / perAgent {
					a.Report(benchID(i), 1, time.Now(), benchReport(i, round))
				}
				b.StartTimer()
				var all sync.WaitGroup
				for shard := range c.shards {
					all.Go(func() {
						r := httptest.NewRequest(http.MethodGet, fmt.Sprintf("/metrics?shard=%d/%d", shard, c.shards), nil)
						r.Header.Set("Accept", textType)
						r.Header.Set("Accept-Encoding", c.encoding)
						h.ServeHTTP(&discard{header: make(http.Header)}, r)
					})
				}
				all.Wait()
			}
			perSeries := b.Elapsed().Seconds() / float64(b.N) / float64(n)
			b.ReportMetric(perSeries*1e9, "ns/series")
			if n == 1_000_000 {
				million[name] = perSeries
			}
			require.NotZero(b, million[name])
			b.ReportMetric(perSeries/million[name], "x-million")
		})
	}
}
