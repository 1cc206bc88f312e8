package stages

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

// logOf returns a logger and what it wrote.
func logOf() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})), &b
}

func TestRunStopsInOrder(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var stopped []string
		one := func(name string, stopTakes time.Duration) Stage {
			return Stage{Name: name, Timeout: time.Minute, Tasks: []Task{{name, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(stopTakes)
				mu.Lock()
				defer mu.Unlock()
				stopped = append(stopped, name)
				return nil
			}}}}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		log, text := logOf()
		err := Run(ctx, log, one("servers", 3*time.Second), one("workers", time.Second), Stage{Name: "none"}, one("http", 0))
		require.NoError(t, err)
		require.Equal(t, []string{"servers", "workers", "http"}, stopped)
		require.Equal(t, "level=INFO msg=stopping\n"+
			"level=INFO msg=\"stage stopped\" stage=servers took=3s\n"+
			"level=INFO msg=\"stage stopped\" stage=workers took=1s\n"+
			"level=INFO msg=\"stage stopped\" stage=http took=0s\n", text.String())
	})
}

func TestRunStopsWhenATaskEnds(t *testing.T) {
	errBroken := errors.New("broken")
	for name, tc := range map[string]struct{ ends, want error }{
		"with an error":    {errBroken, errBroken},
		"without an error": {nil, errEndedEarly},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				flushed := false
				err := Run(t.Context(), slog.New(slog.DiscardHandler),
					Stage{Name: "servers", Timeout: time.Second, Tasks: []Task{{"grpc", func(context.Context) error { return tc.ends }}}},
					Stage{Name: "workers", Timeout: time.Second, Tasks: []Task{{"batcher", func(ctx context.Context) error { <-ctx.Done(); flushed = true; return nil }}}},
				)
				require.ErrorIs(t, err, tc.want)
				require.ErrorContains(t, err, "grpc: ")
				require.True(t, flushed, "the other stages are stopped, and waited for")
			})
		})
	}
}

// TestRunLeavesWhatHangs has a task that does not stop: its stage is left
// after the timeout, the stages after it still stop well.
func TestRunLeavesWhatHangs(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		flushed := false
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		log, text := logOf()
		began := time.Now()
		err := Run(ctx, log,
			Stage{Name: "servers", Timeout: 7 * time.Second, Tasks: []Task{
				{"grpc", func(ctx context.Context) error { <-ctx.Done(); return nil }},
				{"hangs", func(context.Context) error { <-release; return nil }},
			}},
			Stage{Name: "workers", Timeout: time.Second, Tasks: []Task{{"batcher", func(ctx context.Context) error { <-ctx.Done(); flushed = true; return nil }}}},
		)
		require.ErrorIs(t, err, errNotStopped)
		require.ErrorContains(t, err, "servers: did not stop in time: hangs after 7s")
		require.Equal(t, 7*time.Second, time.Since(began))
		require.True(t, flushed)
		require.Contains(t, text.String(), "level=WARN msg=\"a stage did not stop in time\" stage=servers took=7s left=hangs\n")
	})
}
