package agentapi

import (
	"context"
	"testing"
	"testing/synctest"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// While somebody else waits for the agent, what it is to be told does not grow.
func TestAwaitRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waits := func(ctx context.Context, unsent int) (c *connection, done chan struct{}) {
			c = &connection{answering: true, refusals: make([]*agentstatsv1.Refusal, unsent)}
			done = make(chan struct{})
			go func() {
				c.awaitRoom(ctx)
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
		c.answering = false
		c.mu.Unlock()
		c.answer()
		<-done

		ctx, cancel := context.WithCancel(t.Context())
		_, done = waits(ctx, maxUnsentRefusals+1)
		cancel()
		<-done
	})
}
