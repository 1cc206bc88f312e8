package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// A replica takes over the id that the database has now, when that can be read and the
// pubsub can be had.
func TestFollowDeployment(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		first, second := uuid.New(), uuid.New()
		var mu sync.Mutex // guards what follows
		var now agent.ID
		var readErr, takeErr error
		var taken []uuid.UUID
		now = first
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- followDeployment(ctx, first, func(context.Context) (agent.ID, error) {
				mu.Lock()
				defer mu.Unlock()
				return now, readErr
			}, func(id uuid.UUID) error {
				mu.Lock()
				defer mu.Unlock()
				if takeErr == nil {
					taken = append(taken, id)
				}
				return takeErr
			}, slog.New(slog.DiscardHandler))
		}()
		mu.Lock()
		wait := func() {
			mu.Unlock()
			time.Sleep(deploymentInterval)
			synctest.Wait()
			mu.Lock()
		}
		wait()
		require.Empty(t, taken)
		now, readErr = second, errors.New("away")
		wait()
		require.Empty(t, taken)
		readErr, takeErr = nil, errors.New("no server")
		wait()
		require.Empty(t, taken)
		takeErr = nil
		wait()
		wait()
		require.Equal(t, []uuid.UUID{second}, taken)
		mu.Unlock()
		cancel()
		require.NoError(t, <-ended)
	})
}

func TestDeploymentOption(t *testing.T) {
	require.Zero(t, (&config{}).deployment())
	require.NotEqual(t, (&config{deploymentID: "a"}).deployment(), (&config{deploymentID: "b"}).deployment())
}

func TestConnectionName(t *testing.T) {
	require.Equal(t, "agentstatsd", connectionName("", ""))
	require.Equal(t, "agentstatsd pod-1", connectionName("pod-1", ""))
	require.Equal(t, "agentstatsd 0a1b2c3d pod-1", connectionName("pod-1", "0a1b2c3d"))
	require.Len(t, connectionName(strings.Repeat("h", 100), "0a1b2c3d"), 63)
}
