package pushed

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// stuck is a store that answers nothing once its flag is set.
type stuck struct {
	*memory
	now chan struct{}
}

func (s *stuck) wait(ctx context.Context) error {
	select {
	case <-s.now:
		<-ctx.Done()
		return ctx.Err()
	default:
		return nil
	}
}

func (s *stuck) FoldPushes(ctx context.Context, rows, removed []agent.PushRow) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.memory.FoldPushes(ctx, rows, removed)
}

func (s *stuck) PushVersions(ctx context.Context) (map[agent.Instance]int64, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	return s.memory.PushVersions(ctx)
}

// swallower is a pubsub that never publishes.
type swallower struct{}

func (swallower) Publish(ctx context.Context, _ string, _ []byte) error {
	<-ctx.Done()
	return ctx.Err()
}

func (swallower) Subscribe(string, func([]byte)) (func(), error) { return func() {}, nil }

// Run ends within the time for one publication, and logs no error. It does so whatever
// the store and the pubsub do, and however many instances there are to fold.
func TestRunEndsSoon(t *testing.T) {
	for name, stop := range map[string]struct {
		after time.Duration // the loops are waiting, following, folding or publishing then
		stuck bool
	}{
		"waiting": {after: 90 * time.Second}, "following": {after: 100 * time.Second, stuck: true},
		"folding": {after: 25 * time.Hour, stuck: true}, "publishing": {after: 25*time.Hour + 100*time.Millisecond},
	} {
		if testing.Short() && stop.after > time.Hour {
			continue // a day of the clock takes seconds of CPU
		}
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var said bytes.Buffer
				var l lease
				l.give(1)
				store := &stuck{memory: new(memory), now: make(chan struct{})}
				f, err := New(store, new(reserver), Options{Lease: l.of(1), Notifier: swallower{}}, prometheus.NewRegistry(),
					slog.New(slog.NewTextHandler(&said, nil)))
				require.NoError(t, err)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- f.Run(ctx) }()
				synctest.Wait()
				for id := range byte(50) {
					pushText(t, f, time.Now(), 1+id, 1, counter("1"))
				}
				if stop.stuck {
					time.AfterFunc(stop.after-time.Second, func() { close(store.now) })
				}
				time.Sleep(stop.after)
				synctest.Wait()
				stopped := time.Now()
				cancel()
				require.NoError(t, <-done)
				require.LessOrEqual(t, time.Since(stopped), notificationTimeout)
				require.Empty(t, said.String())
			})
		})
	}
}
