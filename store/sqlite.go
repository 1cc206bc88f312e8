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

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// walBytes is the size to which the write-ahead log is cut back after a
// checkpoint. A checkpoint is tried every 1000 pages (4 MB); a long read can
// hold it up for a while, and the file would keep the size it grew to.
const walBytes = 64 << 20

// sqliteDialect is SQLite, version 3.24 (upsert) or later.
var sqliteDialect = dialect{
	name:       "sqlite",
	goose:      goose.DialectSQLite3,
	isRejected: sqliteRejected,
	queries: queries{
		upsertMetadata: `
INSERT INTO metadata (agent_id, key, value, error, collected_at, epoch, sequence)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (agent_id, key) DO UPDATE SET
    value = excluded.value, error = excluded.error, collected_at = excluded.collected_at,
    epoch = excluded.epoch, sequence = excluded.sequence
WHERE (excluded.epoch, excluded.sequence) > (metadata.epoch, metadata.sequence)`,
		metadata: func(agents int) string {
			return `
SELECT agent_id, key, value, error, collected_at, epoch, sequence
FROM metadata WHERE agent_id IN (` + placeholders(agents) + `) ORDER BY agent_id, key`
		},
		metadataKeys: `SELECT agent_id, key FROM metadata ORDER BY agent_id, key`,

		deleteAgent:     `DELETE FROM agents WHERE id = ?`,
		deleteWorkspace: `DELETE FROM workspaces WHERE id = ?`,
		upsertWorkspace: `
INSERT INTO workspaces (id, name, owner_id, owner_username, template_id, template_name,
    template_version, organization, build_id, build_created_at, build_transition, build_is_prebuild)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, owner_id = excluded.owner_id, owner_username = excluded.owner_username,
    template_id = excluded.template_id, template_name = excluded.template_name,
    template_version = excluded.template_version, organization = excluded.organization,
    build_id = excluded.build_id, build_created_at = excluded.build_created_at,
    build_transition = excluded.build_transition, build_is_prebuild = excluded.build_is_prebuild`,
		upsertAgent: `
INSERT INTO agents (id, workspace_id, parent_id, name, created_at, connection_timeout,
    token_sha256, apps, metadata_keys)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    workspace_id = excluded.workspace_id, parent_id = excluded.parent_id, name = excluded.name,
    created_at = excluded.created_at, connection_timeout = excluded.connection_timeout,
    token_sha256 = excluded.token_sha256, apps = excluded.apps,
    metadata_keys = excluded.metadata_keys`,
		workspaces: `
SELECT id, name, owner_id, owner_username, template_id, template_name,
    template_version, organization, build_id, build_created_at, build_transition, build_is_prebuild
FROM workspaces ORDER BY id`,
		agents: `
SELECT id, workspace_id, parent_id, name, created_at, connection_timeout,
    token_sha256, apps, metadata_keys
FROM agents ORDER BY id`,

		upsertState: `
INSERT INTO agent_states (agent_id, part, epoch, sequence, data)
SELECT id, ?, ?, ?, ? FROM agents WHERE id = ?
ON CONFLICT (agent_id, part) DO UPDATE SET
    epoch = excluded.epoch, sequence = excluded.sequence, data = excluded.data
WHERE (excluded.epoch, excluded.sequence) > (agent_states.epoch, agent_states.sequence)`,
		states:     `SELECT agent_id, part, epoch, sequence, data FROM agent_states ORDER BY agent_id, part`,
		raiseEpoch: `UPDATE agents SET epoch = ? WHERE id = ? AND epoch < ?`,
		epochs:     `SELECT id, epoch FROM agents WHERE epoch > 0`,

		upsertPush: `
INSERT INTO pushes (instance_id, replica, updated_at, data) VALUES (?, ?, ?, ?)
ON CONFLICT (instance_id) DO UPDATE SET
    replica = excluded.replica, updated_at = excluded.updated_at, data = excluded.data`,
		deletePush: `DELETE FROM pushes WHERE instance_id = ?`,
		pushes:     `SELECT instance_id, replica, updated_at, data FROM pushes ORDER BY instance_id`,

		insertBuild: `INSERT INTO builds_observed (build_id, observed_at) VALUES (?, ?) ON CONFLICT DO NOTHING`,
		deleteBuilds: `
DELETE FROM builds_observed
WHERE observed_at < ? AND build_id NOT IN (SELECT build_id FROM workspaces)`,
	},
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
	writer, err := sql.Open("sqlite", sqliteDSN(path, opts, "_txlock", "immediate"))
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	writer.SetMaxOpenConns(1)
	reader, err := sql.Open("sqlite", sqliteDSN(path, opts, "_pragma", "query_only(1)"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open database for reading: %w", err), writer.Close())
	}
	reader.SetMaxOpenConns(opts.ReadConns)
	reader.SetMaxIdleConns(opts.ReadConns)

	s := &Store{dialect: &sqliteDialect, writer: writer, reader: reader, log: log}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, err), s.Close())
	}
	return s, nil
}

// sqliteDSN names the file and what every connection to it sets, with one
// parameter more. The order counts: the timeout first, as a change of the
// journal mode can meet a lock.
func sqliteDSN(path string, opts Options, key, value string) string {
	query := url.Values{
		"_pragma": {
			"busy_timeout(" + strconv.FormatInt(opts.BusyTimeout.Milliseconds(), 10) + ")",
			"journal_mode(WAL)",
			// An acked value survives a loss of power: each commit is synced.
			"synchronous(FULL)",
			"foreign_keys(1)",
			"journal_size_limit(" + strconv.Itoa(walBytes) + ")",
		},
		"_dqs":       {"0"},
		"_defensive": {"1"},
	}
	query.Add(key, value)
	return (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String()
}

// createPrivate makes the file and its directory unless they exist. The file
// holds hashes of tokens and what agents report, so only the owner may read
// it, whatever the umask; SQLite gives -wal and -shm the mode of the file.
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
	return syncDir(dir)
}

// syncDir makes a new file's name as durable as its content.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync data directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync data directory: %w", err)
	}
	return nil
}

// sqliteRejected tells whether err is about the data: a constraint, a type or
// a size. Everything else (busy, full, I/O) may pass.
func sqliteRejected(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff { // the rest of an extended code is the detail
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG:
		return true
	}
	return false
}
