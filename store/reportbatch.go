package store

import (
	"encoding/binary"
	"errors"

	"github.com/coder/agentstatsd/agent"
)

// A batch of reports is a byte of version, then its sums: the ids of agent and
// workspace, then numbers as varints in the order of the columns of report_sums,
// and the length of the data with the data.
const batchVersion = 1

var errBadBatch = errors.New("a batch of reports is cut off or of another version")

func encodeSums(sums []agent.ReportSum) []byte {
	b := make([]byte, 0, 1+len(sums)*160)
	b = append(b, batchVersion)
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

// decodeSums returns what encodeSums encoded, and as much as can be read beside an
// error.
func decodeSums(b []byte) (sums []agent.ReportSum, err error) {
	if len(b) == 0 || b[0] != batchVersion {
		return nil, errBadBatch
	}
	const ids = 2 * len(agent.ID{})
	for b = b[1:]; len(b) > 0; {
		if len(b) < ids {
			return sums, errBadBatch
		}
		s := agent.ReportSum{Agent: agent.ID(b[:ids/2]), Workspace: agent.ID(b[ids/2 : ids])}
		b = b[ids:]
		var received, used int64
		numbers := sumNumbers(&s)
		for _, n := range append(numbers[:], &received, &used) {
			v, size := binary.Varint(b)
			if size <= 0 {
				return sums, errBadBatch
			}
			*n, b = v, b[size:]
		}
		s.ReceivedAt, s.LastUsedAt = fromUnixNanos(received), fromUnixNanos(used)
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return sums, errBadBatch
		}
		if b = b[size:]; n > 0 {
			s.Data = append([]byte(nil), b[:n]...)
		}
		b = b[n:]
		sums = append(sums, s)
	}
	return sums, nil
}
