package decode

import "encoding/binary"

// The header of a yamux frame.
const (
	muxHeaderSize = 12

	muxData         = 0
	muxWindowUpdate = 1
	muxGoAway       = 3

	muxSYN = 1
	muxFIN = 4
	muxRST = 8
)

// muxSide is one direction of a yamux session.
type muxSide struct {
	header     [muxHeaderSize]byte
	headerSize int

	// Of the data frame whose data is read.

	left   uint32
	flags  uint16
	id     uint32
	stream *stream // nil: nothing of it is kept
}

// read reads yamux frames.
func (m *muxSide) read(c *Connection, fromAgent bool, b []byte) error {
	for len(b) > 0 {
		if m.left > 0 {
			part := b[:min(uint64(len(b)), uint64(m.left))]
			b = b[len(part):]
			m.left -= uint32(len(part))
			if m.stream != nil {
				if err := m.stream.read(c, fromAgent, part); err != nil {
					return err
				}
			}
			if m.left == 0 {
				m.endData(c, fromAgent)
			}
			continue
		}
		n := copy(m.header[m.headerSize:], b)
		b = b[n:]
		if m.headerSize += n; m.headerSize < muxHeaderSize {
			return nil
		}
		m.headerSize = 0
		if err := m.handle(c, fromAgent); err != nil {
			return err
		}
	}
	return nil
}

// handle handles the header of a frame.
func (m *muxSide) handle(c *Connection, fromAgent bool) error {
	version, kind := m.header[0], m.header[1]
	flags := binary.BigEndian.Uint16(m.header[2:])
	id, length := binary.BigEndian.Uint32(m.header[4:]), binary.BigEndian.Uint32(m.header[8:])
	switch {
	case version != 0:
		return NewError(ReasonYamux, "yamux: want version 0, got %d", version)
	case kind > muxGoAway:
		return NewError(ReasonYamux, "yamux: want types 0 to %d, got %d", muxGoAway, kind)
	case kind != muxData && kind != muxWindowUpdate:
		return nil
	}
	if flags&muxSYN != 0 {
		if err := c.streams.begin(c.budget, fromAgent, id); err != nil {
			return err
		}
	}
	m.flags, m.id = flags, id
	if kind == muxWindowUpdate || length == 0 {
		m.endData(c, fromAgent)
		return nil
	}
	m.left, m.stream = length, c.streams.find(id)
	return nil
}

// endData applies the flags of a frame, whose data was read. After coderd's half of a
// stream there is no answer any more. Calls of which the agent has ended its half may still
// be accepted.
func (m *muxSide) endData(c *Connection, fromAgent bool) {
	m.stream = nil
	if m.flags&muxRST != 0 || m.flags&muxFIN != 0 && !fromAgent {
		c.end(m.id)
	}
}

// end ends a stream, whose data are skipped from then on.
func (c *Connection) end(id uint32) {
	if s := c.streams.remove(id); s != nil {
		c.forget(s)
		c.budget.release(streamBytes)
		// A frame of the other direction may be half read.
		for _, m := range []*muxSide{&c.agent.mux, &c.coderd.mux} {
			if m.stream == s {
				m.stream = nil
			}
		}
	}
}

// maxStreams bounds the streams of a connection that are open at once. Agents have two that
// last, and about five of other calls.
const maxStreams = 128

// streams are those that agents open, one a call.
type streams struct {
	open []*stream
	// used has a bit for each of the ids up to newest, which is the highest one. Streams that
	// are opened at once may come in another order than that of their ids.
	newest uint32
	used   uint64
}

// begin begins a stream that the agent opens, whose memory is taken of the budget. Those of
// coderd, which opens none, are skipped.
func (s *streams) begin(budget *share, fromAgent bool, id uint32) error {
	const idStep = 2 // the agent's are odd
	if (id%idStep == 1) != fromAgent || id == 0 {
		return NewError(ReasonYamux, "yamux: stream %d is opened by the other side", id)
	}
	if !fromAgent {
		return nil
	}
	switch {
	case s.used == 0:
		s.newest, s.used = id, 1
	case id > s.newest:
		s.used = s.used<<min((id-s.newest)/idStep, 64) | 1
		s.newest = id
	default:
		bit := uint64(1) << ((s.newest - id) / idStep) // 0 if it is too long ago
		if bit == 0 || s.used&bit != 0 {
			return NewError(ReasonReused, "yamux: stream %d is opened again", id)
		}
		s.used |= bit
	}
	if len(s.open) >= maxStreams {
		return NewError(ReasonStreams, "yamux: want at most %d streams at once", maxStreams)
	}
	if !budget.reserve(streamBytes) {
		return errMemory
	}
	s.open = append(s.open, newStream(id))
	return nil
}

// find returns an open stream of the agent; nil: there is none of this id.
func (s *streams) find(id uint32) *stream {
	for _, o := range s.open {
		if o.id == id {
			return o
		}
	}
	return nil
}

// remove removes an open stream, and returns it; nil: there is none of this id.
func (s *streams) remove(id uint32) *stream {
	for i, o := range s.open {
		if o.id == id {
			last := len(s.open) - 1
			s.open[i], s.open[last] = s.open[last], nil
			s.open = s.open[:last]
			return o
		}
	}
	return nil
}
