// Package store keeps the data of the service in a SQL database: agents, states,
// sessions, metadata, watched reports, pushed families, replicas and the lease. SQLite
// in a file is for one process, PostgreSQL, 14 or newer, for several.
//
// The methods promise the same on both. On PostgreSQL a call that writes many rows is a
// few statements, whatever their number. If another replica writes the same rows, a
// call waits for it, or returns an error that wraps agent.ErrOutdated.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/history"
	"github.com/coder/agentstatsd/store/internal/schema"
	"github.com/coder/agentstatsd/store/internal/undecodable"
)

// Store is an open database. Its methods are safe for concurrent use, and end with an
// error soon after their context does. A row that cannot be decoded is counted, logged
// once and left out, and the rest of a read goes on. Errors that writing again cannot
// cure wrap agent.ErrRejected. Those of a database that says that nobody can use it
// wrap agent.ErrStoreDown. After an error nothing of the call was written, unless the
// answer of PostgreSQL was lost or not waited for. Then all of it may have been.
type Store struct {
	dialect *dialect
	log     *slog.Logger
	metrics *metrics // nil: it is being opened
	// undecodable has the rows that reads skip.
	undecodable *undecodable.Rows
	// writer and reader are one pool on PostgreSQL.
	writer *sql.DB
	reader *sql.DB

	touchInterval time.Duration
	removalsKept  int
	namedKept     int
	// renew drops all connections, if it was not done a moment ago; nil: there is
	// nothing to drop.
	renew func() bool
	// patience is how long a large read may make no progress.
	patience time.Duration
	// deployment id that the database had when it was opened.
	deployment agent.ID
	history    history.History
	servers    servers
	// buildsSwept is the id of the build up to which old records were looked for.
	buildsSwept atomic.Pointer[agent.ID]
	// rewriteUntil, in nanoseconds since 1970: see UpsertMetadata.
	rewriteUntil atomic.Int64
}

// Open opens the database and brings its schema up to date. A schema that a
// newer version of this program made is an error. It blocks for as long as the
// migrations take, those of another replica included.
func Open(ctx context.Context, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Store, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("store options: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	open := openSQLite
	if opts.URL != "" {
		open = openPostgres
	}
	s, err := open(ctx, opts, log)
	if err != nil {
		return nil, err
	}
	s.metrics, s.undecodable = m, undecodable.New(m.UndecodableRows, log)
	if err := s.registerPools(opts.MaxConns, reg); err != nil {
		return nil, errors.Join(fmt.Errorf("store: %w", err), s.Close())
	}
	return s, nil
}

// opened logs the outcome of opening the database, and keeps the deployment.
func (s *Store) opened(ctx context.Context, o opened) {
	if o.from != o.to {
		s.log.InfoContext(ctx, "database migrated", "from_version", o.from, "to_version", o.to)
	}
	o.deployment.log(ctx, s.log)
	s.deployment = o.deployment.id
}

// Ping reads from the database.
func (s *Store) Ping(ctx context.Context) error {
	return s.read(ctx, "ping database", func(q querier) error {
		return query(ctx, q, `SELECT 1 FROM `+schema.VersionTable+` LIMIT 1`, nil, func(*sql.Rows) error { return nil })
	})
}

// Close waits for the calls under way and closes the database. It is safe to
// repeat.
func (s *Store) Close() error {
	// The last connection to close moves SQLite's write-ahead log into the file.
	if err := errors.Join(s.reader.Close(), s.writer.Close()); err != nil {
		return fmt.Errorf("close database: %w", err)
	}
	return nil
}
