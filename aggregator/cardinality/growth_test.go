package cardinality

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// More names than are sampled have no growth if they were not among them.
func TestGrowthOfTheLargest(t *testing.T) {
	var h History
	start := time.Now()
	sampleOf := func(at time.Time, names int) {
		c := NewCensus("", "", AllDimensions()...)
		for i := range names {
			c.Add(fmt.Sprint(i), nil, names-i)
		}
		h.Add(at, c)
	}
	compare := func(now time.Time, name string) Count {
		r := Result{Counts: []Count{{Name: name, Series: 5000}}}
		h.Compare(now, ByFamily, &r)
		return r.Counts[0]
	}
	sampleOf(start, MaxGrowing)
	require.Equal(t, 5000.0, compare(start.Add(time.Minute), "new").Growth, "there was none")
	sampleOf(start.Add(time.Minute), MaxGrowing+1)
	require.Equal(t, 4000.0, compare(start.Add(2*time.Minute), "1").Growth, "there were 1,000")
	require.False(t, compare(start.Add(2*time.Minute), "new").GrowthKnown)
	require.False(t, compare(start.Add(2*time.Minute), fmt.Sprint(MaxGrowing)).GrowthKnown)
}
