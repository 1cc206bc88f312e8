package pages

import (
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// numbers adds 0 to n-1, and returns how it ended.
func numbers(n int, end error) func(add func() *int) error {
	return func(add func() *int) error {
		for i := range n {
			row := add()
			if row == nil {
				return ErrStopped
			}
			*row = i
		}
		return end
	}
}

func TestEach(t *testing.T) {
	for _, n := range []int{0, 1, 3, 4, 100} {
		var got, sizes []int
		require.NoError(t, Each(3, numbers(n, nil), func(page []int) error {
			got, sizes = append(got, page...), append(sizes, len(page))
			return nil
		}))
		require.Len(t, got, n)
		require.True(t, slices.IsSorted(got))
		require.Len(t, sizes, (n+2)/3)
	}
}

func TestEachEnds(t *testing.T) {
	broken, enough := errors.New("broken"), errors.New("enough")
	seen := 0
	require.ErrorIs(t, Each(3, numbers(5, broken), func(page []int) error { seen += len(page); return nil }), broken)
	require.Equal(t, 3, seen, "a page that is not full is not handled")

	ended := make(chan error, 1)
	pages := 0
	require.ErrorIs(t, Each(3, func(add func() *int) error {
		err := numbers(1000, nil)(add)
		ended <- err
		return err
	}, func([]int) error {
		if pages++; pages == 2 {
			return enough
		}
		return nil
	}), enough)
	require.Equal(t, 2, pages)
	require.ErrorIs(t, <-ended, ErrStopped)

	// Of a handle that panics the read ends, too, before the panic goes on.
	require.Panics(t, func() {
		_ = Each(3, func(add func() *int) error {
			err := numbers(1000, nil)(add)
			ended <- err
			return err
		}, func([]int) error { panic("at once") })
	})
	require.ErrorIs(t, <-ended, ErrStopped)
}

// A read may itself handle the pages of another one. Both end with the outer handle.
func TestEachOfEach(t *testing.T) {
	doubled := func(n int, end error) func(add func() *int) error {
		return func(add func() *int) error {
			return Each(2, numbers(n, end), func(page []int) error {
				for _, number := range page {
					row := add()
					if row == nil {
						return ErrStopped
					}
					*row = 2 * number
				}
				return nil
			})
		}
	}
	var got []int
	collect := func(page []int) error { got = append(got, page...); return nil }
	require.NoError(t, Each(3, doubled(5, nil), collect))
	require.Equal(t, []int{0, 2, 4, 6, 8}, got)

	broken, enough := errors.New("broken"), errors.New("enough")
	require.ErrorIs(t, Each(3, doubled(5, broken), collect), broken)
	require.ErrorIs(t, Each(3, doubled(1000, nil), func([]int) error { return enough }), enough)
}
