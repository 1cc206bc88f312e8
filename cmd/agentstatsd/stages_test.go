package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRunStagesStopsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stopped []string
		stage := func(name string, stopTakes time.Duration) []task {
			return []task{func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(stopTakes)
				stopped = append(stopped, name)
				return nil
			}}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := runStages(ctx, stage("servers", 3*time.Second), stage("workers", time.Second), stage("http", 0))
		require.NoError(t, err)
		require.Equal(t, []string{"servers", "workers", "http"}, stopped)
	})
}

func TestRunStagesStopsWhenATaskEnds(t *testing.T) {
	errBroken := errors.New("broken")
	for name, tc := range map[string]struct{ ends, want error }{
		"with an error":    {errBroken, errBroken},
		"without an error": {nil, errEndedEarly},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				flushed := false
				err := runStages(t.Context(),
					[]task{func(context.Context) error { return tc.ends }},
					[]task{func(ctx context.Context) error { <-ctx.Done(); flushed = true; return nil }},
				)
				require.ErrorIs(t, err, tc.want)
				require.True(t, flushed, "the other stages are told to stop, and waited for")
			})
		})
	}
}
