package kept

import (
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// noTime stands for the zero time. Stores refuse times of which nanoseconds since 1970 do
// not fit into 64 bits.
const noTime = math.MinInt64

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return noTime
	}
	return t.UnixNano()
}

func timeOf(nanos int64) time.Time {
	if nanos == noTime {
		return time.Time{}
	}
	return time.Unix(0, nanos).UTC()
}

// words are encoded as their place, from 1.
var words = [...]string{
	"",
	string(agent.LifecycleCreated), string(agent.LifecycleStarting), string(agent.LifecycleStartTimeout),
	string(agent.LifecycleStartError), string(agent.LifecycleReady), string(agent.LifecycleShuttingDown),
	string(agent.LifecycleShutdownTimeout), string(agent.LifecycleShutdownError), string(agent.LifecycleOff),
	string(agent.AppHealthDisabled), string(agent.AppHealthInitializing), string(agent.AppHealthHealthy), string(agent.AppHealthUnhealthy),
	string(agent.StatusConnecting), string(agent.StatusConnected), string(agent.StatusDisconnected), string(agent.StatusTimeout),
	"start", "stop", "delete",
}

// The encoding: numbers are varints; a text is its length and its bytes; a word is its
// place in words, or 0 and a text.

func appendText(dst []byte, text string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(text))), text...)
}

func appendWord[W ~string](dst []byte, word W) []byte {
	if at := slices.Index(words[:], string(word)); at >= 0 {
		return append(dst, byte(at+1))
	}
	return appendText(append(dst, 0), string(word))
}

func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// decoder reads what was encoded here. Its texts share the memory of the encoding.
type decoder struct{ rest string }

func (d *decoder) uint() uint64 {
	var n uint64
	for shift := 0; ; shift += 7 {
		b := d.byte()
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n
		}
	}
}

func (d *decoder) int() int64 {
	n := d.uint()
	return int64(n>>1) ^ -int64(n&1)
}

func (d *decoder) byte() byte {
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *decoder) bytes(n uint64) string {
	text := d.rest[:n]
	d.rest = d.rest[n:]
	return text
}

func (d *decoder) text() string { return d.bytes(d.uint()) }

func (d *decoder) word() string {
	if at := d.byte(); at != 0 {
		return words[at-1]
	}
	return d.text()
}

func (d *decoder) bool() bool { return d.byte() != 0 }

func (d *decoder) id() (id agent.ID) {
	copy(id[:], d.bytes(uint64(len(id))))
	return id
}
