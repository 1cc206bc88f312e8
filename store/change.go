package store

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/backoff"
	"github.com/coder/agentstatsd/internal/oneline"
	"github.com/coder/agentstatsd/store/internal/measured"
)

// A call is tried a few times at once if the database says that it may well succeed.
// Then replicas met in a deadlock, or a connection was cut as a server was replaced.
// The waits differ so that those who met do not meet again. Longer outages are the
// callers'.
const maxAttempts = 3

var attempts = backoff.Backoff{Min: 100 * time.Millisecond, Max: 250 * time.Millisecond}

// errAgain is wrapped by errors of an attempt that the next will not meet.
var errAgain = errors.New("changed meanwhile")

// change runs f in one transaction. doing names it in errors. f may run several times.
// The transaction of an earlier run may have been committed though its answer was lost.
// So f writes what is the same the second time, or what the second time is refused as
// outdated.
func (s *Store) change(ctx context.Context, doing string, f func(*sql.Tx) error) error {
	return s.attempt(ctx, doing, func() error { return s.transact(ctx, s.writer, nil, f) })
}

// view runs f in one transaction that only reads, all from one snapshot. f may
// run several times.
func (s *Store) view(ctx context.Context, doing string, f func(*sql.Tx) error) error {
	return s.attempt(ctx, doing, func() error { return s.transact(ctx, s.reader, s.dialect.snapshot, f) })
}

// stream is a read of any size within a view. It may take as long as it goes on: it ends
// with context.DeadlineExceeded when no row has come for a while.
func (s *Store) stream(ctx context.Context, tx *sql.Tx, page page, text string, args []any, scan func(*sql.Rows) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(s.patience, func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	err := s.dialect.stream(ctx, tx, page, text, args, func(rows *sql.Rows) error {
		timer.Reset(s.patience)
		return scan(rows)
	})
	if err != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return fmt.Errorf("no row for %v: %w", s.patience, context.DeadlineExceeded)
	}
	return err
}

// read runs f, which runs one statement. f may run several times.
func (s *Store) read(ctx context.Context, doing string, f func(querier) error) error {
	return s.attempt(ctx, doing, func() error { return f(s.reader) })
}

// transact runs f in one transaction. Without opts it writes, and is committed.
func (s *Store) transact(ctx context.Context, db *sql.DB, opts *sql.TxOptions, f func(*sql.Tx) error) error {
	writes := opts == nil
	if writes {
		opts = s.dialect.writing
	}
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if writes && s.dialect.commitDurably != "" {
		if _, err = tx.ExecContext(ctx, s.dialect.commitDurably); err == nil {
			err = f(tx)
		}
	} else {
		err = f(tx)
	}
	if err == nil && writes {
		if err = tx.Commit(); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		return nil
	}
	rollback := tx.Rollback()
	switch {
	case rollback == nil, errors.Is(rollback, sql.ErrTxDone):
		return err
	case err == nil:
		return fmt.Errorf("roll back: %w", rollback)
	}
	// The cause of the error, often: the connection is gone.
	return fmt.Errorf("%w (roll back: %w)", err, rollback)
}

// attempt runs f until it succeeds, fails for good or was tried often enough.
func (s *Store) attempt(ctx context.Context, doing string, f func() error) error {
	defer s.metrics.Time(doing)()
	down := false
	for n := 1; ; n++ {
		err := f()
		if err == nil {
			return nil
		}
		fault := s.dialect.faultOf(err)
		down = down || fault.down
		if fault.moved && s.renew != nil && s.renew() {
			s.log.DebugContext(ctx, "connections to the database are made anew", "error", err)
		}
		again := errors.Is(err, errAgain) || fault.transient
		if n < maxAttempts && again && attempts.Wait(ctx, n) {
			continue
		}
		if down && again && !fault.down && !fault.answered {
			// A server that stops or starts may cut a connection without a word.
			s.metrics.CountError(measured.CauseUnreachable)
			return &Error{doing: doing, reason: reasonDown, err: fmt.Errorf("%w: %w", agent.ErrStoreDown, err)}
		}
		failed := s.classify(ctx, doing, err)
		if cause := causeOf(failed); cause != "" {
			s.metrics.CountError(cause)
		}
		return failed
	}
}

// Error is what a call ended with. Its text is for the log: it has what the driver says,
// names of users and servers included.
type Error struct {
	doing  string
	reason string
	err    error
}

// Error returns what was being done, and all that is known of why it failed, in one line.
func (e *Error) Error() string { return e.doing + ": " + oneline.Text(e.err.Error()) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.err }

// Reason says in a few words of ours why the database could not be used. It may be
// shown to anybody.
func (e *Error) Reason() string { return e.reason }

// What Reason returns, unless the fault knows better.
const (
	reasonUnknown  = "the database did not do what it was asked to"
	reasonDown     = "the database cannot be reached: it is stopped, starting or refuses connections"
	reasonTimeout  = "the database did not answer in time"
	reasonRejected = "the database refused data"
	reasonCut      = "the connection to the database was lost"
	reasonReadOnly = "the database server takes no writes: it is a standby, or was replaced"
	reasonMoved    = "the database is not where it was: the server that answers has another"
	reasonFull     = "the disk of the database is full"
	reasonCrowded  = "the database has no connection left"
)

// classify wraps err so that callers know what writing again can cure.
func (s *Store) classify(ctx context.Context, doing string, err error) *Error {
	f := s.dialect.faultOf(err)
	e := &Error{doing: doing, reason: cmp.Or(f.reason, reasonUnknown), err: err}
	switch {
	case f.rejected && !errors.Is(err, agent.ErrRejected):
		e.reason, e.err = reasonRejected, fmt.Errorf("%w: %w", agent.ErrRejected, err)
	case f.down:
		e.reason, e.err = reasonDown, fmt.Errorf("%w: %w", agent.ErrStoreDown, err)
	case ctx.Err() != nil && (errors.Is(err, sql.ErrTxDone) || errors.Is(err, driver.ErrBadConn)):
		// database/sql rolled back, or the driver sent nothing, because the
		// context ended.
		e.err = ctx.Err()
	}
	if errors.Is(e.err, context.DeadlineExceeded) {
		e.reason = reasonTimeout
	}
	return e
}

// causes are by what Reason returns.
var causes = map[string]string{
	reasonDown:     measured.CauseUnreachable,
	reasonCut:      measured.CauseUnreachable,
	reasonTimeout:  measured.CauseTimeout,
	reasonRejected: measured.CauseRejected,
	reasonReadOnly: measured.CauseReadOnly,
	reasonMoved:    measured.CauseMoved,
	reasonFull:     measured.CauseDiskFull,
	reasonCrowded:  measured.CauseConnections,
}

// causeOf returns what an error counts as; empty: it is the caller's, who gave up or was
// outdated.
func causeOf(e *Error) string {
	if cause := causes[e.reason]; cause != "" {
		return cause
	}
	if errors.As(e.err, new(*pgconn.PgError)) || errors.As(e.err, new(*sqlite.Error)) {
		return measured.CauseOther
	}
	return ""
}

// query runs a read and calls scan for each row.
func query(ctx context.Context, q querier, text string, args []any, scan func(*sql.Rows) error) (err error) {
	rows, err := q.QueryContext(ctx, text, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// querier is a *sql.DB or a *sql.Tx.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// inOrder returns the items sorted, and of equal ones what merge makes of them,
// or the last if it is nil. A statement must not write a row twice, and
// replicas that write the same rows must lock them in one order.
func inOrder[T any](items []T, compare func(a, b T) int, merge func(a, b T) T) []T {
	items = slices.Clone(items)
	slices.SortStableFunc(items, compare)
	kept := items[:0]
	for _, item := range items {
		switch {
		case len(kept) == 0 || compare(kept[len(kept)-1], item) != 0:
			kept = append(kept, item)
		case merge != nil:
			kept[len(kept)-1] = merge(kept[len(kept)-1], item)
		default:
			kept[len(kept)-1] = item
		}
	}
	return kept
}

// compareIDs is the order of uuid columns, which is that of their bytes.
func compareIDs(a, b agent.ID) int {
	return bytes.Compare(a[:], b[:])
}

// inOrderIDs is inOrder of ids.
func inOrderIDs(ids []agent.ID) []agent.ID {
	return inOrder(ids, compareIDs, nil)
}

// toRows returns the arguments of each item.
func toRows[T any](items []T, args func(*T) ([]any, error)) ([][]any, error) {
	rows := make([][]any, len(items))
	for i := range items {
		var err error
		if rows[i], err = args(&items[i]); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// idRows returns the arguments of each id, which others follow.
func (s *Store) idRows(ids []agent.ID, others ...any) [][]any {
	rows := make([][]any, len(ids))
	for i, id := range ids {
		rows[i] = append([]any{s.dialect.id(id)}, others...)
	}
	return rows
}
