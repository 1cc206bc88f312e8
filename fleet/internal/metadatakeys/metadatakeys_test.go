package metadatakeys_test

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/metadatakeys"
)

// admitters are what admits the keys a and b, by the template or as the first ones.
func admitters() map[string]func([]agent.MetadataEntry) ([]agent.MetadataEntry, *agent.Refusal) {
	var keys metadatakeys.Keys
	return map[string]func([]agent.MetadataEntry) ([]agent.MetadataEntry, *agent.Refusal){
		"declared": func(entries []agent.MetadataEntry) ([]agent.MetadataEntry, *agent.Refusal) {
			return metadatakeys.AdmitDeclared(entries, []string{"a", "b"})
		},
		"first": func(entries []agent.MetadataEntry) ([]agent.MetadataEntry, *agent.Refusal) {
			return keys.Admit(entries, 2)
		},
	}
}

// What is refused is named with the limit.
func TestRefusals(t *testing.T) {
	want := map[string]agent.Refusal{
		"declared": {Kind: agent.RefusedNotAllowed, Reason: "undeclared_key", Message: "metadata key: want one of the 2 that the template declares"},
		"first":    {Kind: agent.RefusedLimit, Reason: "too_many_keys", Message: "metadata keys: want at most 2 of an agent whose template declares none (--metadata-max-keys)"},
	}
	for name, admit := range admitters() {
		refusal := want[name]
		refusal.Names, refusal.Count = []string{"c", "d"}, 2
		admitted, refused := admit([]agent.MetadataEntry{{Key: "b"}, {Key: "a"}, {Key: "c"}, {Key: "a", Value: "again"}, {Key: "d"}})
		require.Equal(t, []agent.MetadataEntry{{Key: "b"}, {Key: "a"}, {Key: "a", Value: "again"}}, admitted, name)
		require.Equal(t, &refusal, refused, name)
		_, refused = admit([]agent.MetadataEntry{{Key: "b"}})
		require.Nil(t, refused, name)
	}
}

// The memory of the entries is somebody else's afterwards: nothing that is kept
// or returned is in it.
func TestKeysKeepNoMemory(t *testing.T) {
	for name, admit := range admitters() {
		t.Run(name, func(t *testing.T) {
			pass := func(keys ...string) (admitted int, refused *agent.Refusal) {
				var entries []agent.MetadataEntry
				var memory [][]byte
				for _, key := range keys {
					memory = append(memory, []byte(key))
					b := memory[len(memory)-1]
					entries = append(entries, agent.MetadataEntry{Key: unsafe.String(unsafe.SliceData(b), len(b))})
				}
				entries, refused = admit(entries)
				for _, b := range memory {
					copy(b, strings.Repeat("#", len(b)))
				}
				return len(entries), refused
			}
			admitted, refused := pass("b", "a", "c")
			require.Equal(t, 2, admitted)
			require.Equal(t, []string{"c"}, refused.Names)
			admitted, refused = pass("a", "b", "a", "###", strings.Repeat("\u00e9", 150), "x"+strings.Repeat("\u00e9", 150))
			require.Equal(t, 3, admitted)
			require.Equal(t, []string{"###", strings.Repeat("\u00e9", 100), "x" + strings.Repeat("\u00e9", 99)}, refused.Names)
		})
	}
}

// What cannot be stored takes no place among the agent's keys, nor memory.
func TestKeysThatCannotBeStored(t *testing.T) {
	var keys metadatakeys.Keys
	long := agent.MetadataEntry{Key: strings.Repeat("k", agent.MaxMetadataKeyBytes)}
	tooLong, empty, nul := agent.MetadataEntry{Key: long.Key + "k"}, agent.MetadataEntry{}, agent.MetadataEntry{Key: "a\x00b"}
	admitted, refused := keys.Admit([]agent.MetadataEntry{tooLong, empty, nul, long, {Key: "no room"}, tooLong}, 1)
	require.Equal(t, []agent.MetadataEntry{tooLong, empty, nul, long, tooLong}, admitted)
	require.Equal(t, []string{"no room"}, refused.Names)
	require.Equal(t, metadatakeys.Keys{long.Key}, keys)
}
