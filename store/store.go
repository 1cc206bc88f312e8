// Package store keeps registrations, states, epochs and metadata of agents in
// a SQL database: SQLite in a file.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/coder/agentstatsd/agent"
)

// Options of a Store.
type Options struct {
	// Path of the SQLite file. It and its directory are made if they do not
	// exist, readable by the owner only. Required.
	Path string
	// ReadConns is how many reads run at once; 0: 4.
	ReadConns int
	// BusyTimeout is how long a statement waits for another process that has
	// locked the file; 0: 5 s. A context that ends sooner ends the wait.
	BusyTimeout time.Duration
}

func (o *Options) validate() error {
	if o.ReadConns == 0 {
		o.ReadConns = 4
	}
	if o.BusyTimeout == 0 {
		o.BusyTimeout = 5 * time.Second
	}
	switch {
	case o.Path == "":
		return errors.New("store: no path of a database file")
	case o.ReadConns < 0:
		return fmt.Errorf("store: %d read connections", o.ReadConns)
	case o.BusyTimeout < 0:
		return fmt.Errorf("store: busy timeout %v is negative", o.BusyTimeout)
	}
	return nil
}

// Store is an open database. Its methods are safe for concurrent use, and end
// with an error soon after their context does. Errors that writing again
// cannot cure wrap agent.ErrRejected; then, as after any error, nothing of the
// call was written.
type Store struct {
	dialect *dialect
	log     *slog.Logger
	writer  *sql.DB
	reader  *sql.DB

	upsertMetadata *sql.Stmt
}

// Open opens the database and brings its schema up to date. A schema that a
// newer version of this program made is an error. It blocks for as long as the
// migrations take.
func Open(ctx context.Context, opts Options, log *slog.Logger) (*Store, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	return openSQLite(ctx, opts, log)
}

// prepare migrates, then prepares the statements of the hot path.
func (s *Store) prepare(ctx context.Context) error {
	if err := s.migrate(ctx); err != nil {
		return err
	}
	stmt, err := s.writer.PrepareContext(ctx, s.dialect.queries.upsertMetadata)
	if err != nil {
		return fmt.Errorf("prepare upsert of metadata: %w", err)
	}
	s.upsertMetadata = stmt
	return nil
}

func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, path.Join("migrations", s.dialect.name))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	provider, err := goose.NewProvider(s.dialect.goose, s.writer, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	current, target, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if current > target {
		return fmt.Errorf("its schema version %d is newer than %d, the newest that this program knows:"+
			" use the program that wrote it, or a later one", current, target)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate from schema version %d to %d: %w", current, target, err)
	}
	if current != target {
		s.log.InfoContext(ctx, "database migrated", "from_version", current, "to_version", target)
	}
	return nil
}

// Ping reads from the database file.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.reader.QueryRowContext(ctx, `SELECT 1 FROM goose_db_version LIMIT 1`).Scan(&one); err != nil {
		return fmt.Errorf("ping database: %w", err)
	}
	return nil
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

// change runs f in one transaction. doing names it in errors.
func (s *Store) change(ctx context.Context, doing string, f func(*sql.Tx) error) error {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("%s: begin: %w", doing, err)
	}
	if err := f(tx); err != nil {
		err = s.classify(ctx, doing, err)
		if rollback := tx.Rollback(); rollback != nil && !errors.Is(rollback, sql.ErrTxDone) {
			return errors.Join(err, fmt.Errorf("roll back: %w", rollback))
		}
		return err
	}
	if err := tx.Commit(); err != nil {
		return s.classify(ctx, doing+": commit", err)
	}
	return nil
}

// classify wraps err so that callers tell what writing again can cure.
func (s *Store) classify(ctx context.Context, doing string, err error) error {
	switch {
	case s.dialect.isRejected(err) && !errors.Is(err, agent.ErrRejected):
		return fmt.Errorf("%s: %w: %w", doing, agent.ErrRejected, err)
	case errors.Is(err, sql.ErrTxDone) && ctx.Err() != nil:
		// database/sql rolled back because the context ended.
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	return fmt.Errorf("%s: %w", doing, err)
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
