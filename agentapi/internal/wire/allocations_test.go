//go:build !race

package wire

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// With the race detector pools drop things at random.

func TestReportAllocations(t *testing.T) {
	perReport := func(samples int) float64 {
		in := newIngester(t)
		var rounds [2][]byte
		for i := range rounds {
			rounds[i] = encoded(t, statsRequest(int64(i+1), wireStats(samples, i)))
		}
		i := 0
		now := time.Now()
		for range 4 { // until the encodings are known and the buffers have grown
			in.take(t, now, rounds[0])
		}
		return testing.AllocsPerRun(100, func() {
			in.take(t, now, rounds[i%2])
			i++
		})
	}
	require.InDelta(t, perReport(1), perReport(300), 1, "none for a sample")
}
