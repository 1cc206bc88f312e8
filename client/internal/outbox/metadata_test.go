package outbox

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The service trims texts and cuts them at 2048 bytes. It sees of a text that the client
// has cut that it was longer, wherever that has white space, and stores the same of it.
func TestCutTextsAreSeenToBeCut(t *testing.T) {
	const limit = 2048
	for _, space := range []string{" ", "\n", "\u2003", "\u00a0"} {
		for _, before := range []int{1, 2000, limit - 3, limit - 1, limit, limit + 1, maxTextBytes - 1, maxTextBytes} {
			for _, spaces := range []int{1, 2, 50, 3000} {
				for _, after := range []int{0, 1, 3000} {
					text := strings.Repeat("x", before) + strings.Repeat(space, spaces) + strings.Repeat("y", after)
					whole := strings.TrimSpace(text)
					cut := strings.TrimSpace(cutText(text))
					require.LessOrEqual(t, len(cut), maxTextBytes+1)
					require.Equal(t, len(whole) > limit, len(cut) > limit, "%d x, %d of %q, %d y", before, spaces, space, after)
					require.Equal(t, whole[:min(len(whole), limit)], cut[:min(len(cut), limit)])
				}
			}
		}
	}
}
