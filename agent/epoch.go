package agent

import (
	"encoding/binary"
	"hash/fnv"
	"time"
)

// NextEpoch returns the epoch of a session that a replica opens. last is the highest
// epoch that it knows of the agent, in this incarnation of its registration.
//
// The epoch rises even if the clock does not. It can still be below a stored epoch
// that this replica does not know, if the clock is slow or was set back. Then the
// stored values win, and the session ends: EndOutdated.
//
// Two replicas with the same last epoch, and clocks behind it, take different steps
// of up to a millisecond. With equal epochs, values of one replica would silently
// replace those of the other.
//
// So do two sessions on one replica, of two incarnations. The replica forgets the epochs
// of the earlier one, and may know the same last epoch again.
func NextEpoch(now time.Time, last int64, replica ID, incarnation int64) int64 {
	step := int64(1)
	if replica != (ID{}) {
		h := fnv.New64a()
		h.Write(replica[:])
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(last)))
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(incarnation)))
		step += int64(h.Sum64() % MaxEpochStep)
	}
	return max(now.UnixNano(), last+step)
}

// MaxEpochStep is in nanoseconds. Steps of two replicas, or incarnations, are
// equal once in a million times. An agent that connects each second does not outrun the clock.
const MaxEpochStep = uint64(time.Millisecond)
