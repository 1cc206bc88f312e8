package metrics

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxShards is the highest number of shards of an exposition.
const MaxShards = 64

// Shard is one of several parts of an exposition, each of which a scrape of its own takes.
// The zero value is the whole. A series is in one of the parts, the same on all replicas.
type Shard struct {
	// Index is 0 to Count-1. Count is 1 to MaxShards; 0 stands for 1.
	Index, Count int
}

// ParseShard parses "index/count", as 0/4.
func ParseShard(text string) (Shard, error) {
	index, count, ok := strings.Cut(text, "/")
	i, errIndex := strconv.ParseUint(index, 10, 8)
	n, errCount := strconv.ParseUint(count, 10, 8)
	if !ok || errIndex != nil || errCount != nil || n == 0 || n > MaxShards || i >= n {
		return Shard{}, fmt.Errorf("shard: want INDEX/COUNT, COUNT 1 to %d and INDEX from 0 to COUNT-1, got %.20q", MaxShards, text)
	}
	return Shard{Index: int(i), Count: int(n)}, nil
}

// Whole reports whether the shard has all.
func (s Shard) Whole() bool { return s.Count <= 1 }

// Has reports whether the shard has the series with that key.
func (s Shard) Has(key ShardKey) bool { return s.Whole() || int(key)%s.Count == s.Index }

// ShardKey decides in which shard a series is.
type ShardKey uint8

// ShardKeyOf returns the key of the series that a workspace's agents have, so that they are
// in one shard. Any other two texts name a series that is of no workspace.
func ShardKeyOf(username, workspaceName string) ShardKey {
	// FNV-1a, folded: maphash differs between processes.
	h := uint32(2166136261)
	for _, s := range [...]string{username, "\x00", workspaceName} {
		for i := range len(s) {
			h = (h ^ uint32(s[i])) * 16777619
		}
	}
	return ShardKey(h>>24 ^ h>>16 ^ h>>8 ^ h)
}
