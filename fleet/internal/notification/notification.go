// Package notification encodes the notifications that replicas of a fleet send each
// other. They are hints: what must arrive is in the database.
package notification

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/agent"
)

// Kind is the kind of a notification: the first byte of its payload. The replica's id
// follows.
type Kind byte

// The kinds of notifications.
const (
	Registrations Kind = 'r' // the registrations changed
	States        Kind = 't' // states were written
	Sessions      Kind = 's' // the newest sessions of agents; the records follow
	Request       Kind = 'q' // asks for unwritten sessions
)

// MaxRecords fit into a message of the pubsub. It has at most 7,977 bytes: 23 for kind
// and replica, the rest with 4 characters for 3 bytes.
const MaxRecords = (7977 - headerLen) / 4 * 3 / recordBytes

const (
	headerLen   = 1 + 22
	recordBytes = 16 + 8 + 8 + 1
)

var encoding = base64.RawStdEncoding.Strict()

// Flags of a record.
const (
	flagOpen = 1 << iota
	flagReported
	flagRelayed
)

// Encode returns a notification of the replica, with at most MaxRecords records if it
// is of the kind Sessions. Their Replica is left out: it is the sender.
func Encode(kind Kind, from agent.ID, records []agent.SessionRecord) []byte {
	payload := encoding.AppendEncode([]byte{byte(kind)}, from[:])
	raw := make([]byte, 0, len(records)*recordBytes)
	for i := range records {
		raw = appendRecord(raw, &records[i])
	}
	return encoding.AppendEncode(payload, raw)
}

func appendRecord(dst []byte, r *agent.SessionRecord) []byte {
	dst = append(dst, r.Agent[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Incarnation))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Epoch))
	var flags byte
	if r.Open {
		flags |= flagOpen
	}
	if r.Reported {
		flags |= flagReported
	}
	if r.Relayed {
		flags |= flagRelayed
	}
	return append(dst, flags)
}

// Decode is the inverse of Encode. An error means that another version of this program
// encoded the payload.
func Decode(payload []byte) (kind Kind, from agent.ID, records []agent.SessionRecord, err error) {
	if len(payload) < headerLen {
		return 0, from, nil, fmt.Errorf("notification of the fleet: want at least %d bytes, got %d", headerLen, len(payload))
	}
	var id [17]byte // 22 characters may decode to 17 bytes
	if n, err := encoding.Decode(id[:], payload[1:headerLen]); err != nil || n != len(from) {
		return 0, from, nil, fmt.Errorf("notification of the fleet: replica %q", payload[1:headerLen])
	}
	copy(from[:], id[:])
	kind = Kind(payload[0])
	if kind != Sessions {
		return kind, from, nil, nil
	}
	raw, err := encoding.AppendDecode(nil, payload[headerLen:])
	if err != nil || len(raw)%recordBytes != 0 {
		return 0, from, nil, fmt.Errorf("notification of the fleet: %d bytes of records: %w", len(raw), err)
	}
	for r := range slices.Chunk(raw, recordBytes) {
		flags := r[recordBytes-1]
		records = append(records, agent.SessionRecord{
			Agent:       agent.ID(r[:16]),
			Incarnation: int64(binary.BigEndian.Uint64(r[16:24])),
			Epoch:       int64(binary.BigEndian.Uint64(r[24:32])),
			Replica:     from,
			Open:        flags&flagOpen != 0,
			Reported:    flags&flagReported != 0,
			Relayed:     flags&flagRelayed != 0,
		})
	}
	return kind, from, records, nil
}
