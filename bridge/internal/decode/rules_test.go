package decode_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/ws"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"storj.io/drpc/drpcwire"

	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/internal/codertest"
)

// script makes the parts of a connection by hand.
type script struct{ parts []codertest.Part }

// socket adds a WebSocket frame.
func (s *script) socket(fromAgent bool, h ws.Header, payload []byte) {
	var b bytes.Buffer
	h.Masked, h.Length = fromAgent, int64(len(payload))
	payload = bytes.Clone(payload)
	if fromAgent {
		h.Mask = [4]byte{1, 2, 3, 4}
		ws.Cipher(payload, h.Mask, 0)
	}
	if err := ws.WriteHeader(&b, h); err != nil {
		panic(err)
	}
	s.parts = append(s.parts, codertest.Part{FromAgent: fromAgent, Bytes: append(b.Bytes(), payload...)})
}

func (s *script) binary(fromAgent bool, payload []byte) {
	s.socket(fromAgent, ws.Header{Fin: true, OpCode: ws.OpBinary}, payload)
}

const (
	syn = 1
	fin = 4
	rst = 8
)

// mux adds a yamux frame of data; data nil: of a window update.
func (s *script) mux(fromAgent bool, id uint32, flags uint16, data []byte) {
	h := make([]byte, 12)
	if data == nil {
		h[1] = 1
	}
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint32(h[4:], id)
	binary.BigEndian.PutUint32(h[8:], uint32(len(data)))
	s.binary(fromAgent, append(h, data...))
}

// packets encodes dRPC packets, numbered from message on.
func packets(message uint64, kinds ...any) []byte {
	var b []byte
	for i := 0; i < len(kinds); i += 2 {
		b = drpcwire.AppendFrame(b, drpcwire.Frame{
			Data: []byte(kinds[i+1].(string)), ID: drpcwire.ID{Stream: 1, Message: message}, Kind: kinds[i].(drpcwire.Kind), Done: true,
		})
		message++
	}
	return b
}

// call adds a call, and its answer.
func (s *script) call(id uint32, name string, request, answer []byte) {
	s.mux(true, id, syn, nil)
	s.mux(true, id, 0, packets(1, drpcwire.KindInvoke, name, drpcwire.KindMessage, string(request), drpcwire.KindCloseSend, ""))
	s.mux(false, id, 0, packets(1, drpcwire.KindMessage, string(answer), drpcwire.KindCloseSend, ""))
	s.mux(true, id, fin, nil)
	s.mux(false, id, fin, nil)
}

func (s *script) manifest() { s.call(1, codertest.GetManifest, nil, manifest().Encode()) }

const invoke, message = drpcwire.KindInvoke, drpcwire.KindMessage

// Calls count that coderd answered without an error, and no others.
func TestAccepted(t *testing.T) {
	metadata := []byte("\x12\x05\x0a\x03cpu")
	const name = codertest.BatchUpdateMetadata
	line := fmt.Sprintf("%s %x", name, metadata)
	for what, test := range map[string]struct {
		add  func(*script)
		want []string
	}{
		"answered": {func(s *script) { s.call(3, name, metadata, nil) }, []string{line}},
		"answered after the agent has ended": {func(s *script) {
			s.mux(true, 3, syn, nil)
			s.mux(true, 3, fin, packets(1, invoke, name, message, string(metadata)))
			s.mux(false, 3, 0, packets(1, message, ""))
		}, []string{line}},
		"metadata of dRPC before it": {func(s *script) {
			s.mux(true, 3, syn, packets(1, drpcwire.KindInvokeMetadata, secret, invoke, name, message, string(metadata)))
			s.mux(false, 3, 0, packets(1, message, ""))
		}, []string{line}},
		"a second message, which coderd does not read": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name, message, string(metadata), message, "another"))
			s.mux(false, 3, 0, packets(1, message, "", message, ""))
		}, []string{line}},
		"a packet that another one replaces": {func(s *script) {
			b := packets(1, invoke, name)
			b = drpcwire.AppendFrame(b, drpcwire.Frame{Data: []byte("begun"), ID: drpcwire.ID{Stream: 1, Message: 2}, Kind: message})
			s.mux(true, 3, syn, append(b, packets(3, message, string(metadata))...))
			s.mux(false, 3, 0, packets(1, message, ""))
		}, []string{line}},
		"two at once": {func(s *script) {
			for _, id := range []uint32{5, 3} { // the ids need not rise
				s.mux(true, id, syn, packets(1, invoke, name, message, string(metadata)))
			}
			for _, id := range []uint32{3, 5} {
				s.mux(false, id, 0, packets(1, message, ""))
			}
		}, []string{line, line}},
		"an error": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name, message, string(metadata)))
			s.mux(false, 3, 0, packets(1, drpcwire.KindError, "refused", message, ""))
		}, nil},
		"no answer": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name, message, string(metadata)))
			s.mux(false, 3, fin, packets(1, drpcwire.KindCloseSend, ""))
		}, nil},
		"reset by coderd": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name, message, string(metadata)))
			s.mux(false, 3, rst, nil)
			s.mux(false, 3, 0, packets(1, message, ""))
		}, nil},
		"reset by the agent": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name, message, string(metadata)))
			s.mux(true, 3, rst, nil)
			s.mux(false, 3, 0, packets(1, message, ""))
		}, nil},
		"reset while coderd's answer is half there": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name, message, string(metadata)))
			s.mux(false, 3, 0, packets(1, message, strings.Repeat("x", 100)))
			last := &s.parts[len(s.parts)-1]
			rest := last.Bytes[60:]
			last.Bytes = last.Bytes[:60]
			s.mux(true, 3, rst, nil)
			s.parts = append(s.parts, codertest.Part{Bytes: rest})
			s.call(5, name, metadata, nil)
		}, []string{line}},
		"another call": {func(s *script) { s.call(3, "/coder.agent.v2.Agent/BatchUpdateMetadataX", metadata, nil) }, nil},
		"a disconnect": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, codertest.Coordinate, message, "\x12\x00"))
		}, []string{fmt.Sprintf("%s 1200", codertest.Coordinate)}},
		"what coderd says of others": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, codertest.Coordinate, message, ""))
			s.mux(false, 3, 0, packets(1, message, secret))
		}, []string{codertest.Coordinate + " "}},
		"a long name": {func(s *script) { s.call(3, strings.Repeat(name, 100), metadata, nil) }, nil},
		"after a close frame": {func(s *script) {
			s.socket(true, ws.Header{Fin: true, OpCode: ws.OpClose}, []byte{3, 0xe8})
			s.call(3, name, metadata, nil)
		}, nil},
		"too large to be kept": {func(s *script) {
			big := "\x12\xff\xff\x3f" + strings.Repeat("x", 1<<20)
			s.call(3, name, []byte(big), nil)
			s.call(5, name, metadata, nil)
		}, []string{line}},
		"too large for coderd": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name))
			frame := drpcwire.AppendFrame(nil, drpcwire.Frame{ID: drpcwire.ID{Stream: 1, Message: 2}, Kind: message, Done: true})
			frame = append(frame[:3], 0x81, 0x80, 0x80, 0x02) // 4 MiB and a byte
			s.mux(true, 3, 0, frame)
			s.mux(true, 3, 0, bytes.Repeat([]byte("x"), 1000))
			s.call(5, name, metadata, nil)
		}, []string{line}},
	} {
		t.Run(what, func(t *testing.T) {
			s := &script{}
			s.manifest()
			test.add(s)
			for _, cut := range []func(int) int{whole, single, random(1)} {
				got, err := read(t, s.parts, cut)
				require.NoError(t, err)
				require.Equal(t, test.want, append([]string(nil), got[2:]...))
			}
		})
	}
}

// What is not as both sides have it ends decoding, with a reason, and without an error text
// that repeats what passed.
func TestEnds(t *testing.T) {
	const name = codertest.UpdateStats
	other := manifest()
	other.AgentID = uuid.UUID{9}
	for what, test := range map[string]struct {
		add  func(*script)
		want decode.Reason
	}{
		"reserved bit":      {func(s *script) { s.socket(true, ws.Header{Fin: true, Rsv: 4, OpCode: ws.OpBinary}, nil) }, decode.ReasonWebSocket},
		"text":              {func(s *script) { s.socket(true, ws.Header{Fin: true, OpCode: ws.OpText}, nil) }, decode.ReasonWebSocket},
		"continued nothing": {func(s *script) { s.socket(true, ws.Header{Fin: true}, nil) }, decode.ReasonWebSocket},
		"unmasked":          {func(s *script) { s.parts = append(s.parts, codertest.Part{FromAgent: true, Bytes: []byte{0x82, 0}}) }, decode.ReasonWebSocket},
		"masked by coderd":  {func(s *script) { s.parts = append(s.parts, codertest.Part{Bytes: []byte{0x82, 0x80, 1, 2, 3, 4}}) }, decode.ReasonWebSocket},
		"message of 5 MiB": {func(s *script) {
			s.parts = append(s.parts, codertest.Part{Bytes: []byte{0x82, 127, 0, 0, 0, 0, 0, 0x50, 0, 0}})
		}, decode.ReasonWebSocket},
		"yamux version":       {func(s *script) { s.binary(true, append([]byte{1}, make([]byte, 11)...)) }, decode.ReasonYamux},
		"yamux type":          {func(s *script) { s.binary(true, append([]byte{0, 4}, make([]byte, 10)...)) }, decode.ReasonYamux},
		"coderd's stream":     {func(s *script) { s.mux(true, 2, syn, nil) }, decode.ReasonYamux},
		"stream again":        {func(s *script) { s.call(3, name, nil, nil); s.mux(true, 3, syn, nil) }, decode.ReasonReused},
		"open stream again":   {func(s *script) { s.mux(true, 3, syn, nil); s.mux(true, 3, syn, nil) }, decode.ReasonReused},
		"stream of long ago":  {func(s *script) { s.mux(true, 1001, syn, nil); s.mux(true, 5, syn, nil) }, decode.ReasonReused},
		"two calls":           {func(s *script) { s.mux(true, 3, syn, packets(1, invoke, name, invoke, name)) }, decode.ReasonReused},
		"two unrelayed calls": {func(s *script) { s.mux(true, 3, syn, packets(1, invoke, "/x", message, "", invoke, name)) }, decode.ReasonReused},
		"next call of dRPC": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name))
			s.mux(true, 3, 0, drpcwire.AppendFrame(nil, drpcwire.Frame{ID: drpcwire.ID{Stream: 2, Message: 1}, Kind: invoke, Done: true}))
		}, decode.ReasonReused},
		"answer of another call": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name, message, ""))
			s.mux(false, 3, 0, drpcwire.AppendFrame(nil, drpcwire.Frame{ID: drpcwire.ID{Stream: 2, Message: 1}, Kind: message, Done: true}))
		}, decode.ReasonReused},
		"ids that fall": {func(s *script) { s.mux(true, 3, syn, append(packets(2, invoke, name), packets(1, message, "")...)) }, decode.ReasonDRPC},
		"message first": {func(s *script) { s.mux(true, 3, syn, packets(1, message, "")) }, decode.ReasonDRPC},
		"answer first": {func(s *script) {
			s.mux(true, 3, syn, packets(1, invoke, name))
			s.mux(false, 3, 0, packets(1, message, ""))
		}, decode.ReasonDRPC},
		"unknown packet":   {func(s *script) { s.mux(true, 3, syn, packets(1, drpcwire.Kind(20), "")) }, decode.ReasonDRPC},
		"long number":      {func(s *script) { s.mux(true, 3, syn, bytes.Repeat([]byte{0xff}, 40)) }, decode.ReasonDRPC},
		"no manifest's id": {func(s *script) { s.call(3, codertest.GetManifest, nil, nil) }, decode.ReasonMessage},
		"another agent":    {func(s *script) { s.manifest(); s.call(3, codertest.GetManifest, nil, other.Encode()) }, decode.ReasonIdentity},
		"no protobuf":      {func(s *script) { s.call(3, codertest.GetManifest, nil, []byte("\xff\xff")) }, decode.ReasonMessage},
		"a group":          {func(s *script) { s.call(3, codertest.GetManifest, nil, []byte{3<<3 | 3}) }, decode.ReasonMessage},
		"a long name": {func(s *script) {
			s.call(3, codertest.GetManifest, nil, append([]byte{15<<3 | 2, 0xd0, 0x0f}, make([]byte, 2000)...))
		}, decode.ReasonMessage},
		"a field too long": {func(s *script) { s.call(3, codertest.GetManifest, nil, []byte{11<<3 | 2, 3, 1<<3 | 2, 16, 0}) }, decode.ReasonMessage},
		"128 streams, more": {func(s *script) {
			for i := range uint32(129) {
				s.mux(true, 2*i+1, syn, nil)
			}
		}, decode.ReasonStreams},
		"calls before the manifest": {func(s *script) {
			for i := range uint32(65) {
				s.call(2*i+1, name, []byte(secret), nil)
			}
		}, decode.ReasonManifest},
		"bytes before the manifest": {func(s *script) { s.call(1, name, make([]byte, 257<<10), nil) }, decode.ReasonManifest},
	} {
		t.Run(what, func(t *testing.T) {
			s := &script{}
			test.add(s)
			for _, cut := range []func(int) int{whole, single, random(1)} {
				_, err := read(t, s.parts, cut)
				var ended *decode.Error
				require.ErrorAs(t, err, &ended)
				require.Equal(t, test.want, ended.Reason, err)
				require.NotContains(t, err.Error(), secret)
			}
		})
	}
}

// Fields of another type than they have are skipped, as protobuf does.
func TestFieldsOfOtherTypes(t *testing.T) {
	m := append(manifest().Encode(), 15<<3, 5) // a number in the place of the agent's name
	m = append(m, 11<<3|5, 1, 2, 3, 4)         // and of an app
	s := &script{}
	s.call(1, codertest.GetManifest, nil, m)
	want, err := codertest.Parse(s.parts)
	require.NoError(t, err)
	require.Len(t, want, 2)
	for _, cut := range []func(int) int{whole, single} {
		got, err := read(t, s.parts, cut)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// What comes with the rest of a header is not kept with it, wherever that is cut.
func TestHeadersKeepNoData(t *testing.T) {
	s := &script{}
	s.manifest()
	s.call(3, codertest.BatchCreateLogs, []byte(secret), []byte(secret))
	for n := range 70 {
		c, err := decode.NewConnection(&lines{}, decode.NewBudget(64<<20))
		require.NoError(t, err)
		for _, p := range s.parts {
			for b := range slices.Chunk(bytes.Clone(p.Bytes), n+1) {
				require.NoError(t, c.Read(p.FromAgent, b))
				require.False(t, reaches(reflect.ValueOf(c), secret[:8], map[uintptr]bool{}), "chunks of %d", n+1)
			}
		}
		c.Close()
	}
}

// Fragments and control frames change nothing of what is decoded.
func TestFragments(t *testing.T) {
	parts := conversation(t)
	want, err := codertest.Parse(parts)
	require.NoError(t, err)
	for seed := range uint64(5) {
		fragments := codertest.Fragment(parts, rand.New(rand.NewPCG(seed, 0)), 2000)
		require.Greater(t, len(fragments), 2*len(parts))
		got, err := read(t, fragments, random(seed))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// The memory of all decoders is bounded.
func TestBudget(t *testing.T) {
	budget := decode.NewBudget(64 << 10)
	c, err := decode.NewConnection(&lines{}, budget)
	require.NoError(t, err)
	s := &script{}
	s.mux(true, 1, syn, packets(1, invoke, codertest.UpdateStats, message, strings.Repeat("x", 100<<10)))
	err = c.Read(true, s.parts[0].Bytes)
	var ended *decode.Error
	require.ErrorAs(t, err, &ended)
	require.Equal(t, decode.ReasonMemory, ended.Reason)
	c.Close()
	require.Zero(t, budget.Used())
	require.True(t, budget.Reserve(63<<10, 0))
	_, err = decode.NewConnection(&lines{}, budget)
	require.True(t, errors.As(err, &ended))
}

// So is that of streams, and of messages of which something is kept, however little comes of
// them.
func TestBudgetOfStreams(t *testing.T) {
	answer := drpcwire.AppendFrame(nil, drpcwire.Frame{ID: drpcwire.ID{Stream: 1, Message: 1}, Kind: message})
	for what, test := range map[string]struct {
		begun  []byte // of each stream's call
		answer []byte
	}{
		"streams":  {nil, nil},
		"messages": {packets(1, invoke, codertest.GetManifest, message, ""), answer},
	} {
		t.Run(what, func(t *testing.T) {
			budget := decode.NewBudget(30 << 10)
			c, err := decode.NewConnection(&lines{}, budget)
			require.NoError(t, err)
			for id := uint32(1); id < 200 && err == nil; id += 2 {
				s := &script{}
				s.mux(true, id, syn, test.begun)
				if test.answer != nil {
					s.mux(false, id, 0, test.answer)
				}
				for _, p := range s.parts {
					if err == nil {
						err = c.Read(p.FromAgent, p.Bytes)
					}
				}
			}
			var ended *decode.Error
			require.ErrorAs(t, err, &ended)
			require.Equal(t, decode.ReasonMemory, ended.Reason)
			require.LessOrEqual(t, budget.Used(), int64(30<<10))
			c.Close()
			require.Zero(t, budget.Used())
		})
	}
}

// An agent that begins many large calls, and ends none, takes no memory that others need.
func TestBudgetIsShared(t *testing.T) {
	const most = 1 << 20
	budget := decode.NewBudget(most)
	c, err := decode.NewConnection(&lines{}, budget)
	require.NoError(t, err)
	for id := uint32(1); err == nil && id < 200; id += 2 {
		s := &script{}
		begun := drpcwire.AppendFrame(packets(1, invoke, codertest.UpdateStats), drpcwire.Frame{
			ID: drpcwire.ID{Stream: 1, Message: 2}, Kind: message, Data: make([]byte, 50<<10),
		})
		s.mux(true, id, syn, begun)
		err = c.Read(true, s.parts[0].Bytes)
	}
	var ended *decode.Error
	require.ErrorAs(t, err, &ended)
	require.Equal(t, decode.ReasonMemory, ended.Reason)
	require.LessOrEqual(t, budget.Used(), int64(most/2))
	require.Greater(t, budget.Used(), int64(most/3))

	other := &lines{}
	usual, err := decode.NewConnection(other, budget)
	require.NoError(t, err)
	s := &script{}
	s.manifest()
	s.call(3, codertest.UpdateStats, statsRequest(t, 500), nil)
	for _, p := range s.parts {
		require.NoError(t, usual.Read(p.FromAgent, p.Bytes))
	}
	require.Len(t, other.got, 3)
	usual.Close()
	c.Close()
	require.Zero(t, budget.Used())
}
