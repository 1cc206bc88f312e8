package batcher

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/coder/agentstatsd/agent"
)

// Limits of a report, in bytes: those of Coder.
const (
	// MaxReportKeyBytes is the sum of the keys of one report.
	MaxReportKeyBytes = 6144
	// MaxValueBytes is one value; a longer one is cut.
	MaxValueBytes = 2048
	// MaxErrorBytes is one error text; a longer one is replaced.
	MaxErrorBytes = 2048
)

// maxNameBytes bounds a key in a refusal: see agent.MaxRefusalNames.
const maxNameBytes = 200

// replacement stands for what a text may not have.
const replacement = "\uFFFD"

// limitReport appends to dst the entries that are taken in, in their order and
// within the limits, and adds the others to refused. The entry whose key
// crosses MaxReportKeyBytes is refused, and so are all after it. What it appends
// has strings of entries; what it adds to refused has not.
func limitReport(dst, entries []agent.MetadataEntry, refused *refusals) []agent.MetadataEntry {
	keyBytes := 0
	for i := range entries {
		key := entries[i].Key
		keyBytes += len(key)
		switch {
		case keyBytes > MaxReportKeyBytes:
			if r := refused.add(dropKeyBytes, key); r != nil {
				r.Kind = agent.RefusedLimit
				r.Message = fmt.Sprintf("metadata keys of %d bytes exceeded %d bytes", keyBytes, MaxReportKeyBytes)
			}
		case len(key) > agent.MaxMetadataKeyBytes:
			if r := refused.add(dropKeyLength, key); r != nil {
				r.Message = fmt.Sprintf("metadata key of %d bytes exceeded %d bytes", len(key), agent.MaxMetadataKeyBytes)
			}
		case key == "":
			if r := refused.add(dropEmptyKey, key); r != nil {
				r.Message = "metadata key is empty"
			}
		case strings.IndexByte(key, 0) >= 0 || !utf8.ValidString(key):
			if r := refused.add(dropInvalidKey, key); r != nil {
				r.Message = "metadata key has a NUL byte or is not UTF-8"
			}
		default:
			value, text := limitTexts(entries[i].Value, entries[i].Error)
			dst = append(dst, agent.MetadataEntry{Key: key, Value: value, Error: text, Said: entries[i].Said})
		}
	}
	return dst
}

// limitTexts returns value and error text as they are stored: without white space around
// them, as Coder does. If something was too long, the error text says so. Its number of
// bytes is that of the trimmed text, or of the text after the replacement of what is not
// text.
func limitTexts(value, text string) (string, string) {
	value, valueBytes := limitText(strings.TrimSpace(value), MaxValueBytes)
	text, textBytes := limitText(strings.TrimSpace(text), MaxErrorBytes)
	if valueBytes > MaxValueBytes {
		text = fmt.Sprintf("value of %d bytes exceeded %d bytes", valueBytes, MaxValueBytes)
	}
	if textBytes > MaxErrorBytes {
		text = fmt.Sprintf("error of %d bytes exceeded %d bytes", textBytes, MaxErrorBytes)
	}
	return value, text
}

// limitText returns s as valid UTF-8 without NUL, which PostgreSQL does not take. It is
// cut to at most limit bytes between two characters. The result is s itself, a part of
// it, or a new string. size is what s would have taken.
func limitText(s string, limit int) (text string, size int) {
	if s == "" { // most errors are
		return "", 0
	}
	size = len(s)
	text = cleanText(agent.CutText(s, limit))
	size = max(size, len(text))
	return agent.CutText(text, limit), size
}

func cleanText(s string) string {
	if !utf8.ValidString(s) { // which is several times as fast
		s = strings.ToValidUTF8(s, replacement)
	}
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", replacement)
	}
	return s
}

// refusals are the refusals of one report, one for each reason.
type refusals struct {
	list []agent.Refusal
	at   [numDropReasons]int // index in list + 1
}

// add counts key as refused. It returns the refusal for the caller to
// complete if it is the first for its reason, else nil.
func (r *refusals) add(reason dropReason, key string) *agent.Refusal {
	first := r.at[reason] == 0
	if first {
		r.list = append(r.list, agent.Refusal{Reason: reason.String()})
		r.at[reason] = len(r.list)
	}
	refusal := &r.list[r.at[reason]-1]
	refusal.Count++
	if len(refusal.Names) < agent.MaxRefusalNames {
		refusal.Names = append(refusal.Names, refusedName(key))
	}
	if first {
		return refusal
	}
	return nil
}

// count returns how many keys were refused for reason.
func (r *refusals) count(reason dropReason) int {
	if r.at[reason] == 0 {
		return 0
	}
	return r.list[r.at[reason]-1].Count
}

// refusedName is key as it can be sent back: a copy.
func refusedName(key string) string {
	name, _ := limitText(key, maxNameBytes)
	return strings.Clone(name)
}
