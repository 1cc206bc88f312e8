package store

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/measured"
)

// Each call of the database is measured under its name.
func TestCallsAreMeasured(t *testing.T) {
	require.True(t, slices.IsSorted(measured.Calls))
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var found []string
	add := func(e ast.Expr) {
		if text, ok := e.(*ast.BasicLit); ok && text.Kind == token.STRING {
			name, err := strconv.Unquote(text.Value)
			require.NoError(t, err)
			found = append(found, name)
		}
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if s, ok := n.Fun.(*ast.SelectorExpr); ok && len(n.Args) > 2 && slices.Contains([]string{"attempt", "change", "view", "read", "writePushes"}, s.Sel.Name) {
					add(n.Args[1])
				}
			case *ast.ValueSpec:
				if n.Names[0].Name == "doing" && len(n.Values) == 1 {
					add(n.Values[0])
				}
			}
			return true
		})
	}
	slices.Sort(found)
	require.Equal(t, measured.Calls, slices.Compact(found))
}

// Each pool has its numbers, and that of a server its limit.
func TestPools(t *testing.T) {
	s := openTemp(t)
	conn, err := s.writer.Conn(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	numbers := func(s *Store) (all []string) {
		reg := prometheus.NewPedanticRegistry()
		require.NoError(t, s.registerPools(7, reg))
		families, err := reg.Gather()
		require.NoError(t, err)
		for _, f := range families {
			for _, m := range f.Metric {
				if slices.Contains([]string{"agentstatsd_go_sql_max_open_connections", "agentstatsd_limit", "agentstatsd_usage"}, f.GetName()) {
					all = append(all, fmt.Sprintf("%s %s %v", m.Label[0].GetValue(), strings.TrimPrefix(f.GetName(), "agentstatsd_"), m.GetGauge().GetValue()))
				}
			}
		}
		return all
	}
	readers := s.reader.Stats().MaxOpenConnections
	require.Greater(t, readers, 1)
	require.Equal(t, []string{fmt.Sprintf("sqlite_reader go_sql_max_open_connections %d", readers), "sqlite_writer go_sql_max_open_connections 1"}, numbers(s))
	server := &Store{dialect: &postgresDialect, writer: s.writer, reader: s.writer}
	require.Equal(t, []string{"postgres go_sql_max_open_connections 1", "database_conns limit 7", "database_conns usage 1"}, numbers(server))
}

// A call is measured once, also if it fails.
func TestCallsAreTimed(t *testing.T) {
	reg := prometheus.NewRegistry()
	s, err := Open(t.Context(), Options{Path: filepath.Join(t.TempDir(), "t.db")}, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, s.Ping(t.Context()))
	require.NoError(t, s.Close())
	require.Error(t, s.Ping(t.Context()))
	families, err := reg.Gather()
	require.NoError(t, err)
	calls := make(map[string]uint64)
	for _, f := range families {
		if f.GetName() == "agentstatsd_store_query_duration_seconds" {
			for _, m := range f.Metric {
				calls[m.Label[0].GetValue()] = m.GetHistogram().GetSampleCount()
			}
		}
	}
	require.Len(t, calls, len(measured.Calls))
	require.EqualValues(t, 2, calls["ping_database"])
	require.Zero(t, calls["upsert_metadata"])
}

// What the database did not let through counts by its cause, once for all attempts of a
// call. What a caller gave up, or was refused as outdated, does not.
func TestErrorsAreCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := newMetrics(reg)
	require.NoError(t, err)
	var fails error
	s := &Store{dialect: &dialect{faultOf: postgresFault}, metrics: m, log: slog.New(slog.DiscardHandler)}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		err   error
		cause string // empty: none
	}{
		{&pgconn.PgError{Code: "53100", Severity: "ERROR"}, measured.CauseDiskFull},
		{&pgconn.PgError{Code: "53300", Severity: "FATAL"}, measured.CauseConnections},
		{&pgconn.PgError{Code: "57P03", Severity: "FATAL"}, measured.CauseUnreachable},
		{&pgconn.PgError{Code: "25006", Severity: "ERROR"}, measured.CauseReadOnly},
		{&pgconn.PgError{Code: "3D000", Severity: "FATAL"}, measured.CauseMoved},
		{&pgconn.PgError{Code: "22021", Severity: "ERROR"}, measured.CauseRejected},
		{&pgconn.PgError{Code: "XX001", Severity: "ERROR"}, measured.CauseOther},
		{fmt.Errorf("read: %w", io.ErrUnexpectedEOF), measured.CauseUnreachable},
		{context.DeadlineExceeded, measured.CauseTimeout},
		{context.Canceled, ""},
		{agent.ErrOutdated, ""},
	} {
		before := causesCounted(t, reg)
		fails = c.err
		require.Error(t, s.attempt(cancelled, "ping database", func() error { return fails }))
		after := causesCounted(t, reg)
		for cause, n := range after {
			want := before[cause]
			if cause == c.cause {
				want++
			}
			require.Equal(t, want, n, "%v: %s", c.err, cause)
		}
		require.Len(t, after, 8)
	}
}

func causesCounted(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	counted := make(map[string]float64)
	for _, f := range families {
		if f.GetName() == "agentstatsd_store_errors_total" {
			for _, m := range f.Metric {
				counted[m.Label[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return counted
}
