package outage

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

func TestOutage(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := New(slog.New(slog.NewTextHandler(&out, nil)), "the database cannot be used", "the database can be used again")
		lines := func() int { return strings.Count(out.String(), "\n") }

		l.Works(t.Context())
		require.Zero(t, lines(), "what works is not logged")
		for range 10 * 60 {
			l.Failed(t.Context(), errors.New("refused"), "retry_in", time.Second)
			time.Sleep(time.Second)
		}
		require.Equal(t, 10, lines(), "one when it begins, and one a minute")
		require.Contains(t, out.String(), `level=WARN msg="the database cannot be used" error=refused failures=1 for=0s retry_in=1s`)
		require.Contains(t, out.String(), "failures=60 for=9m0s")
		l.Works(t.Context())
		l.Works(t.Context())
		require.Equal(t, 11, lines(), "one when it ends")
		require.Contains(t, out.String(), `level=INFO msg="the database can be used again" after=10m0s`)
	})
}

// What fails and works by turns has two lines a minute.
func TestOutageThatComesAndGoes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := New(slog.New(slog.NewTextHandler(&out, nil)), "does not work", "works again")
		for range 5 * 60 {
			l.Failed(t.Context(), errors.New("refused"))
			time.Sleep(500 * time.Millisecond)
			l.Works(t.Context())
			time.Sleep(500 * time.Millisecond)
		}
		require.Equal(t, 5, strings.Count(out.String(), "level=WARN"))
		require.Equal(t, 5, strings.Count(out.String(), "level=INFO"))
	})
}
