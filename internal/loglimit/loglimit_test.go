package loglimit

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
)

func TestLogIsLimitedByTextAndSource(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var out edgetest.Log
		limit := New(slog.NewTextHandler(&out, nil), 60)
		log := slog.New(limit).With("component", "http")
		count := func(text string) int { return strings.Count(out.String(), text) }
		for range 40_000 {
			log.Warn("a TLS handshake failed", "peer", "10.0.0.1", "error", "garbage")
		}
		require.Equal(t, 10, count("peer=10.0.0.1"))
		log.Warn("a TLS handshake failed", "peer", "10.0.0.2")
		require.Equal(t, 1, count("peer=10.0.0.2"), "others are logged")
		require.Equal(t, 1, count("suppressed=39990"))
		log.Info("something else")
		require.Equal(t, 1, count("something else"))
		for i := range 100_000 {
			log.Warn("a TLS handshake failed", "peer", fmt.Sprintf("10.1.%d.%d", i/256, i%256))
		}
		require.Equal(t, 60, count("handshake"), "all together are limited too")
		log.With("peer", "10.0.0.9").WithGroup("g").Warn("a TLS handshake failed")
		require.Equal(t, 60, count("handshake"))
		require.LessOrEqual(t, len(limit.shared.buckets), maxSources)

		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 1, count("lines are left out of the log"))
		require.Contains(t, out.String(), fmt.Sprintf("lines=%d within=1m0s", 39_990+100_000-49+1))
		log.Warn("a TLS handshake failed", "peer", "10.0.0.1")
		require.Equal(t, 61, count("handshake"))
		require.Contains(t, out.String(), fmt.Sprintf("suppressed=%d\n", 100_000-49+1))
		require.EqualValues(t, 39_990+100_000-49+1, limit.shared.suppressed.Load())
	})
}

func TestLogWithoutLimit(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(New(slog.NewTextHandler(&out, nil), 0))
	for range 1000 {
		log.Info("x")
	}
	require.Equal(t, 1000, strings.Count(out.String(), "\n"))
}

// Many texts together are limited, too, and one line says how many were left out.
func TestLogIsLimitedInAll(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var out edgetest.Log
		log := slog.New(New(slog.NewTextHandler(&out, nil), 6))
		for i := range 1000 {
			log.Info(fmt.Sprint("text ", i))
		}
		require.Equal(t, 60, strings.Count(out.String(), "\n"))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 61, strings.Count(out.String(), "\n"))
		require.Contains(t, out.String(), `level=WARN msg="lines are left out of the log: there are too many" lines=940 within=1m0s`)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Equal(t, 61, strings.Count(out.String(), "\n"))
		log.Info("text 1")
		require.Contains(t, out.String(), "msg=\"text 1\"\n", "none with its text was left out")
	})
}
