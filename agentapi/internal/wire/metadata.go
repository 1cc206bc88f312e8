package wire

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coder/agentstatsd/agent"
)

// The first bytes of the fields of MetadataReport and of the messages in it.
const (
	tagReportMetadata = 1<<3 | byte(protowire.BytesType)

	tagMetadataKey    = 1<<3 | byte(protowire.BytesType)
	tagMetadataResult = 2<<3 | byte(protowire.BytesType)

	tagResultCollectedAt = 1<<3 | byte(protowire.BytesType)
	tagResultAge         = 2<<3 | byte(protowire.VarintType)
	tagResultValue       = 3<<3 | byte(protowire.BytesType)
	tagResultError       = 4<<3 | byte(protowire.BytesType)

	tagTimestampSeconds = 1<<3 | byte(protowire.VarintType)
	tagTimestampNanos   = 2<<3 | byte(protowire.VarintType)
)

// maxKeptEntries bounds the buffer of a decoder that is used again: 56 bytes for
// each entry. A template declares at most 1024 keys; an agent has some ten.
const maxKeptEntries = 1024

// maxPlainEntries in a plain report: far more than are taken in, 0.9 MB.
const maxPlainEntries = 16 << 10

// metadataDecoder reads the entries of a MetadataReport from the wire. The zero
// value is ready.
type metadataDecoder struct {
	entries []agent.MetadataEntry
}

// decode returns all entries of an encoded MetadataReport, those of equal keys
// included. It returns false if the report is not plain, or has a field twice in one
// message. The entries are valid until the next decode or release. They reference the
// bytes of w.
func (d *metadataDecoder) decode(w reader) ([]agent.MetadataEntry, bool) {
	d.release()
	for len(w) > 0 {
		t, ok := w.tag()
		if !ok || t != tagReportMetadata || len(d.entries) == maxPlainEntries {
			return nil, false
		}
		message, ok := w.bytes()
		if !ok {
			return nil, false
		}
		d.entries = append(d.entries, agent.MetadataEntry{})
		if !readMetadata(message, &d.entries[len(d.entries)-1]) {
			return nil, false
		}
	}
	return d.entries, true
}

// release releases the strings, and a large buffer.
func (d *metadataDecoder) release() {
	if cap(d.entries) > maxKeptEntries {
		d.entries = nil
	}
	clear(d.entries)
	d.entries = d.entries[:0]
}

func readMetadata(w reader, entry *agent.MetadataEntry) bool {
	var seen fields
	for len(w) > 0 {
		t, ok := w.tag()
		if !ok || !seen.add(t) {
			return false
		}
		switch t {
		case tagMetadataKey:
			entry.Key, ok = w.text()
		case tagMetadataResult:
			var result reader
			result, ok = w.bytes()
			ok = ok && readResult(result, entry)
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	return true
}

func readResult(w reader, entry *agent.MetadataEntry) bool {
	var seen fields
	for len(w) > 0 {
		t, ok := w.tag()
		if !ok || !seen.add(t) {
			return false
		}
		switch t {
		case tagResultCollectedAt:
			var at reader
			at, ok = w.bytes()
			ok = ok && validTimestamp(at)
		case tagResultAge:
			_, ok = w.varint()
		case tagResultValue:
			entry.Value, ok = w.text()
		case tagResultError:
			entry.Error, ok = w.text()
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	return true
}

// validTimestamp reports whether w is a plain Timestamp. It does not check the range.
func validTimestamp(w reader) bool {
	for len(w) > 0 {
		t, ok := w.tag()
		if !ok || t != tagTimestampSeconds && t != tagTimestampNanos {
			return false
		}
		if _, ok = w.varint(); !ok {
			return false
		}
	}
	return true
}

// fields is a set of field numbers from 0 to 15. The contract has none above.
type fields uint16

// add adds the field of a tag; false if it was in the set.
func (f *fields) add(tag byte) bool {
	bit := fields(1) << (tag >> 3 & 15)
	if *f&bit != 0 {
		return false
	}
	*f |= bit
	return true
}
