package agentapi

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/coder/agentstatsd/internal/bubble"
)

// While another goroutine waits for the agent, its unsent refusals do not grow.
func TestAwaitRefusals(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		waits := func(ctx context.Context, unsent int) (c *connection, done chan struct{}) {
			c = &connection{sending: true}
			done = make(chan struct{})
			go func() {
				c.awaitRefusals(ctx, func() int { return unsent })
				close(done)
			}()
			synctest.Wait()
			return c, done
		}
		_, done := waits(t.Context(), maxUnsentRefusals)
		<-done

		c, done := waits(t.Context(), maxUnsentRefusals+1)
		select {
		case <-done:
			t.Fatal("it does not wait")
		default:
		}
		c.mu.Lock()
		c.sending = false
		c.mu.Unlock()
		c.sendDue()
		<-done

		ctx, cancel := context.WithCancel(t.Context())
		_, done = waits(ctx, maxUnsentRefusals+1)
		cancel()
		<-done
	})
}
