package store

import (
	"math"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func TestBatchEncoding(t *testing.T) {
	sums := []agent.ReportSum{
		{Agent: id(1)},
		{
			Agent: id(2), Workspace: id(3), Order: agent.Order{Epoch: math.MaxInt64, Sequence: -1}, Reports: 1,
			RxPackets: 2, RxBytes: math.MaxInt64, TxPackets: 3, TxBytes: 4,
			ReceivedAt: time.Unix(5, 6).UTC(), LastUsedAt: time.Unix(-7, 0).UTC(), Data: make([]byte, 300),
		},
	}
	encoded := encodeSums(sums)
	decoded, err := decodeSums(encoded)
	require.NoError(t, err)
	require.Equal(t, sums, decoded)
	whole := len(encodeSums(sums[:1]))
	for n := range encoded {
		decoded, err = decodeSums(encoded[:n])
		switch n {
		case 1:
			require.NoError(t, err, "no sums")
			require.Empty(t, decoded)
		case whole:
			require.NoError(t, err)
			require.Equal(t, sums[:1], decoded)
		default:
			require.ErrorIs(t, err, errBadBatch, n)
			require.LessOrEqual(t, len(decoded), 1)
		}
	}
	_, err = decodeSums([]byte{batchVersion + 1})
	require.ErrorIs(t, err, errBadBatch)
}

// A batch that cannot be read is counted, and does not stop its watcher.
func TestUndecodableBatch(t *testing.T) {
	s := openTemp(t)
	a, err := s.OpenSubscription(t.Context(), reportOpening("a", 1))
	require.NoError(t, err)
	for _, text := range []string{
		"INSERT INTO report_batches (subscription_id, number, data) VALUES (1, 1, x'ff')",
		"UPDATE report_subscriptions SET number = 1",
	} {
		_, err := s.writer.ExecContext(t.Context(), text)
		require.NoError(t, err)
	}
	for range 2 {
		opened, err := s.OpenSubscription(t.Context(), reportOpening("a", 1))
		require.NoError(t, err)
		require.Equal(t, &agent.ReportBatch{Number: 1}, opened.Unacked)
	}
	require.Equal(t, 1.0, testutil.ToFloat64(s.undecodable.rows.WithLabelValues(kindBatches)))
	batch, err := s.DeliverReports(t.Context(), agent.Delivery{
		Subscription: a.ID, Incarnation: a.Incarnation, Stream: id(1), Number: 1, Acked: 1, Limit: 1,
	})
	require.NoError(t, err)
	require.Nil(t, batch)
}
