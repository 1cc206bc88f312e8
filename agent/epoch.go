package agent

import (
	"encoding/binary"
	"hash/fnv"
	"time"
)

// NextEpoch returns the epoch of a session that a replica opens. last is the highest
// epoch that it knows of the agent.
//
// The epoch rises even if the clock does not. It can still be below a stored epoch
// that this replica does not know, if the clock is slow or was set back. Then the
// stored values win, and the session ends: EndOutdated.
//
// Two replicas with the same last epoch, and clocks behind it, take different steps
// of up to a millisecond. With equal epochs, values of one replica would silently
// replace those of the other.
func NextEpoch(now time.Time, last int64, replica ID) int64 {
	step := int64(1)
	if replica != (ID{}) {
		h := fnv.New64a()
		h.Write(replica[:])
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(last)))
		step += int64(h.Sum64() % MaxEpochStep)
	}
	return max(now.UnixNano(), last+step)
}

// MaxEpochStep is in nanoseconds. Steps of two replicas are equal once in a million
// times. An agent that connects each second does not outrun the clock.
const MaxEpochStep = uint64(time.Millisecond)
