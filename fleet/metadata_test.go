package fleet

import (
	"fmt"
	"testing"

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
