package pgpool

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/tracelog"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/oneline"
	"github.com/coder/agentstatsd/internal/recurring"
	"github.com/coder/agentstatsd/internal/redact"
)

const (
	// slowQuery is how long a query takes at least that is logged for that. Flushes take
	// some ms, and reads of all registrations a second.
	slowQuery = 5 * time.Second
	// maxStatement bounds the text of a statement in the log, in bytes.
	maxStatement = 256
)

// Tracer returns a tracer that logs what pgx has to say: connections that are not made, and
// queries that fail or are slow, a line a minute of each, without what the queries carry.
// What is cancelled, or tried again as others write at once, is for debugging.
func Tracer(log *slog.Logger) *tracelog.TraceLog {
	// The level below has a line for each query, which the tracer needs to know the slow
	// ones.
	return &tracelog.TraceLog{Logger: &tracer{log: log}, LogLevel: tracelog.LogLevelInfo}
}

// tracer is a tracelog.Logger.
type tracer struct {
	log               *slog.Logger
	connects, queries recurring.Events // that failed
	slow              recurring.Events
}

// Log implements tracelog.Logger.
func (t *tracer) Log(ctx context.Context, _ tracelog.LogLevel, msg string, data map[string]any) {
	err, _ := data["err"].(error)
	took, _ := data["time"].(time.Duration)
	switch {
	case err == nil && took < slowQuery:
	case err == nil:
		t.slow.Log(ctx, t.log, slog.LevelWarn, "queries", 1, "a query of PostgreSQL is slow", "took", took.Round(time.Millisecond), "sql", statement(data))
	case isRoutine(err):
		t.log.DebugContext(ctx, "a call of PostgreSQL is given up", "what", msg, "error", plain(err))
	case msg == "Connect":
		t.connects.Log(ctx, t.log, slog.LevelWarn, "connections", 1, "no connection to PostgreSQL", "host", data["host"], "error", plain(err))
	default:
		t.queries.Log(ctx, t.log, slog.LevelWarn, "queries", 1, "a query of PostgreSQL failed", "what", msg, "sql", statement(data), "error", plain(err))
	}
}

// isRoutine reports whether an error is one of those that happen while all is well.
func isRoutine(err error) bool {
	var server *pgconn.PgError
	return errors.Is(err, context.Canceled) || errors.As(err, &server) && strings.HasPrefix(server.Code, "40")
}

func plain(err error) string { return redact.Text(oneline.Text(err.Error())) }

// statement returns the text of what was asked, which has parameters in place of values.
func statement(data map[string]any) string {
	sql, _ := data["sql"].(string)
	return agent.ShortenText(strings.Join(strings.Fields(sql), " "), maxStatement)
}
