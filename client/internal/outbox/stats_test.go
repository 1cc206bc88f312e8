package outbox

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// A count that the service would refuse is refused alone: neither the other counts of the
// report nor those that it merges with are.
func TestCountsThatAreTooHigh(t *testing.T) {
	now := time.Unix(0, 0)
	o := New(false)
	o.PutStats(&agentstatsv1.Stats{RxBytes: 5, TxBytes: 6}, false, now)
	o.PutStats(&agentstatsv1.Stats{RxBytes: maxDelta + 1, TxBytes: 1, TxPackets: -1}, false, now)
	o.PutStats(&agentstatsv1.Stats{RxPackets: maxDelta}, false, now)
	o.PutStats(&agentstatsv1.Stats{RxBytes: 2, RxPackets: 3}, false, now)
	refusals := make(map[string][]string)
	for _, r := range o.TakeRefusals() {
		refusals[r.GetReason()] = r.GetNames()
	}
	require.Equal(t, map[string][]string{reasonInvalidStats: {"rx_bytes"}, reasonNegativeDelta: {"tx_packets"}}, refusals)
	sent := sendAll(o)
	require.Len(t, sent, 1)
	stats := sent[0].GetStats()
	require.Equal(t, []int64{7, 7, maxDelta, 0}, []int64{stats.GetRxBytes(), stats.GetTxBytes(), stats.GetRxPackets(), stats.GetTxPackets()})
}
