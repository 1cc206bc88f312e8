package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBucket(t *testing.T) {
	now := time.Unix(1000, 0)
	var b bucket
	const perSecond, burst = 10, 100
	require.Zero(t, b.add(now, 100, perSecond, burst))
	require.Equal(t, 100*time.Millisecond, b.add(now, 1, perSecond, burst))
	now = now.Add(10 * time.Second)
	require.Zero(t, b.add(now, 99, perSecond, burst))
	require.Equal(t, 10*time.Second, b.add(now, 100, perSecond, burst))
	require.Equal(t, 10*time.Second, b.add(now.Add(-time.Hour), 0, perSecond, burst), "a clock that is set back pays nothing")
	now = now.Add(time.Hour)
	require.Zero(t, b.add(now, 100, perSecond, burst), "the debt does not fall below nothing")
	require.NotZero(t, b.add(now, 1, perSecond, burst))
}

// An agent that does the most that agents do is never slowed. Each 30 seconds it sends
// 1,000 series in 1 MB, each second 128 metadata keys in messages of their own. Now and
// then it reconnects and sends all anew.
func TestBudgetLeavesAgentsAlone(t *testing.T) {
	l := Limits{ // the defaults of the flags
		MessagesPerSecond: 200, MessagesBurst: 2000,
		BytesPerSecond: 512 << 10, BytesBurst: 8 << 20,
		RefusedPerSecond: 100, RefusedBurst: 5000,
	}
	var b Budget
	now := time.Unix(1000, 0)
	for second := range 3600 {
		if second%60 == 0 {
			wait, retry, _ := b.Charge(now, &l, SessionMessages, 0)
			require.Zero(t, wait+retry)
			for range 10 { // what waited
				wait, retry, _ = b.Charge(now, &l, 1, 400<<10)
				require.Zero(t, wait+retry)
			}
		}
		if second%30 == 0 {
			wait, retry, _ := b.Charge(now, &l, 1, 1<<20)
			require.Zero(t, wait+retry)
			b.ChargeSeries(1000) // each time others
			require.Zero(t, b.ChargeRefused(now, &l, 1000, 1<<20), "of one that nothing of is taken in")
		}
		for range 128 {
			wait, retry, _ := b.Charge(now, &l, 1, 2<<10)
			require.Zero(t, wait+retry)
		}
		now = now.Add(time.Second)
	}
}
