package outbox

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxPendingKeys bounds the keys that wait to become durable: as many as a
	// template may declare.
	maxPendingKeys = 1024
	// maxKeyBytes is the most that a key may have: a longer one is refused by
	// every service.
	maxKeyBytes = 1024
	// maxReportKeyBytes is the most that the keys of one report may have in sum,
	// unless the service says otherwise.
	maxReportKeyBytes = 6144
	// maxNameBytes is how much of a key a refusal names at most.
	maxNameBytes = 200
	// maxTextBytes bounds a value or an error text. The contract allows 2048. A longer
	// text stays above that after the cut, so that the service still cuts and counts
	// it.
	maxTextBytes = 2048 + utf8.UTFMax
	// maxReportKeys is sent in one request. A refusal names at most 16 keys, so
	// that it names all of a request's that were refused.
	maxReportKeys = 16
)

// Metadata is the value of one key, as the client's.
type Metadata struct{ Key, Value, Error string }

// metadataValue is one value of a key on its way into the database.
type metadataValue struct {
	metadata Metadata
	// sequence of the request that carried it; 0: not sent, or lost.
	sequence int64
	// entries is how many updates it stands for: itself and the older ones
	// that it replaced.
	entries int64
	given   time.Time // to the outbox
}

// metadataQueue has what is not known to be durable, at most two values a key: one
// that was sent, and a newer one. So acked values reach OnDurable even if values
// change faster than the service writes them.
type metadataQueue struct {
	keys map[string][]metadataValue
	// unsent are the keys whose last value is to be sent, oldest first.
	unsent []string
}

// put adds the newest value of a key.
func (q *metadataQueue) put(m Metadata, now time.Time) error {
	if err := checkKey(m.Key); err != nil {
		return err
	}
	values := q.keys[m.Key]
	if len(values) == 0 && len(q.keys) >= maxPendingKeys {
		return fmt.Errorf("metadata key %.64q: %d keys are pending, at most %d may be", m.Key, len(q.keys), maxPendingKeys)
	}
	m.Value, m.Error = cutText(m.Value), cutText(m.Error)

	newest := metadataValue{metadata: m, entries: 1, given: now}
	last := len(values) - 1
	switch {
	case last < 0 || last == 0 && values[0].sequence > 0:
		values = append(values, newest)
		q.unsent = append(q.unsent, m.Key)
	default:
		if values[last].sequence > 0 {
			q.unsent = append(q.unsent, m.Key)
		}
		newest.entries += values[last].entries
		values[last] = newest
	}
	if q.keys == nil {
		q.keys = make(map[string][]metadataValue)
	}
	q.keys[m.Key] = values
	return nil
}

// next returns the next values for the request with the sequence, within limits in
// bytes, and when they were given to the outbox. It returns nil if there are none. If
// always is true, at least one value is returned.
func (q *metadataQueue) next(
	sequence, keyBytes, messageBytes int64, always bool,
) (report *agentstatsv1.MetadataReport, given []time.Time) {
	if len(q.unsent) == 0 {
		return nil, nil
	}
	// 32 bytes are more than the tags and lengths of a report, and of an entry with its age.
	messageBytes -= 32
	report = &agentstatsv1.MetadataReport{}
	var taken int
	for _, key := range q.unsent {
		values := q.keys[key]
		newest := &values[len(values)-1]
		m := newest.metadata
		keyBytes -= int64(len(m.Key))
		messageBytes -= int64(len(m.Key) + len(m.Value) + len(m.Error) + 32)
		if taken == maxReportKeys || (taken > 0 || !always) && (keyBytes < 0 || messageBytes < 0) {
			break
		}
		taken++
		newest.sequence = sequence
		report.Metadata = append(report.Metadata, &agentstatsv1.Metadata{
			Key:    m.Key,
			Result: &agentstatsv1.Metadata_Result{Value: m.Value, Error: m.Error},
		})
		given = append(given, newest.given)
	}
	if taken == 0 {
		return nil, nil
	}
	q.unsent = slices.Delete(q.unsent, 0, taken)
	return report, given
}

// durable removes the values up to the sequence, which the service has stored or
// refused. It returns the newest of them of each key, and how many updates they stand
// for.
func (q *metadataQueue) durable(sequence int64) (stored []Metadata, entries int64) {
	for key, values := range q.keys {
		n := 0
		for n < len(values) && values[n].sequence > 0 && values[n].sequence <= sequence {
			entries += values[n].entries
			n++
		}
		if n == 0 {
			continue
		}
		stored = append(stored, values[n-1].metadata)
		q.setValues(key, values[n:])
	}
	return stored, entries
}

// refused removes what the service refused of the request with the given sequence.
// If the database refused a key, all its sent values go: the service may have
// replaced the named one by a newer one. It returns how many updates these stand
// for.
func (q *metadataQueue) refused(sequence int64, byStore bool, keys []string) (entries int64) {
	for _, key := range q.named(keys) {
		values := q.keys[key]
		named := slices.ContainsFunc(values, func(v metadataValue) bool { return v.sequence == sequence })
		if !named {
			continue
		}
		kept := slices.DeleteFunc(values, func(v metadataValue) bool {
			gone := v.sequence == sequence || byStore && v.sequence > 0
			if gone {
				entries += v.entries
			}
			return gone
		})
		q.setValues(key, kept)
	}
	return entries
}

// named returns the keys that a refusal names, of which long ones are cut.
func (q *metadataQueue) named(names []string) []string {
	keys := make([]string, 0, len(names))
	for _, name := range names {
		if _, known := q.keys[name]; known {
			keys = append(keys, name)
		}
		if len(name) <= maxNameBytes-utf8.UTFMax {
			continue
		}
		for key := range q.keys {
			if len(key) > maxNameBytes && strings.HasPrefix(key, name) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// resend makes what was sent by requests from first to last unsent again: of each
// key the newest value.
func (q *metadataQueue) resend(first, last int64) {
	again := func(v *metadataValue) bool { return v.sequence >= first && v.sequence <= last }
	lost := make(map[string]int64)
	for key, values := range q.keys {
		newest := len(values) - 1
		if again(&values[newest]) {
			lost[key] = values[newest].sequence
			values[newest].sequence = 0
		}
		if newest > 0 && again(&values[0]) {
			values[1].entries += values[0].entries
			q.keys[key] = values[1:]
		}
	}
	resent := slices.SortedFunc(maps.Keys(lost), func(a, b string) int {
		return cmp.Or(cmp.Compare(lost[a], lost[b]), cmp.Compare(a, b))
	})
	q.unsent = append(resent, q.unsent...)
}

func (q *metadataQueue) setValues(key string, values []metadataValue) {
	if len(values) == 0 {
		delete(q.keys, key)
		return
	}
	q.keys[key] = values
}

func checkKey(key string) error {
	switch {
	case key == "":
		return errors.New("metadata key: is empty")
	case len(key) > maxKeyBytes:
		return fmt.Errorf("metadata key %.64q: has %d bytes, at most %d are allowed", key, len(key), maxKeyBytes)
	case !utf8.ValidString(key):
		return fmt.Errorf("metadata key %.64q: is not UTF-8", key)
	}
	return nil
}

// cleanText makes s valid UTF-8, as protobuf encodes no other strings, and shortens it.
func cleanText(s string) string {
	return shortenText(s, maxTextBytes)
}

// cutText is cleanText without the white space around s. A text that is cut in white
// space ends in a period, which the service cuts off: it would not see the cut otherwise,
// as it trims texts, too.
func cutText(s string) string {
	s = strings.TrimSpace(s)
	cut := cleanText(s)
	if len(s) > maxTextBytes && len(strings.TrimSpace(cut)) < len(cut) {
		cut += "."
	}
	return cut
}

// shortenText returns s as UTF-8, cut to at most limit bytes before U+FFFD replaces
// what is no character. It stands here as well as in the service, with which the
// client shares no code.
func shortenText(s string, limit int) string {
	if len(s) > limit {
		n := limit
		for n > limit-utf8.UTFMax+1 && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
