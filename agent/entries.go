package agent

import "strings"

// maxRefusedKey bounds a key in a refusal, in bytes.
const maxRefusedKey = 200

// FilterEntries keeps the entries whose key is allowed. It returns copies of the first
// refused keys, and the number of all refused ones.
func FilterEntries(entries []MetadataEntry, allowed func(key string) bool) (kept []MetadataEntry, names []string, refused int) {
	kept = entries[:0]
	for i := range entries {
		if allowed(entries[i].Key) {
			kept = append(kept, entries[i])
			continue
		}
		refused++
		if len(names) < MaxRefusalNames {
			names = append(names, strings.Clone(ShortenText(entries[i].Key, maxRefusedKey)))
		}
	}
	return kept, names, refused
}
