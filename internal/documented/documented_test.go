package documented

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFamilies(t *testing.T) {
	families := Families()
	require.Len(t, families, 97)
	require.True(t, slices.IsSortedFunc(families, func(a, b Family) int { return strings.Compare(a.Name, b.Name) }))
	for _, f := range families {
		require.NotEmpty(t, f.Help, f.Name)
		require.Contains(t, []string{"counter", "gauge", "histogram", "summary"}, f.Type, f.Name)
		if f.Type == "histogram" && f.Native == "" {
			require.NotEmpty(t, f.Buckets, f.Name)
		}
	}
}
