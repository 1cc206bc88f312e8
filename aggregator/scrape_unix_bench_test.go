//go:build unix

package aggregator

import (
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkConcurrentScrapes compares two scrapes with gzip that begin at the same
// time with one, of 100,000 series with new values: x-cpu, x-time.
func BenchmarkConcurrentScrapes(b *testing.B) {
	const n = 100_000
	a := fleetOf(b, n, Options{})
	h := newScrape(b, a)
	reports := make([]*report, n/perAgent)
	for i := range reports {
		reports[i] = benchReport(i, 0)
	}
	for _, c := range []struct{ name, accept string }{{"text", textType}, {"protobuf", protoType}} {
		b.Run(c.name, func(b *testing.B) {
			run := func(scrapes int) (cpu, took time.Duration) {
				for i, r := range reports {
					for j := range r.samples {
						r.samples[j].Value += 0.5
					}
					a.Report(benchID(i), 1, time.Now(), r)
				}
				cpu, start := cpuTime(b), time.Now()
				var wg sync.WaitGroup
				for range scrapes {
					wg.Go(func() { serve(b, h, c.accept, "gzip") })
				}
				wg.Wait()
				return cpuTime(b) - cpu, time.Since(start)
			}
			var cpu, took [2]time.Duration
			for b.Loop() {
				for i := range cpu {
					c, t := run(i + 1)
					cpu[i] += c
					took[i] += t
				}
			}
			b.ReportMetric(float64(cpu[1])/float64(cpu[0]), "x-cpu")
			b.ReportMetric(float64(took[1])/float64(took[0]), "x-time")
		})
	}
}

// cpuTime is what the process has used.
func cpuTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	require.NoError(tb, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
