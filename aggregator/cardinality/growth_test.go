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

// The newest sample has the largest names, and how much they grew since the one before.
func TestNewestSample(t *testing.T) {
	var h History
	require.Equal(t, &Result{}, h.Newest(ByFamily, 2))
	start := time.Now()
	sampleOf := func(at time.Time, series map[string]int) {
		c := NewCensus("", "", AllDimensions()...)
		for name, n := range series {
			c.Add(name, nil, n)
		}
		h.Add(at, c)
	}
	sampleOf(start, map[string]int{"a": 5, "b": 6, "c": 1})
	require.Equal(t, []Count{{Name: "b", Series: 6}, {Name: "a", Series: 5}}, h.Newest(ByFamily, 2).Counts)
	require.Equal(t, 3, h.Newest(ByFamily, 2).Names)
	sampleOf(start.Add(time.Minute), map[string]int{"a": 9, "b": 6, "d": 2})
	require.Equal(t, &Result{
		Names: 3, GrowthOver: time.Minute,
		Counts: []Count{
			{Name: "a", Series: 9, GrowthKnown: true, Growth: 4}, {Name: "b", Series: 6, GrowthKnown: true}, {Name: "d", Series: 2, GrowthKnown: true, Growth: 2},
		},
	}, h.Newest(ByFamily, 10))
}
