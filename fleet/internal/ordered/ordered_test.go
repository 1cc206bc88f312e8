package ordered

import (
	"cmp"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Many elements and few take different ways to the same list, and the old one stays.
func TestListsAreReplaced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		distinct := func(name string) []int {
			return rapid.SliceOfNDistinct(rapid.IntRange(0, 500), 0, 2*few, rapid.ID[int]).Draw(t, name)
		}
		list := slices.Sorted(slices.Values(distinct("list")))
		before := slices.Clone(list)
		added := slices.DeleteFunc(distinct("added"), func(n int) bool { return slices.Contains(list, n) })
		want := slices.Sorted(slices.Values(slices.Concat(list, added)))
		got := With(list, added, cmp.Compare[int])
		require.True(t, slices.Equal(want, got))

		removed := distinct("removed")
		want = slices.DeleteFunc(slices.Clone(got), func(n int) bool { return slices.Contains(removed, n) })
		require.True(t, slices.Equal(want, Without(got, removed, cmp.Compare[int])))
		require.True(t, slices.Equal(before, list))
	})
}
