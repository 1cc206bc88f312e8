package update

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/bench/load"
)

func TestStringMap(t *testing.T) {
	m := newStringMap()
	for n := range 3 {
		for round := range 2 {
			r := load.NewReport(n, samples)
			r.Set(round)
			m.report(load.Identity(n), time.Now(), r)
		}
	}
	require.Len(t, m.series, 3*samples)
}

func TestSeriesKey(t *testing.T) {
	labels := []agent.Label{{Name: "b", Value: "2"}, {Name: "a", Value: "1"}}
	reversed := slices.Clone(labels)
	slices.Reverse(reversed)
	require.Equal(t, seriesKey("x", labels), seriesKey("x", reversed))
	require.NotEqual(t, seriesKey("x", labels), seriesKey("y", labels))
	require.NotEqual(t, seriesKey("x", labels), seriesKey("x", labels[:1]))
}
