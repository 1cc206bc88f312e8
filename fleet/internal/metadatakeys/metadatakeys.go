// Package metadatakeys decides which metadata keys an agent may have.
package metadatakeys

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coder/agentstatsd/agent"
)

// Reasons of refusals.
const (
	ReasonUndeclared = "undeclared_key"
	ReasonTooMany    = "too_many_keys"
)

// AdmitDeclared returns the entries with keys that the template declares, which are sorted,
// and a refusal of the others; nil: there are none. It reuses the memory of entries.
func AdmitDeclared(entries []agent.MetadataEntry, declared []string) ([]agent.MetadataEntry, *agent.Refusal) {
	admitted, names, refused := agent.FilterEntries(entries, func(key string) bool {
		_, found := slices.BinarySearch(declared, key)
		return found
	})
	if refused == 0 {
		return admitted, nil
	}
	return admitted, &agent.Refusal{
		Kind:    agent.RefusedNotAllowed,
		Reason:  ReasonUndeclared,
		Message: fmt.Sprintf("metadata key: want one of the %d that the template declares", len(declared)),
		Names:   names,
		Count:   refused,
	}
}

// Keys are those of an agent whose template declares none, sorted.
type Keys []string

// Admit returns the entries with the first keys, at most limit, and a refusal of the others;
// nil: there are none. It reuses the memory of entries, and copies the keys that it retains.
// Keys that are empty, have a NUL or exceed agent.MaxMetadataKeyBytes pass without being
// counted: the batcher refuses them.
func (k *Keys) Admit(entries []agent.MetadataEntry, limit int) ([]agent.MetadataEntry, *agent.Refusal) {
	admitted, names, refused := agent.FilterEntries(entries, func(key string) bool { return k.admit(key, limit) })
	if refused == 0 {
		return admitted, nil
	}
	return admitted, &agent.Refusal{
		Kind:    agent.RefusedLimit,
		Reason:  ReasonTooMany,
		Message: fmt.Sprintf("metadata keys: want at most %d of an agent whose template declares none (--metadata-max-keys)", limit),
		Names:   names,
		Count:   refused,
	}
}

// admit returns whether the agent may have the key, and remembers it.
func (k *Keys) admit(key string, limit int) bool {
	if key == "" || len(key) > agent.MaxMetadataKeyBytes || strings.IndexByte(key, 0) >= 0 {
		return true
	}
	i, found := slices.BinarySearch(*k, key)
	if found {
		return true
	}
	if len(*k) >= limit {
		return false
	}
	*k = slices.Insert(*k, i, strings.Clone(key))
	return true
}
