package logtail

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// All passes on; the newest whole lines stay, however often the ring is filled.
func TestTail(t *testing.T) {
	for _, lines := range []int{0, 1, 1000, 20_000, 30_000, 100_000} {
		var passed bytes.Buffer
		w := New(&passed)
		for i := range lines {
			_, err := fmt.Fprintf(w, "line %d of %d%s\n", i, lines, strings.Repeat(".", i%97))
			require.NoError(t, err)
		}
		tail := string(w.Tail())
		require.LessOrEqual(t, len(tail), Bytes)
		require.True(t, strings.HasSuffix(passed.String(), tail))
		if passed.Len() < Bytes {
			require.Equal(t, passed.String(), tail)
			continue
		}
		require.Greater(t, len(tail), Bytes-200)
		require.True(t, strings.HasPrefix(tail, "line "))
	}
}

func TestTailOfOneLongLine(t *testing.T) {
	w := New(&bytes.Buffer{})
	_, err := w.Write([]byte(strings.Repeat("x", 3*Bytes) + "\nnext\n"))
	require.NoError(t, err)
	require.Equal(t, "next\n", string(w.Tail()))
}
