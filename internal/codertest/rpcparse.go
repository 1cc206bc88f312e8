package codertest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gobwas/ws"
	"github.com/google/uuid"
	"storj.io/drpc/drpcwire"
)

// Parse returns what parts of a connection say, as lines. It parses whole frames, packets and
// messages, in the simplest way: it is what a decoder of parts is compared with. An error ends
// it. The lines before that are returned, too.
func Parse(parts []Part) (lines []string, err error) {
	p := &parser{streams: make(map[uint32]*parsedStream)}
	defer func() { lines = p.lines }()
	for _, part := range parts {
		s := &p.coderd
		if part.FromAgent {
			s = &p.agent
		}
		if s.closed {
			continue
		}
		s.socket = append(s.socket, part.Bytes...)
		if err := p.frames(s, part.FromAgent); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

type parsedSide struct {
	socket     []byte
	frame      ws.Header
	left       int64
	offset     int
	fragmented bool
	closed     bool
	message    int64

	mux     []byte
	muxLeft int
	flags   uint16
	id      uint32
}

type parser struct {
	agent, coderd parsedSide
	streams       map[uint32]*parsedStream
	used          []uint32
	agentID       uuid.UUID
	pending       []string
	regions       string // before it is known who has them
	lines         []string
}

type parsedStream struct {
	bytes   [2][]byte
	packet  [2]*drpcwire.Frame
	last    [2]drpcwire.ID
	invoked string
	begun   bool
	request []byte
	whole   bool
	over    bool
	dead    bool
}

func sideOf(fromAgent bool) int {
	if fromAgent {
		return 0
	}
	return 1
}

func (p *parser) frames(s *parsedSide, fromAgent bool) error {
	for len(s.socket) > 0 && !s.closed {
		if s.left > 0 {
			n := min(int64(len(s.socket)), s.left)
			payload := s.socket[:n]
			s.socket, s.left = s.socket[n:], s.left-n
			control := s.frame.OpCode.IsControl()
			s.closed = s.frame.OpCode == ws.OpClose && s.left == 0
			if control {
				continue
			}
			if s.frame.Masked {
				ws.Cipher(payload, s.frame.Mask, s.offset)
				s.offset += int(n)
			}
			s.mux = append(s.mux, payload...)
			if err := p.muxFrames(s, fromAgent); err != nil {
				return err
			}
			continue
		}
		r := bytes.NewReader(s.socket)
		h, err := ws.ReadHeader(r)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil // it is not whole
		case err != nil:
			return err
		}
		state := ws.StateClientSide
		if fromAgent {
			state = ws.StateServerSide
		}
		if s.fragmented {
			state = state.Set(ws.StateFragmented)
		}
		if err := ws.CheckHeader(h, state); err != nil {
			return err
		}
		s.socket = s.socket[len(s.socket)-r.Len():]
		s.frame, s.left, s.offset = h, h.Length, 0
		switch {
		case h.OpCode.IsControl():
			s.closed = h.OpCode == ws.OpClose && h.Length == 0
			continue
		case h.OpCode == ws.OpText:
			return errors.New("text")
		case !s.fragmented:
			s.message = 0
		}
		s.fragmented = !h.Fin
		if s.message += h.Length; s.message > 4<<20 {
			return errors.New("large message")
		}
	}
	return nil
}

func (p *parser) muxFrames(s *parsedSide, fromAgent bool) error {
	for len(s.mux) > 0 {
		if s.muxLeft > 0 {
			n := min(len(s.mux), s.muxLeft)
			data := s.mux[:n]
			s.mux, s.muxLeft = s.mux[n:], s.muxLeft-n
			if st := p.streams[s.id]; st != nil {
				side := sideOf(fromAgent)
				st.bytes[side] = append(st.bytes[side], data...)
				if err := p.packets(st, fromAgent); err != nil {
					return err
				}
			}
			if s.muxLeft == 0 {
				p.applyFlags(s, fromAgent)
			}
			continue
		}
		if len(s.mux) < 12 {
			return nil
		}
		header := s.mux[:12]
		s.mux = s.mux[12:]
		kind := header[1]
		if header[0] != 0 || kind > 3 {
			return errors.New("yamux header")
		}
		if kind > 1 {
			continue
		}
		s.flags, s.id = binary.BigEndian.Uint16(header[2:]), binary.BigEndian.Uint32(header[4:])
		if s.flags&1 != 0 && fromAgent {
			if slices.Contains(p.used, s.id) {
				return errors.New("stream again")
			}
			p.used = append(p.used, s.id)
			first := drpcwire.ID{Stream: 1, Message: 1}
			p.streams[s.id] = &parsedStream{last: [2]drpcwire.ID{first, first}}
		}
		if kind == 0 {
			s.muxLeft = int(binary.BigEndian.Uint32(header[8:]))
		}
		if s.muxLeft == 0 {
			p.applyFlags(s, fromAgent)
		}
	}
	return nil
}

func (p *parser) applyFlags(s *parsedSide, fromAgent bool) {
	if s.flags&8 != 0 || s.flags&4 != 0 && !fromAgent {
		delete(p.streams, s.id)
	}
}

func (p *parser) packets(st *parsedStream, fromAgent bool) error {
	side := sideOf(fromAgent)
	for !st.dead {
		rest, frame, ok, err := drpcwire.ParseFrame(st.bytes[side])
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		st.bytes[side] = rest
		packet := st.packet[side]
		switch {
		case frame.ID.Less(st.last[side]):
			return errors.New("ids")
		case packet == nil || packet.ID != frame.ID:
			clone := frame
			clone.Data = bytes.Clone(frame.Data)
			packet = &clone
		case packet.Kind != frame.Kind:
			return errors.New("kinds")
		default:
			packet.Data = append(packet.Data, frame.Data...)
		}
		st.packet[side], st.last[side] = packet, frame.ID
		if len(packet.Data) > 4<<20 {
			st.dead = true
			return nil
		}
		if !frame.Done {
			continue
		}
		st.packet[side] = nil
		st.last[side].Message++
		if err := p.packet(st, *packet, fromAgent); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) packet(st *parsedStream, packet drpcwire.Frame, fromAgent bool) error {
	switch {
	case packet.Kind == drpcwire.KindInvoke && fromAgent:
		if st.begun {
			return errors.New("second invoke")
		}
		st.begun, st.invoked = true, string(packet.Data)
	case packet.Kind == drpcwire.KindError && !fromAgent, packet.Kind == drpcwire.KindClose && !fromAgent:
		st.invoked = ""
	case packet.Kind == drpcwire.KindMessage:
		return p.message(st, packet.Data, fromAgent)
	}
	return nil
}

func (p *parser) message(st *parsedStream, data []byte, fromAgent bool) error {
	switch st.invoked {
	case UpdateStats, UpdateLifecycle, BatchUpdateAppHealths, BatchUpdateMetadata:
		if fromAgent && !st.whole {
			st.request, st.whole, st.over = data, true, len(data) > 1<<20
			return nil
		}
		if fromAgent {
			return nil
		}
		if !st.whole {
			return errors.New("answer before the request")
		}
		if !st.over {
			p.say(fmt.Sprintf("%s %x", st.invoked, st.request))
		}
		st.invoked = ""
	case GetManifest:
		if !fromAgent {
			return p.manifest(data)
		}
	case Coordinate:
		if fromAgent {
			p.say(fmt.Sprintf("%s %x", Coordinate, data))
		}
	case StreamDERPMaps:
		if !fromAgent {
			return p.derpMap(data)
		}
	}
	return nil
}
