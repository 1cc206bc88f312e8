//go:build !race

package scrape

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/metrics"
)

// With the race detector pools drop things at random.

// What a scrape allocates does not depend on how many segments it has.
func TestPipelineAllocations(t *testing.T) {
	text := benchText(100)
	for _, zip := range []bool{false, true} {
		var s metrics.Segment = segmentFunc(func() []byte { return text })
		for _, n := range []int{10, 200} {
			scrape := func() {
				p := newPipeline(io.Discard, zip)
				for range n {
					_, _ = p.Write(text[:1000])
					_ = p.WriteSegment(s)
				}
				_ = p.finish()
				p.release()
			}
			scrape()
			// What pools may have to make anew.
			require.LessOrEqual(t, testing.AllocsPerRun(3, scrape), 100.0, "%d segments", n)
		}
	}
}
