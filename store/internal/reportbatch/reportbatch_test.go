package reportbatch

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func TestEncoding(t *testing.T) {
	sums := []agent.ReportSum{
		{Agent: agent.ID{1}},
		{
			Agent: agent.ID{2}, Workspace: agent.ID{3}, Order: agent.Order{Epoch: math.MaxInt64, Sequence: -1}, Reports: 1,
			RxPackets: 2, RxBytes: math.MaxInt64, TxPackets: 3, TxBytes: 4,
			ReceivedAt: time.Unix(5, 6).UTC(), LastUsedAt: time.Unix(-7, 0).UTC(), Data: make([]byte, 300),
		},
	}
	encoded := Encode(sums)
	decoded, err := Decode(encoded)
	require.NoError(t, err)
	require.Equal(t, sums, decoded)
	whole := len(Encode(sums[:1]))
	for n := range encoded {
		decoded, err = Decode(encoded[:n])
		switch n {
		case 1:
			require.NoError(t, err, "no sums")
			require.Empty(t, decoded)
		case whole:
			require.NoError(t, err)
			require.Equal(t, sums[:1], decoded)
		default:
			require.ErrorIs(t, err, errBad, n)
			require.LessOrEqual(t, len(decoded), 1)
		}
	}
	_, err = Decode([]byte{version + 1})
	require.ErrorIs(t, err, errBad)
}
