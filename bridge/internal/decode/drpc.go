package decode

import (
	"sync"

	"storj.io/drpc/drpcwire"
)

// maxCallName bounds the name of a call that is looked up.
const maxCallName = 64

// maxFrameHeader is the size of the largest header of a dRPC frame: a control byte, and
// three numbers of at most ten bytes.
const maxFrameHeader = 1 + 3*10

// frameHeader is that of a dRPC frame.
type frameHeader struct {
	id            drpcwire.ID
	kind          drpcwire.Kind
	done, control bool
	length        uint64
}

// parseFrameHeader parses the header at the beginning of b, and returns its size; 0: it is
// not whole.
func parseFrameHeader(b []byte) (h frameHeader, size int, err error) {
	if len(b) == 0 {
		return h, 0, nil
	}
	h.done, h.control, h.kind = b[0]&1 != 0, b[0]&0x80 != 0, drpcwire.Kind(b[0]&0x7e>>1)
	rest := b[1:]
	for _, number := range []*uint64{&h.id.Stream, &h.id.Message, &h.length} {
		var ok bool
		if rest, *number, ok, err = drpcwire.ReadVarint(rest); err != nil || !ok {
			return h, 0, err
		}
	}
	return h, len(b) - len(rest), nil
}

// packets is one direction of a dRPC transport: what is read of a packet that is not whole.
// It accepts what a drpcwire.Reader does.
type packets struct {
	header     [maxFrameHeader]byte
	headerSize int
	left       uint64 // of the frame's data

	frame frameHeader
	begun bool        // the packet has had a frame
	last  drpcwire.ID // no frame has a lower id
	size  uint64      // of the packet so far
}

// stream is one stream of yamux, which carries one call.
type stream struct {
	id            uint32
	agent, coderd packets

	invoked bool   // the agent has named the call
	rpc     uint64 // dRPC's id of the call; 0: not known yet
	name    []byte // of the call, while it is read
	call    *call  // nil: nothing of it is kept
	ignored bool   // coderd reads no more of it, or nobody asks what is in it

	request  *buffer // of a relayed call
	whole    bool    // the request is
	oversize bool    // it was too large to be kept
	walker   *walker // of a message of which some fields are kept
}

func newStream(id uint32) *stream {
	first := drpcwire.ID{Stream: 1, Message: 1}
	return &stream{id: id, agent: packets{last: first}, coderd: packets{last: first}}
}

// of returns the packets of one direction.
func (s *stream) of(fromAgent bool) *packets {
	if fromAgent {
		return &s.agent
	}
	return &s.coderd
}

// read reads dRPC frames.
func (s *stream) read(c *Connection, fromAgent bool, b []byte) error {
	p := s.of(fromAgent)
	for len(b) > 0 && !s.ignored {
		if p.left > 0 {
			part := b[:min(uint64(len(b)), p.left)]
			b = b[len(part):]
			p.left -= uint64(len(part))
			if err := s.data(c, fromAgent, part); err != nil {
				return err
			}
			if p.left == 0 {
				if err := s.endFrame(c, fromAgent); err != nil {
					return err
				}
			}
			continue
		}
		n, whole, err := p.readHeader(b)
		if err != nil {
			return err
		}
		b = b[n:]
		if !whole {
			return nil
		}
		if err := s.beginFrame(c, fromAgent); err != nil {
			return err
		}
	}
	return nil
}

// readHeader reads a part of a frame's header, or all of it. It returns of how many bytes.
func (p *packets) readHeader(b []byte) (n int, whole bool, err error) {
	if p.headerSize == 0 { // mostly it is there at once
		h, size, err := parseFrameHeader(b)
		if err != nil {
			return 0, false, NewError(ReasonDRPC, "dRPC: %v", err)
		}
		if size > 0 {
			return size, true, p.begin(h)
		}
	}
	before := p.headerSize
	n = copy(p.header[before:], b)
	h, size, err := parseFrameHeader(p.header[:before+n])
	switch {
	case err != nil:
		return n, false, NewError(ReasonDRPC, "dRPC: %v", err)
	case size == 0:
		p.headerSize += n
		return n, false, nil
	}
	p.header, p.headerSize = [maxFrameHeader]byte{}, 0 // data may have come with it
	return size - before, true, p.begin(h)
}

// begin begins a frame.
func (p *packets) begin(h frameHeader) error {
	switch {
	case h.id.Less(p.last):
		return NewError(ReasonDRPC, "dRPC: ids go back")
	case !p.begun || h.id != p.last: // what is not whole of another packet is dropped
		p.begun, p.size = false, 0
	case h.kind != p.frame.kind:
		return NewError(ReasonDRPC, "dRPC: the frames of a packet differ in their kind")
	default:
		h.control = h.control || p.frame.control
	}
	p.frame, p.last, p.left = h, h.id, h.length
	p.size += h.length
	return nil
}

// beginFrame handles the header of a frame.
func (s *stream) beginFrame(c *Connection, fromAgent bool) error {
	p := s.of(fromAgent)
	if p.size > maxMessage || p.frame.length > maxMessage {
		// Who gets it gives the call up, without a word.
		s.ignored = true
		c.forget(s)
		return nil
	}
	if s.rpc == 0 && fromAgent {
		s.rpc = p.frame.id.Stream
	}
	if p.frame.id.Stream != s.rpc || s.rpc == 0 {
		return NewError(ReasonReused, "dRPC: want one call on a stream of yamux")
	}
	if !p.begun {
		p.begun = true
		if err := s.beginPacket(c, fromAgent); err != nil {
			return err
		}
	}
	if p.left == 0 {
		return s.endFrame(c, fromAgent)
	}
	return nil
}

// endFrame handles the end of a frame.
func (s *stream) endFrame(c *Connection, fromAgent bool) error {
	p := s.of(fromAgent)
	if !p.frame.done {
		return nil
	}
	p.begun = false
	p.last.Message++
	return s.endPacket(c, fromAgent)
}

// beginPacket handles the beginning of a packet.
func (s *stream) beginPacket(c *Connection, fromAgent bool) error {
	kind := s.of(fromAgent).frame.kind
	switch {
	case kind == drpcwire.KindMessage:
		if !s.invoked {
			return NewError(ReasonDRPC, "dRPC: a message comes before the call")
		}
		return s.beginMessage(c, fromAgent)
	case (kind == drpcwire.KindInvoke || kind == drpcwire.KindInvokeMetadata) && fromAgent:
		if s.invoked {
			return NewError(ReasonReused, "dRPC: want one call on a stream of yamux")
		}
		s.name = s.name[:0]
	case kind == drpcwire.KindError || kind == drpcwire.KindCancel || kind == drpcwire.KindClose || kind == drpcwire.KindCloseSend:
	case !s.of(fromAgent).frame.control:
		return NewError(ReasonDRPC, "dRPC: a packet has an unknown kind")
	}
	return nil
}

// data handles a part of a packet's data.
func (s *stream) data(c *Connection, fromAgent bool, b []byte) error {
	switch s.of(fromAgent).frame.kind {
	case drpcwire.KindInvoke:
		if len(s.name)+len(b) <= maxCallName {
			s.name = append(s.name, b...)
		} else {
			s.name = append(s.name[:0], make([]byte, maxCallName+1)...) // no call's
		}
	case drpcwire.KindMessage:
		return s.messageData(c, fromAgent, b)
	}
	return nil
}

// endPacket handles the end of a packet.
func (s *stream) endPacket(c *Connection, fromAgent bool) error {
	switch s.of(fromAgent).frame.kind {
	case drpcwire.KindInvoke:
		s.invoked = true
		s.call = calls[string(s.name)]
		s.name = nil
	case drpcwire.KindMessage:
		return s.endMessage(c, fromAgent)
	case drpcwire.KindError, drpcwire.KindClose:
		if !fromAgent {
			c.forget(s)
		}
	}
	return nil
}

// buffer is a request. Its memory is taken of a budget.
type buffer struct {
	b        []byte
	reserved int
}

const (
	// leastBuffer is enough for most metadata, and largestPooled for most reports.
	leastBuffer   = 512
	largestPooled = 16 << 10
)

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// append adds b; false: the budget is used up. size is how large the request will be at
// least.
func (f *buffer) append(budget *share, b []byte, size int) bool {
	need := len(f.b) + len(b)
	if need > f.reserved {
		grown := max(need, size, leastBuffer)
		if f.reserved > 0 {
			grown = max(grown, 2*f.reserved)
		}
		if !budget.reserve(grown - f.reserved) {
			return false
		}
		f.reserved = grown
		if cap(f.b) < grown {
			f.b = append(make([]byte, 0, grown), f.b...)
		}
	}
	f.b = append(f.b, b...)
	return true
}

// free gives the memory back. The buffer is not to be used any more.
func (f *buffer) free(budget *share) {
	if f == nil {
		return
	}
	budget.release(f.reserved)
	f.reserved = 0
	if cap(f.b) > largestPooled {
		return
	}
	f.b = f.b[:0]
	buffers.Put(f)
}
