package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/durable"
	"github.com/coder/agentstatsd/store/internal/fileid"
	"github.com/coder/agentstatsd/store/internal/schema"
)

// walBytes is the size to which the write-ahead log is cut back after a checkpoint. A
// checkpoint is tried every 1000 pages (4 MB). A long read can delay it for a while,
// and the file would keep the size it grew to.
const walBytes = 64 << 20

// cacheBytes is what the writer keeps of the database in memory. With SQLite's own 2 MB
// each flush of a few thousand agents reads pages from the file again.
const cacheBytes = 16 << 20

// sqliteDialect is SQLite, version 3.35 (DROP COLUMN) or later.
var sqliteDialect = dialect{
	schema:  schema.SQLite,
	faultOf: sqliteFault,
	id:      func(id agent.ID) any { return id[:] },
	among: func(ids []agent.ID) (string, []any) {
		args := make([]any, len(ids))
		for i := range ids {
			args[i] = ids[i][:]
		}
		return "IN (" + strings.TrimSuffix(strings.Repeat("?, ", len(ids)), ", ") + ")", args
	},
	exec:    sqliteExec,
	execIDs: sqliteExecIDs,
	stream:  sqliteStream,
	// The database is in this process. A transaction that writes has it alone.
	clock:    func(context.Context, *sql.Tx) (int64, error) { return time.Now().UnixNano(), nil },
	snapshot: &sql.TxOptions{ReadOnly: true},
	queries:  sqliteQueries(),
}

func sqliteQueries() queries {
	// The rows are one row: a statement runs once for each.
	q := newQueries(func(columns ...string) string {
		values := make([]string, len(columns))
		for i, column := range columns {
			name, _, _ := strings.Cut(column, " ")
			values[i] = "? AS " + name
		}
		return "(SELECT " + strings.Join(values, ", ") + ")"
	}, "", "")
	q.upsertMetadata = `
INSERT INTO metadata (agent_id, key, value, error, collected_at, epoch, sequence)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7
WHERE ?9 = 0 OR NOT EXISTS (SELECT 1 FROM agents WHERE id = ?1 AND registered <> ?9)
ON CONFLICT (agent_id, key) DO UPDATE SET
    value = excluded.value, error = excluded.error, collected_at = excluded.collected_at,
    epoch = excluded.epoch, sequence = excluded.sequence
WHERE ` + notEarlier("?10", "?11") + `
    AND (excluded.epoch <> metadata.epoch OR excluded.value <> metadata.value OR excluded.error <> metadata.error
        OR coalesce(metadata.collected_at, -9223372036854775807) <= ?8)`
	q.yes = `1`
	q.insertBuild = `INSERT INTO builds_observed (build_id, observed_at) VALUES (?, ?) ON CONFLICT DO NOTHING`
	return q
}

// sqliteExec runs the statement once for each row: one statement of many rows
// is no faster, as nothing travels.
func sqliteExec(ctx context.Context, tx *sql.Tx, text string, rows [][]any) (int64, error) {
	var written int64
	err := sqliteEach(ctx, tx, text, rows, func([]any) { written++ })
	return written, err
}

func sqliteExecIDs(ctx context.Context, tx *sql.Tx, text string, rows [][]any) ([]agent.ID, error) {
	var ids []agent.ID
	err := sqliteEach(ctx, tx, text, rows, func(row []any) {
		id, _ := row[0].([]byte) // as made by the dialect's id
		ids = append(ids, agent.ID(id))
	})
	return ids, err
}

// sqliteEach calls wrote for each row that the statement wrote, once for each
// that it wrote in the database.
func sqliteEach(ctx context.Context, tx *sql.Tx, text string, rows [][]any, wrote func(row []any)) (err error) {
	if len(rows) == 0 {
		return nil
	}
	stmt, err := tx.PrepareContext(ctx, text)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	// The driver starts a goroutine for each statement whose context can end, a
	// third of the cost of a row. The transaction has the write lock, so no
	// statement waits: looking between them is enough.
	stmtCtx := context.WithoutCancel(ctx)
	for _, row := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		result, err := stmt.ExecContext(stmtCtx, row...)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return err
		}
		for range n {
			wrote(row)
		}
	}
	return nil
}

// sqliteStream reads all at once: rows are made as they are read.
func sqliteStream(ctx context.Context, tx *sql.Tx, _ page, text string, args []any, scan func(*sql.Rows) error) error {
	return query(ctx, tx, text, args, scan)
}

// openSQLite opens the database file, making it and its directory if need be.
func openSQLite(ctx context.Context, opts Options, log *slog.Logger) (*Store, error) {
	path, err := filepath.Abs(opts.Path)
	if err != nil {
		return nil, fmt.Errorf("locate database %s: %w", opts.Path, err)
	}
	if err := createPrivate(path); err != nil {
		return nil, err
	}
	// One connection writes: SQLite has one writer at a time anyway, and
	// waiting for a connection ends with the context, unlike waiting for a lock.
	writer, err := sql.Open("sqlite", sqliteDSN(path, opts, url.Values{
		"_txlock": {"immediate"}, "_pragma": {"cache_size(-" + strconv.Itoa(cacheBytes>>10) + ")"},
	}))
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	writer.SetMaxOpenConns(1)
	reader, err := sql.Open("sqlite", sqliteDSN(path, opts, url.Values{"_pragma": {"query_only(1)"}}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open database for reading: %w", err), writer.Close())
	}
	reader.SetMaxOpenConns(opts.ReadConns)
	reader.SetMaxIdleConns(opts.ReadConns)

	s := &Store{
		dialect: &sqliteDialect, writer: writer, reader: reader, log: log,
		touchInterval: opts.TouchInterval, removalsKept: opts.RemovalsKept, namedKept: opts.NamedKept, patience: opts.StatementTimeout,
	}
	var o opened
	o.from, o.to, err = s.dialect.schema.Up(ctx, writer, func(context.Context) error { return nil })
	if err == nil {
		o.deployment, err = s.identifyFile(ctx, path, opts.DeploymentID)
	}
	if err != nil {
		if reason := sqliteFault(err).reason; reason != "" {
			err = fmt.Errorf("%s: %w", reason, err)
		}
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, err), s.Close())
	}
	s.opened(ctx, o)
	return s, nil
}

// identifyFile finds the identity of the file.
func (s *Store) identifyFile(ctx context.Context, path string, forced agent.ID) (deployment, error) {
	file, err := fileid.Of(path)
	if err != nil {
		return deployment{}, err
	}
	return s.dialect.identify(ctx, s.writer, place{object: file}, forced)
}

// sqliteDSN names the file and what every connection to it sets, then what more is given.
// The order counts: the timeout first, as a change of the journal mode can meet a lock.
func sqliteDSN(path string, opts Options, more url.Values) string {
	query := url.Values{
		"_pragma": {
			"busy_timeout(" + strconv.FormatInt(opts.BusyTimeout.Milliseconds(), 10) + ")",
			"journal_mode(WAL)",
			// An acked value survives a loss of power: each commit is synced.
			"synchronous(FULL)",
			"foreign_keys(1)",
			// What sorting needs beside the file. A container may have no directory for
			// it, and what is large is read in the order of an index.
			"temp_store(MEMORY)",
			"journal_size_limit(" + strconv.Itoa(walBytes) + ")",
		},
		"_dqs":       {"0"},
		"_defensive": {"1"},
	}
	for key, values := range more {
		query[key] = append(query[key], values...)
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String()
}

// createPrivate makes the file and its directory unless they exist. The file has hashes
// of tokens and data of agents. So only the owner may read it, whatever the umask.
// SQLite gives -wal and -shm the mode of the file.
func createPrivate(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make database file: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("make database file: %w", err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Chmod(path+suffix, 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("protect database file: %w", err)
		}
	}
	return durable.SyncDir(dir)
}

// sqliteFault: a constraint, a type or a size is about the data. Everything else
// (busy, full, I/O) may pass. A transaction that did not end well wrote nothing.
func sqliteFault(err error) fault {
	f := fault{answered: true}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return f
	}
	return sqliteCodeFault(e.Code())
}

func sqliteCodeFault(code int) fault {
	f := fault{answered: true}
	switch code & 0xff { // the rest of an extended code is the detail
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG:
		f.rejected = true
	case sqlite3.SQLITE_FULL:
		f.reason = reasonFull
	}
	// The file beside the database that has the index of its log cannot grow. It is made
	// at start.
	if code == sqlite3.SQLITE_IOERR_SHMSIZE {
		f.reason = reasonFull
	}
	return f
}
