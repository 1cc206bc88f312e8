package pubsub

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
)

// A server may take smaller messages (max_payload) than MaxPayload. Then a payload is sent
// in parts, one after another on one connection, which keeps their order. A part begins
// with a NUL, which no payload has:
//
//	NUL | publisher, 8 bytes | message, 4 bytes | index | number of parts | text
const (
	partHeader = 1 + 8 + 4 + 1 + 1
	// minMaxPayload is the least max_payload that works, in bytes: a payload is then 17
	// parts.
	minMaxPayload = 512
	// maxAssembled is how many publishers' parts one channel keeps at once, 8 KB each. More
	// than that are in the middle of a message only if somebody makes them up.
	maxAssembled = 64
)

var errPart = errors.New("a part of a message without those before it")

// checkLimit notes whether the server takes messages that a payload can be sent in.
func (n *NATS) checkLimit(conn *nats.Conn) {
	var err error
	switch limit := conn.MaxPayload(); {
	case limit > 0 && limit < minMaxPayload:
		err = fmt.Errorf("the NATS server takes messages of at most %d bytes, but %d are needed: raise its max_payload (its default is 1 MiB)", limit, minMaxPayload)
		n.log.Error("messages to other replicas do not arrive", "error", err)
	case limit > 0 && limit < MaxPayload:
		n.log.Info("large messages are sent in parts, as the NATS server takes no larger ones", "max_payload", limit, "largest_message", MaxPayload)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tooSmall = err
}

// publishParts hands payload to conn, in parts if the server takes no message of its size.
func (n *NATS) publishParts(conn *nats.Conn, subject string, payload []byte) error {
	limit := int(conn.MaxPayload())
	if limit <= 0 || len(payload) <= limit || limit < minMaxPayload {
		return conn.Publish(subject, payload)
	}
	n.sendMu.Lock()
	defer n.sendMu.Unlock()
	for _, part := range n.parts.split(payload, limit) {
		if err := conn.Publish(subject, part); err != nil {
			return err
		}
	}
	return nil
}

// splitter makes parts of payloads. The caller serialises calls.
type splitter struct {
	publisher [8]byte
	message   uint32
}

func newSplitter() splitter {
	var s splitter
	_, _ = rand.Read(s.publisher[:]) // it never fails
	return s
}

// split returns payload as messages of at most limit bytes: payload itself if it
// fits. limit is at least minMaxPayload.
func (s *splitter) split(payload []byte, limit int) [][]byte {
	if len(payload) <= limit {
		return [][]byte{payload}
	}
	room := limit - partHeader
	count := (len(payload) + room - 1) / room
	s.message++
	parts := make([][]byte, 0, count)
	for i := range count {
		text := payload[i*room : min((i+1)*room, len(payload))]
		part := make([]byte, 0, partHeader+len(text))
		part = append(part, 0)
		part = append(part, s.publisher[:]...)
		part = binary.BigEndian.AppendUint32(part, s.message)
		part = append(part, byte(i), byte(count))
		parts = append(parts, append(part, text...))
	}
	return parts
}

// assembler puts the parts of one channel together. The caller serialises calls.
type assembler struct {
	publishers map[[8]byte]*assembly
}

// assembly is what has arrived of a publisher's message.
type assembly struct {
	message uint32
	next    byte
	payload []byte
}

// addPart takes in what arrived. It returns the payload that is whole with it, nil
// without an error if more parts are to come. After an error something was missed.
func (a *assembler) addPart(data []byte) ([]byte, error) {
	if len(data) == 0 || data[0] != 0 {
		return data, nil
	}
	if len(data) <= partHeader {
		return nil, fmt.Errorf("a part has %d bytes", len(data))
	}
	publisher := [8]byte(data[1:9])
	message, index, count := binary.BigEndian.Uint32(data[9:13]), data[13], data[14]
	text := data[partHeader:]
	p := a.publishers[publisher]
	missed := p != nil && p.message != message // the rest of the one before
	if p == nil || missed {
		if index != 0 {
			delete(a.publishers, publisher)
			return nil, errPart
		}
		if a.publishers == nil {
			a.publishers = make(map[[8]byte]*assembly)
		}
		if p == nil && len(a.publishers) >= maxAssembled {
			clear(a.publishers)
			missed = true
		}
		p = &assembly{message: message}
		a.publishers[publisher] = p
	}
	if index != p.next || index >= count || len(p.payload)+len(text) > MaxPayload {
		delete(a.publishers, publisher)
		return nil, errPart
	}
	p.payload = append(p.payload, text...)
	p.next++
	if p.next == count {
		delete(a.publishers, publisher)
		if missed { // of one part only, which nobody sends
			return nil, errPart
		}
		return p.payload, nil
	}
	if missed {
		return nil, errPart
	}
	return nil, nil
}
