package metrics

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseShard(t *testing.T) {
	for text, want := range map[string]Shard{
		"0/1": {0, 1}, "0/4": {0, 4}, "3/4": {3, 4}, "63/64": {63, 64},
	} {
		got, err := ParseShard(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
		require.Equal(t, want.Count == 1, got.Whole(), text)
	}
	for _, text := range []string{"", "1", "/", "4/4", "0/0", "-1/4", "0/65", "0/4/1", "+0/4", " 0/4", "0x0/4", "256/257", "0/"} {
		_, err := ParseShard(text)
		require.ErrorContains(t, err, fmt.Sprintf("got %q", text), text)
		require.ErrorContains(t, err, "COUNT 1 to 64")
	}
}

// Keys are the same for all processes, and spread series evenly over any number of shards.
func TestShardKeys(t *testing.T) {
	require.Equal(t, ShardKey(0xac), ShardKeyOf("alice", "dev"))
	require.NotEqual(t, ShardKeyOf("ab", "c"), ShardKeyOf("a", "bc"))
	const workspaces = 20_000
	for _, count := range []int{2, 3, 4, 7, 16} {
		has := make([]int, count)
		for i := range workspaces {
			key := ShardKeyOf(fmt.Sprintf("user%d", i/3), fmt.Sprintf("workspace-%d", i%3))
			for index := range count {
				if (Shard{index, count}).Has(key) {
					has[index]++
				}
			}
		}
		sum := 0
		for _, n := range has {
			sum += n
			require.InDelta(t, workspaces/count, n, float64(workspaces/count)/4, "%v of %d", has, count)
		}
		require.Equal(t, workspaces, sum)
	}
}
