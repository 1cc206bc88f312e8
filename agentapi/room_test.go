package agentapi

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/coder/agentstatsd/internal/bubble"
)

// While somebody else waits for the agent, what it is to be told does not grow.
func TestAwaitRoom(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		waits := func(ctx context.Context, unsent int) (c *connection, done chan struct{}) {
			c = &connection{answering: true}
			done = make(chan struct{})
			go func() {
				c.awaitRoom(ctx, func() int { return unsent })
				close(done)
			}()
			synctest.Wait()
			return c, done
		}
		_, done := waits(t.Context(), maxUntold)
		<-done

		c, done := waits(t.Context(), maxUntold+1)
		select {
		case <-done:
			t.Fatal("it does not wait")
		default:
		}
		c.mu.Lock()
		c.answering = false
		c.mu.Unlock()
		c.answer()
		<-done

		ctx, cancel := context.WithCancel(t.Context())
		_, done = waits(ctx, maxUntold+1)
		cancel()
		<-done
	})
}
