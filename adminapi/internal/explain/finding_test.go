package explain

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each cause has a rank, a row in the documents, and is in the contract.
func TestCausesAreDocumented(t *testing.T) {
	read := func(path ...string) string {
		text, err := os.ReadFile(filepath.Join(path...))
		require.NoError(t, err)
		return string(text)
	}
	all := func(pattern, text string) (causes []Cause) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			causes = append(causes, Cause(m[1]))
		}
		slices.Sort(causes)
		return causes
	}
	root := filepath.Join("..", "..", "..")
	_, section, _ := strings.Cut(read(root, "docs", "operations.md"), "## Find out why a series is missing\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, contract, _ := strings.Cut(read(root, "proto", "agentstats", "v1", "admin.proto"), "one of a fixed set: ")
	contract, _, _ = strings.Cut(contract, ".\n")

	want := slices.Sorted(slices.Values(ranks))
	require.Equal(t, want, all(` Cause = "([a-z_]+)"`, read("finding.go")), "ranks")
	require.Equal(t, want, all("(?m)^\\| `([a-z_]+)` \\|", section), "docs/operations.md")
	require.Equal(t, want, all(`([a-z]+(?:_[a-z]+)*)(?:,|$)`, contract), "admin.proto")
}
