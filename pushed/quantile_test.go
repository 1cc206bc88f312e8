package pushed

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// Quantiles are served while one live instance has them, and only then.
func TestQuantiles(t *testing.T) {
	const summary = `
# TYPE new_size_bytes summary
new_size_bytes{quantile="0.9"} 5
new_size_bytes{quantile="0.5"} 3
new_size_bytes_sum 30
new_size_bytes_count 3
`
	const alone = `# TYPE new_size_bytes summary
new_size_bytes{quantile="0.5"} 3
new_size_bytes{quantile="0.9"} 5
new_size_bytes_sum 30
new_size_bytes_count 3
`
	store := new(memory)
	f := open(t, store, Options{})
	require.Empty(t, pushText(t, f, start, 1, 1, summary))
	require.Equal(t, alone, text(t, f))
	check(t, f)

	require.Empty(t, pushText(t, f, start, 2, 1, summary))
	require.Equal(t, "# TYPE new_size_bytes summary\nnew_size_bytes_sum 60\nnew_size_bytes_count 6\n", text(t, f))
	_, err := f.Push(context.Background(), start, agent.Push{Instance: instanceID(2), Snapshot: 2, Final: true})
	require.NoError(t, err)
	const left = `# TYPE new_size_bytes summary
new_size_bytes{quantile="0.5"} 3
new_size_bytes{quantile="0.9"} 5
new_size_bytes_sum 60
new_size_bytes_count 6
`
	require.Equal(t, left, text(t, f))
	require.Equal(t, left, text(t, open(t, store, Options{})), "after a restart of the service")

	f.expire(start.Add(time.Hour))
	require.Equal(t, "# TYPE new_size_bytes summary\nnew_size_bytes_sum 60\nnew_size_bytes_count 6\n", text(t, f))
}
