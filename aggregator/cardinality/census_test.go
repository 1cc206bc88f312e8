package cardinality

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// Values with equal hashes are different values.
func TestEqualHashes(t *testing.T) {
	c := NewCensus("", "", ByLabel, ByLabelValue)
	c.hash = func(string) uint64 { return 7 }
	for range 2 {
		for i := range 3 {
			c.Add("f", []agent.Label{{Name: "l", Value: fmt.Sprint(i)}}, i+1)
		}
	}
	var byLabel, byValue Result
	c.Rank(ByLabel, 10, &byLabel)
	c.Rank(ByLabelValue, 10, &byValue)
	require.Equal(t, []Count{{Name: "l", Series: 12, Values: 3}}, byLabel.Counts)
	require.Equal(t, []Count{
		{Label: "l", Name: "2", Series: 6}, {Label: "l", Name: "1", Series: 4}, {Label: "l", Name: "0", Series: 2},
	}, byValue.Counts)
}

// A Top keeps no more than it must, whatever the order in which values are added.
func TestTop(t *testing.T) {
	const limit, values = 10, 1000
	for _, step := range []int{1, 7, values - 1} {
		top := NewTop(limit, func(a, b int) int { return a - b })
		for i := range values {
			top.Add(i * step % values)
			require.Less(t, len(top.kept), 2*limit)
		}
		require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, top.Sorted())
	}
}
