package codertest

import (
	"bytes"
	"math/rand/v2"

	"github.com/gobwas/ws"
)

// Fragment returns the parts with each WebSocket message cut into frames, most of them of one
// byte, none of more than most. Control frames of both sides are in between.
func Fragment(parts []Part, r *rand.Rand, most int) (all []Part) {
	add := func(fromAgent bool, h ws.Header, payload []byte) {
		var b bytes.Buffer
		payload = bytes.Clone(payload)
		h.Masked, h.Length = fromAgent, int64(len(payload))
		if fromAgent {
			h.Mask = [4]byte{byte(r.Uint32()), 2, 3, 4}
			ws.Cipher(payload, h.Mask, 0)
		}
		_ = ws.WriteHeader(&b, h) // to memory, of a valid length
		all = append(all, Part{fromAgent, append(b.Bytes(), payload...)})
	}
	for _, p := range payloads(parts) {
		for first := true; len(p.Bytes) > 0 || first; first = false {
			n := min(len(p.Bytes), 1+r.IntN(3)/2*r.IntN(most))
			h := ws.Header{OpCode: ws.OpContinuation, Fin: n == len(p.Bytes)}
			if first {
				h.OpCode = ws.OpBinary
			}
			add(p.FromAgent, h, p.Bytes[:n])
			p.Bytes = p.Bytes[n:]
			if r.IntN(10) == 0 {
				add(p.FromAgent, ws.Header{Fin: true, OpCode: ws.OpPing}, []byte("ping"))
				add(!p.FromAgent, ws.Header{Fin: true, OpCode: ws.OpPong}, []byte("pong"))
			}
		}
	}
	return all
}

// payloads returns the content of the WebSocket frames, unmasked.
func payloads(parts []Part) (all []Part) {
	var sides [2][]byte
	for _, p := range parts {
		side := &sides[sideOf(p.FromAgent)]
		*side = append(*side, p.Bytes...)
		for {
			r := bytes.NewReader(*side)
			h, err := ws.ReadHeader(r)
			if err != nil || int64(r.Len()) < h.Length {
				break
			}
			payload := bytes.Clone((*side)[len(*side)-r.Len():][:h.Length])
			*side = (*side)[len(*side)-r.Len()+int(h.Length):]
			if h.OpCode.IsControl() {
				continue
			}
			if h.Masked {
				ws.Cipher(payload, h.Mask, 0)
			}
			all = append(all, Part{p.FromAgent, payload})
		}
	}
	return all
}
