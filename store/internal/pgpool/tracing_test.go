package pgpool_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/tracelog"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/postgrestest"
	"github.com/coder/agentstatsd/store/internal/pgpool"
)

// What fails is logged once a minute, without values and passwords.
func TestTracer(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	var out bytes.Buffer
	tracer := pgpool.Tracer(slog.New(slog.NewTextHandler(&out, nil)))
	connect := func(url string) (*pgx.Conn, error) {
		config, err := pgx.ParseConfig(url)
		require.NoError(t, err)
		config.Tracer = tracer
		return pgx.ConnectConfig(t.Context(), config)
	}
	conn, err := connect(url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	var n int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT $1::int", 7).Scan(&n))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	other, err := connect(url)
	require.NoError(t, err)
	require.Error(t, other.QueryRow(cancelled, "SELECT 1").Scan(&n))
	require.NoError(t, other.Close(t.Context()))
	require.Empty(t, out.String(), "all is well")

	for range 3 {
		_, err = conn.Exec(t.Context(), "SELECT $1::text,\n\t1/0", "a value of an agent")
		require.Error(t, err)
	}
	require.Equal(t, 1, strings.Count(out.String(), "\n"), out.String())
	require.Contains(t, out.String(), `level=WARN msg="a query of PostgreSQL failed" queries=1 what=Query sql="SELECT $1::text, 1/0" error="ERROR: division by zero (SQLSTATE 22012)"`)
	require.NotContains(t, out.String(), "value of an agent")

	out.Reset()
	for range 3 {
		_, err = connect("postgres://ada:s3cret@127.0.0.1:1/x?sslmode=disable")
		require.Error(t, err)
	}
	require.Equal(t, 1, strings.Count(out.String(), "\n"), out.String())
	require.Contains(t, out.String(), `level=WARN msg="no connection to PostgreSQL" connections=1 host=127.0.0.1 error=`)
	require.NotContains(t, out.String(), "s3cret")
}

// Slow queries are logged, others are not.
func TestTracerOfSlowQueries(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		logger := pgpool.Tracer(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))).Logger
		for _, took := range []time.Duration{time.Second, 6 * time.Second} {
			logger.Log(t.Context(), tracelog.LogLevelInfo, "Query", map[string]any{"sql": "SELECT " + strings.Repeat("x", 1000), "args": []any{"v"}, "time": took})
		}
		synctest.Wait()
		require.Equal(t, 1, strings.Count(out.String(), "\n"))
		require.Contains(t, out.String(), `msg="a query of PostgreSQL is slow" queries=1 took=6s sql="SELECT xxx`)
		require.Less(t, out.Len(), 512)
	})
}
