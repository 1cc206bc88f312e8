package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// postgresFault reads SQLSTATEs, and errors of connections.
func postgresFault(err error) fault {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return sqlstateFault(e)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault{}
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)) {
		// Nobody listens at the address, or there is no such socket.
		return fault{transient: true, down: true, moved: true, answered: true, reason: reasonDown}
	}
	for _, cut := range []error{
		io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, net.ErrClosed, pgconn.ErrConnClosed, driver.ErrBadConn,
		// A server that is gone without a word, or the way to it.
		syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNABORTED,
	} {
		if errors.Is(err, cut) {
			return fault{transient: true, moved: true, reason: reasonCut}
		}
	}
	if errors.As(err, new(*pgconn.ConnectError)) {
		// No server of several was the right one: during a failover none is.
		return fault{transient: true, moved: true, answered: true, reason: reasonDown}
	}
	return fault{}
}

func sqlstateFault(e *pgconn.PgError) fault {
	// One that ends the session may have come after a commit.
	f := fault{answered: e.Severity == "ERROR" || e.SeverityUnlocalized == "ERROR"}
	switch e.Code {
	case "23503": // foreign_key_violation
		f.rejected, f.orphaned = true, true
	case "40001", // serialization_failure
		"40P01", // deadlock_detected
		"55P03": // lock_not_available: lock_timeout
		f.transient = true
	case "57014": // query_canceled: statement_timeout
		f.reason = reasonTimeout
	case "53100": // disk_full
		f.reason = reasonFull
	case "53300": // too_many_connections: of the server, the database or the role
		f.transient, f.reason = true, reasonCrowded
	case "25P03", // idle_in_transaction_session_timeout
		"25P04", // transaction_timeout
		"57P05": // idle_session_timeout
		// They end this connection only. Nothing was committed, unless it was before.
		f.transient, f.reason = true, reasonCut
	case "57P01", // admin_shutdown, also of one connection
		"57P02", // crash_shutdown
		"57P03": // cannot_connect_now: starting, stopping
		f.transient, f.down, f.moved, f.reason = true, true, true, reasonDown
	case "25006": // read_only_sql_transaction: an old primary
		f.transient, f.moved, f.reason = true, true, reasonReadOnly
	case "57P04", // database_dropped
		"3D000", // invalid_catalog_name: the server has no such database
		"3F000", // invalid_schema_name
		"42P01", // undefined_table
		"26000": // invalid_sql_statement_name: what was prepared was so on another server
		f.transient, f.moved, f.reason = true, true, reasonMoved
	default:
		sqlstateClassFault(e, &f)
	}
	return f
}

func sqlstateClassFault(e *pgconn.PgError, f *fault) {
	switch e.Code[:min(2, len(e.Code))] {
	case "22", // data: a NUL, a number that is out of range
		"23", // a constraint
		"54": // a limit: a key that is too long for an index
		f.rejected = true
	case "08": // the connection
		f.transient, f.moved, f.reason = true, true, reasonCut
		// PgBouncer's words when the server refuses it. There is no code for it.
		f.down = strings.Contains(e.Message, "server login has been failing") ||
			strings.Contains(e.Message, "(server down)")
	}
}
