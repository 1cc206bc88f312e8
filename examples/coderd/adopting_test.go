package coderd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// maxAdoptingLines is what adopting push and relay may take.
const maxAdoptingLines = 10

// diff returns the lines that are only in one of the texts, in order, as diff -u marks
// them: with the fewest of them.
func diff(before, after []string) (changed []string) {
	// common[i][j] is how many lines before[i:] and after[j:] have in common.
	common := make([][]int, len(before)+1)
	for i := range common {
		common[i] = make([]int, len(after)+1)
	}
	for i := len(before) - 1; i >= 0; i-- {
		for j := len(after) - 1; j >= 0; j-- {
			if before[i] == after[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case i < len(before) && j < len(after) && before[i] == after[j]:
			i, j = i+1, j+1
		case j == len(after) || i < len(before) && common[i+1][j] >= common[i][j+1]:
			changed = append(changed, "-"+before[i])
			i++
		default:
			changed = append(changed, "+"+after[j])
			j++
		}
	}
	return changed
}

func readLines(t *testing.T, path ...string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	require.NoError(t, err)
	return strings.Split(string(text), "\n")
}

// Adopting push and relay takes ten lines, and docs/adopting.md shows them as they are.
func TestAdoptingTakesTenLines(t *testing.T) {
	after := readLines(t, "after", "coderd.go")
	changed := diff(readLines(t, "before", "coderd.go"), after)
	added := 0
	for _, line := range changed {
		if strings.HasPrefix(line, "+") {
			added++
		}
	}
	require.NotZero(t, added)
	require.LessOrEqual(t, added, maxAdoptingLines, "lines:\n%s", strings.Join(changed, "\n"))
	require.LessOrEqual(t, len(changed)-added, 1, "lines that are replaced")

	doc := readLines(t, "..", "..", "docs", "adopting.md")
	var shown []string
	inside := false
	for _, line := range doc {
		switch {
		case line == "```diff":
			require.Empty(t, shown, "one diff")
			inside = true
		case line == "```":
			inside = false
		case !inside:
		case strings.HasPrefix(line, "+"), strings.HasPrefix(line, "-"):
			shown = append(shown, line)
		case line != " ...":
			require.Contains(t, after, strings.TrimPrefix(line, " "), "what stands around")
		}
	}
	require.Equal(t, changed, shown)
}
