package decode

import (
	"bytes"

	"github.com/gobwas/ws"
)

// maxMessage bounds a WebSocket message and a dRPC packet: both sides end a connection, or a
// call, that has a larger one.
const maxMessage = 4 << 20

// side is one direction of a connection. It has what is read of a frame that is not whole.
type side struct {
	fromAgent bool

	// WebSocket.

	header     [ws.MaxHeaderSize]byte
	headerSize int // bytes of header; 0: the next byte begins a frame
	reader     bytes.Reader
	frame      ws.Header
	left       int64 // of the frame's payload
	offset     int   // in the payload, for the mask
	message    int64 // bytes of the message that is split over frames
	fragmented bool  // it goes on in a further frame
	ended      bool  // a close frame came, so what follows is not read by anybody

	mux muxSide
}

// read reads WebSocket frames. Their payload is unmasked in place.
func (s *side) read(c *Connection, b []byte) error {
	for len(b) > 0 && !s.ended {
		if s.left == 0 {
			n, err := s.readHeader(b)
			if err != nil {
				return err
			}
			b = b[n:]
			continue
		}
		part := b[:min(int64(len(b)), s.left)]
		b = b[len(part):]
		s.left -= int64(len(part))
		if s.frame.OpCode.IsControl() {
			s.endFrame()
			continue
		}
		if s.frame.Masked {
			ws.Cipher(part, s.frame.Mask, s.offset)
			s.offset += len(part)
		}
		if err := s.mux.read(c, s.fromAgent, part); err != nil {
			return err
		}
		s.endFrame()
	}
	return nil
}

// readHeader reads a part of a frame's header, or all of it. It returns of how many bytes.
func (s *side) readHeader(b []byte) (int, error) {
	read := 0
	for s.headerSize < headerSize(s.header[:s.headerSize]) {
		n := copy(s.header[s.headerSize:headerSize(s.header[:s.headerSize])], b[read:])
		if n == 0 {
			return read, nil
		}
		s.headerSize += n
		read += n
	}
	var err error
	s.reader.Reset(s.header[:s.headerSize])
	s.frame, err = ws.ReadHeader(&s.reader)
	s.headerSize = 0
	if err != nil {
		return read, NewError(ReasonWebSocket, "WebSocket: %v", err)
	}
	state := ws.StateClientSide
	if s.fromAgent {
		state = ws.StateServerSide
	}
	if s.fragmented {
		state = state.Set(ws.StateFragmented)
	}
	if err := ws.CheckHeader(s.frame, state); err != nil {
		return read, NewError(ReasonWebSocket, "WebSocket: %v", err)
	}
	s.left, s.offset = s.frame.Length, 0
	if s.frame.OpCode.IsControl() {
		s.endFrame()
		return read, nil
	}
	if s.frame.OpCode == ws.OpText {
		return read, NewError(ReasonWebSocket, "WebSocket: want binary messages, got text")
	}
	if !s.fragmented {
		s.message = 0
	}
	s.fragmented = !s.frame.Fin
	if s.message += s.left; s.message > maxMessage {
		return read, NewError(ReasonWebSocket, "WebSocket: want messages of at most %d bytes", maxMessage)
	}
	return read, nil
}

// endFrame looks whether a frame that is whole was the last.
func (s *side) endFrame() { s.ended = s.left == 0 && s.frame.OpCode == ws.OpClose }

// headerSize returns the size of the header that begins with b.
func headerSize(b []byte) int {
	const masked = 0x80
	if len(b) < 2 {
		return 2
	}
	size := 2
	switch b[1] &^ masked {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if b[1]&masked != 0 {
		size += 4
	}
	return size
}
