package pgpool

import (
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coder/agentstatsd/internal/redact"
)

// Notices returns a handler that logs what a server says beside its answers: its warnings
// as such, the rest for debugging.
func Notices(log *slog.Logger) pgconn.NoticeHandler {
	return func(_ *pgconn.PgConn, n *pgconn.Notice) {
		level := slog.LevelDebug
		if n.SeverityUnlocalized == "WARNING" {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "PostgreSQL has a notice", "severity", n.Severity, "code", n.Code, "message", redact.Text(n.Message))
	}
}
