package arena

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// What is taken of the queue is what was added before a generation, each line once, and no
// chunk is longer than it may be: nobody waits for a long list to be copied.
func TestRetiredLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q retiredLines
		var want []retiredLine
		generation := uint32(1)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				for range rapid.SampledFrom([]int{1, 7, retiredChunk, 3 * retiredChunk}).Draw(t, "lines") {
					l := retiredLine{slot: uint32(len(want)), last: generation}
					q.add(l)
					want = append(want, l)
				}
			},
			"begin": func(*rapid.T) { generation++ },
			"take": func(t *rapid.T) {
				oldest := rapid.Uint32Range(0, generation+1).Draw(t, "oldest")
				var taken []retiredLine
				for some := q.takeBefore(oldest); len(some) > 0; some = q.takeBefore(oldest) {
					taken = append(taken, some...)
				}
				n := slices.IndexFunc(want, func(l retiredLine) bool { return l.last >= oldest })
				if n < 0 {
					n = len(want)
				}
				require.True(t, slices.Equal(want[:n], taken), "%v, %v", want[:n], taken)
				want = want[n:]
			},
			"": func(t *rapid.T) {
				left := 0
				for _, chunk := range q.chunks {
					require.LessOrEqual(t, cap(chunk), retiredChunk)
					left += len(chunk)
				}
				require.Equal(t, len(want), left)
			},
		})
	})
}
