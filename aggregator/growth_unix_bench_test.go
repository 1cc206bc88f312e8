//go:build unix

package aggregator

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkReportOfMany is a report of 30 samples, all with new values, of one agent after the
// other, in no order: of many agents nothing is in the processor's caches. cpu-ns is what it took
// of one core, as other programs may have the cores meanwhile.
func BenchmarkReportOfMany(b *testing.B) {
	for _, n := range growingSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a := fleetOf(b, n, limitsFor(n))
			agents := n / perAgent
			r := benchReport(0, 0)
			now, i := time.Now(), 0
			b.ReportAllocs()
			cpu := cpuTime(b)
			for b.Loop() {
				for j := range r.samples {
					r.samples[j].Value++
				}
				a.Report(benchID(i%agents), 1, now, r)
				i += 7919 // no size is a multiple of this prime
			}
			b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/report")
		})
	}
}
