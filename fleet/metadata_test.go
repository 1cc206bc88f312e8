package fleet

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// requestOf gives use a request of an agent whose template declares keys.
func requestOf(t testing.TB, opts Options, declared []string, use func(Request)) {
	j := &journal{}
	p := newPartsOn(t, opts, newMemStore(j), j)
	require.NoError(t, p.Load(t.Context()))
	_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{with(registration(1, 1, 1), func(r *agent.Registration) {
		r.MetadataKeys = declared
	})}})
	require.NoError(t, err)
	request(t, p, 1, use)
}

// keys10 are the keys that an agent has in the tests of its fast path.
func keys10() (keys []string, entries []agent.MetadataEntry) {
	for i := range 10 {
		keys = append(keys, fmt.Sprintf("%d_metadata_key", i))
		entries = append(entries, agent.MetadataEntry{Key: keys[i], Value: "0.42 load"})
	}
	return keys, entries
}

func TestMetadataKeysAllocations(t *testing.T) {
	keys, entries := keys10()
	for _, declared := range [][]string{keys, nil} {
		requestOf(t, Options{}, declared, func(r Request) {
			admit := func() {
				if kept, refused := r.AdmitMetadata(entries); len(kept) != 10 || refused != nil {
					t.Error(kept, refused)
				}
			}
			require.Zero(t, testing.AllocsPerRun(100, admit), "%d declared", len(declared))
		})
	}
}

// The memory of the entries is somebody else's afterwards: nothing that is kept
// or returned is in it.
func TestMetadataKeysKeepNoMemory(t *testing.T) {
	for _, declared := range [][]string{{"a", "b"}, nil} {
		requestOf(t, Options{MaxMetadataKeys: 2}, declared, func(r Request) {
			admit := func(keys ...string) (kept int, refused []agent.Refusal) {
				var entries []agent.MetadataEntry
				var memory [][]byte
				for _, key := range keys {
					memory = append(memory, []byte(key))
					b := memory[len(memory)-1]
					entries = append(entries, agent.MetadataEntry{Key: unsafe.String(unsafe.SliceData(b), len(b))})
				}
				entries, refused = r.AdmitMetadata(entries)
				for _, b := range memory {
					copy(b, strings.Repeat("#", len(b)))
				}
				return len(entries), refused
			}
			kept, refused := admit("b", "a", "c")
			require.Equal(t, 2, kept)
			require.Equal(t, []string{"c"}, refused[0].Names)
			kept, refused = admit("a", "b", "a", "###", strings.Repeat("\u00e9", 150), "x"+strings.Repeat("\u00e9", 150))
			require.Equal(t, 3, kept)
			require.Equal(t, []string{"###", strings.Repeat("\u00e9", 100), "x" + strings.Repeat("\u00e9", 99)}, refused[0].Names)
		})
	}
}

// What cannot be stored takes no place among the agent's keys, nor memory.
func TestMetadataKeysTooLong(t *testing.T) {
	requestOf(t, Options{MaxMetadataKeys: 1}, nil, func(r Request) {
		long := agent.MetadataEntry{Key: strings.Repeat("k", agent.MaxMetadataKeyBytes)}
		tooLong := agent.MetadataEntry{Key: long.Key + "k"}
		kept, refused := r.AdmitMetadata([]agent.MetadataEntry{tooLong, long, {Key: "no room"}, tooLong})
		require.Equal(t, []agent.MetadataEntry{tooLong, long, tooLong}, kept)
		require.Equal(t, []string{"no room"}, refused[0].Names)
	})
}

func BenchmarkAdmitMetadata10(b *testing.B) {
	keys, entries := keys10()
	for name, declared := range map[string][]string{"Declared": keys, "Known": nil} {
		b.Run(name, func(b *testing.B) {
			requestOf(b, Options{}, declared, func(r Request) {
				b.ReportAllocs()
				for b.Loop() {
					if kept, refused := r.AdmitMetadata(entries); len(kept) != 10 || refused != nil {
						b.Fatal(kept, refused)
					}
				}
			})
		})
	}
}
