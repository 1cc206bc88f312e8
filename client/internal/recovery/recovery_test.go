package recovery

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Once one has a session all others try, but not again and again.
func TestOpened(t *testing.T) {
	var r Recovery
	now := time.Unix(1000, 0)
	waits := func(n int) (channels []<-chan time.Duration) {
		for range n {
			again, _ := r.Wait()
			channels = append(channels, again)
		}
		return channels
	}
	first := waits(20)
	r.Opened(now)
	for _, again := range first {
		require.Less(t, <-again, spread)
	}
	require.Nil(t, r.timer)
	second := waits(1)
	r.Opened(now.Add(allInterval - 1))
	require.Empty(t, second[0])
	r.Opened(now.Add(allInterval))
	require.Len(t, second[0], 1)
}

// Of those that wait one tries at a time. Who does not wait any more does not.
func TestTryOne(t *testing.T) {
	var r Recovery
	one, oneDone := r.Wait()
	two, twoDone := r.Wait()
	_, threeDone := r.Wait()
	threeDone()
	r.tryOne()
	require.Equal(t, 1, len(one)+len(two))
	r.tryOne()
	require.Equal(t, 2, len(one)+len(two))
	require.Zero(t, <-one)
	require.Nil(t, r.timer, "nobody waits")
	oneDone()
	twoDone()
	r.tryOne()

	none := (*Recovery)(nil)
	again, done := none.Wait()
	require.Nil(t, again)
	done()
	none.Opened(time.Now())
}
