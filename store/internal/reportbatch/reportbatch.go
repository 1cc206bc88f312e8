// Package reportbatch encodes batches of reports as they are stored.
package reportbatch

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// A batch of reports is a byte of version, then its sums. A sum is the ids of agent and
// workspace, then numbers as varints in the order of the columns of report_sums. The
// data follows, after its length.
const version = 1

var errBad = errors.New("a batch of reports is cut off or of another version")

// Encode returns the batch of the sums.
func Encode(sums []agent.ReportSum) []byte {
	b := make([]byte, 0, 1+len(sums)*160)
	b = append(b, version)
	for i := range sums {
		s := &sums[i]
		b = append(append(b, s.Agent[:]...), s.Workspace[:]...)
		for _, n := range sumNumbers(s) {
			b = binary.AppendVarint(b, *n)
		}
		b = binary.AppendVarint(b, unixNanos(s.ReceivedAt))
		b = binary.AppendVarint(b, unixNanos(s.LastUsedAt))
		b = binary.AppendUvarint(b, uint64(len(s.Data)))
		b = append(b, s.Data...)
	}
	return b
}

func sumNumbers(s *agent.ReportSum) [7]*int64 {
	return [...]*int64{&s.Order.Epoch, &s.Order.Sequence, &s.Reports, &s.RxPackets, &s.RxBytes, &s.TxPackets, &s.TxBytes}
}

// Decode returns the sums of a batch, and as many as can be read beside an error.
func Decode(b []byte) (sums []agent.ReportSum, err error) {
	if len(b) == 0 || b[0] != version {
		return nil, errBad
	}
	const ids = 2 * len(agent.ID{})
	for b = b[1:]; len(b) > 0; {
		if len(b) < ids {
			return sums, errBad
		}
		s := agent.ReportSum{Agent: agent.ID(b[:ids/2]), Workspace: agent.ID(b[ids/2 : ids])}
		b = b[ids:]
		var received, used int64
		numbers := sumNumbers(&s)
		for _, n := range append(numbers[:], &received, &used) {
			v, size := binary.Varint(b)
			if size <= 0 {
				return sums, errBad
			}
			*n, b = v, b[size:]
		}
		s.ReceivedAt, s.LastUsedAt = TimeOf(received), TimeOf(used)
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return sums, errBad
		}
		if b = b[size:]; n > 0 {
			s.Data = append([]byte(nil), b[:n]...)
		}
		b = b[n:]
		sums = append(sums, s)
	}
	return sums, nil
}

// TimeOf returns the time of a column in nanoseconds since 1970; 0: the zero one.
func TimeOf(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// unixNanos is the inverse of TimeOf.
func unixNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
