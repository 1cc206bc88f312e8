//go:build !race

package arena

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/metrics"
)

// With the race detector pools drop things at random.

// What a scrape allocates does not depend on the number of series.
func TestScrapeAllocations(t *testing.T) {
	for _, n := range []int{100, 20_000} {
		var generations Generations
		f, blocks, slots := lines(&generations, n)
		d := metrics.NewDeflater()
		for name, format := range both {
			begin := format.begin
			for _, zip := range []bool{false, true} {
				w := &inOrder{zip: zip, d: d}
				v := 1000.0
				scrape := func() {
					v++
					for i := range blocks {
						blocks[i].Set(slots[i], v)
					}
					s := begin(w, &generations, metrics.Shard{})
					_ = s.Close(s.Family(f, Header{Type: metrics.Gauge}))
				}
				scrape()
				// What pools may have to make anew.
				require.LessOrEqual(t, testing.AllocsPerRun(5, scrape), 20.0, "%d series, %s, gzip: %v", n, name, zip)
			}
		}
	}
}
