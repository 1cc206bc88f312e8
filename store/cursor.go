package store

import (
	"context"
	"database/sql"
	"sync"
)

// A cursor has in its lower bits the transaction up to which rows were read. Above them
// it has which of the servers, one after another, counted it. Another server may give
// the numbers of transactions again that a cursor has passed. An asynchronous standby
// does so that was promoted before it had the last ones, and so does a restored dump.
const transactionBits = 44 // 4,096 times as many as there are before the short ones wrap around

// servers numbers the servers that the database was read from, by when they started.
type servers struct {
	mu sync.Mutex
	// Guarded by mu.
	started int64 // of the last one
	count   int64
}

// cursor returns that of a transaction of a server.
func (s *servers) cursor(transaction, started int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if started != s.started || s.count == 0 {
		s.started = started
		s.count++
	}
	return s.count<<transactionBits | transaction
}

// readSince reads what was written since an earlier call, if the database knows
// that, and returns the cursor of this one. tx is a snapshot.
//
// PostgreSQL numbers transactions as they begin to write. All below next had
// ended when the snapshot was taken, so it has what they wrote; what is above is
// read again the next time.
func (s *Store) readSince(ctx context.Context, tx *sql.Tx, page page, text string, since int64, order string, scan func(*sql.Rows) error) (next int64, err error) {
	if s.dialect.queries.cursor == "" {
		return 0, s.stream(ctx, tx, page, text+order, nil, scan)
	}
	var transaction, started int64
	if err := tx.QueryRowContext(ctx, s.dialect.queries.cursor).Scan(&transaction, &started); err != nil {
		return 0, err
	}
	next = s.servers.cursor(transaction, started)
	if since > next || since>>transactionBits != next>>transactionBits {
		// Another server, or another cluster: all is read, once.
		return next, s.stream(ctx, tx, page, text+order, nil, scan)
	}
	since &= 1<<transactionBits - 1
	return next, s.stream(ctx, tx, page, text+s.dialect.queries.since+order, []any{since}, scan)
}
