package parts

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestSized(t *testing.T) {
	lengths := func(messages []*agentstatsv1.Workspace) []int {
		var lengths []int
		var all []*agentstatsv1.Workspace
		for part := range sized(messages) {
			lengths = append(lengths, len(part))
			all = append(all, part...)
		}
		require.Equal(t, len(messages), len(all))
		return lengths
	}
	workspaces := func(n, bytes int) []*agentstatsv1.Workspace {
		all := make([]*agentstatsv1.Workspace, n)
		for i := range all {
			all[i] = &agentstatsv1.Workspace{Name: strings.Repeat("n", bytes)}
		}
		return all
	}
	require.Empty(t, lengths(nil))
	require.Equal(t, []int{1000, 1000, 1}, lengths(workspaces(2001, 10)), "by number")
	require.Equal(t, []int{25, 25, 10}, lengths(workspaces(60, 10<<10)), "by bytes")
	require.Equal(t, []int{1, 1}, lengths(workspaces(2, 1<<20)), "one is always sent")
}
