package pushed

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/store"
)

func TestSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	for round := range 3 {
		s, err := store.Open(t.Context(), store.Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		f := open(t, s, Options{})
		now := start.Add(time.Duration(round) * 30 * time.Hour)
		pushText(t, f, now, 1, int64(1+round), everyKind)
		pushText(t, f, now, byte(2+round), 1, everyKind)
		got := check(t, f)
		require.Equal(t, float64(10*(2+round)), got[`{__name__="coderd_api_requests_processed_total", code="200", method="GET", path="/"}`])
		f.expire(now.Add(26 * time.Hour))
		require.NoError(t, f.foldIdle(t.Context(), now.Add(26*time.Hour)))
		rows, err := s.Pushes(t.Context(), nil)
		require.NoError(t, err)
		require.Len(t, rows, 3+round)
		require.NoError(t, s.Close())
	}
}
