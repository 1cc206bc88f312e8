// Package backup copies a SQLite database while the service runs on it. It checks such
// copies, and puts them in place of a database.
package backup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	_ "modernc.org/sqlite" // the driver

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/durable"
	"github.com/coder/agentstatsd/store/internal/fileid"
	"github.com/coder/agentstatsd/store/internal/schema"
)

// Summary is what a copy has.
type Summary struct {
	// SchemaVersion of the copy.
	SchemaVersion int64
	// Deployment whose data it is; see store.Store.Deployment.
	Deployment agent.ID
	// Agents and workspaces that are registered, and stored metadata values.
	Agents, Workspaces, Metadata int64
	Bytes                        int64
}

// Write copies the database file to a new file, readable by its owner only, whose name
// is file. What was committed before the call is in the copy, what is committed
// meanwhile is not. Writers go on, but the write-ahead log grows until it is done. The
// copy is on disk, and was checked, when Write returns. After an error there is none.
func Write(ctx context.Context, database, file string) (s Summary, err error) {
	if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("%s exists: name a new file", file)
	}
	part, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // mode 0600
	if err != nil {
		return s, fmt.Errorf("make backup: %w", err)
	}
	defer func() {
		_ = part.Close()
		for _, suffix := range []string{"", "-journal"} {
			_ = os.Remove(part.Name() + suffix) // gone if it was renamed
		}
	}()
	if err := vacuumInto(ctx, database, part.Name()); err != nil {
		return s, err
	}
	if s, err = Check(ctx, part.Name()); err != nil {
		return s, err
	}
	if err := part.Sync(); err != nil {
		return s, fmt.Errorf("write backup: %w", err)
	}
	// A link, unlike a rename, replaces nothing. Not all file systems have them.
	if err := os.Link(part.Name(), file); errors.Is(err, os.ErrExist) || err != nil && os.Rename(part.Name(), file) != nil {
		return s, fmt.Errorf("write backup: %w", err)
	}
	return s, durable.SyncDir(filepath.Dir(file))
}

// Stream writes what Write would have in the file to w. It needs as much room in the
// directory of the database meanwhile.
func Stream(ctx context.Context, database string, w io.Writer) (s Summary, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(database), ".backup-*") // mode 0700
	if err != nil {
		return s, fmt.Errorf("make backup: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "copy.db")
	if s, err = Write(ctx, database, file); err != nil {
		return s, err
	}
	f, err := os.Open(file)
	if err != nil {
		return s, fmt.Errorf("read backup: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(w, f); err != nil {
		return s, fmt.Errorf("write backup: %w", err)
	}
	return s, nil
}

func vacuumInto(ctx context.Context, database, file string) (err error) {
	db, err := open(database, "rw")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, file); err != nil {
		return fmt.Errorf("copy database %s: %w", database, err)
	}
	return nil
}

// Check reads a copy as a whole, and returns what it has. A file that is damaged, no
// database of this program or of a newer one is an error. The file stays as it is.
func Check(ctx context.Context, file string) (s Summary, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return s, fmt.Errorf("check backup: %w", err)
	}
	s.Bytes = info.Size()
	db, err := open(file, "ro")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var damage string
	if err := db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&damage); err != nil {
		return s, fmt.Errorf("check %s: %w", file, err)
	}
	if damage != "ok" {
		return s, fmt.Errorf("check %s: it is damaged: %s", file, damage)
	}
	for text, to := range map[string]any{
		`SELECT max(version_id) FROM ` + schema.VersionTable: &s.SchemaVersion,
		`SELECT id FROM agentstatsd_deployment`:              &s.Deployment,
		`SELECT count(*) FROM agents`:                        &s.Agents,
		`SELECT count(*) FROM workspaces`:                    &s.Workspaces,
		`SELECT count(*) FROM metadata`:                      &s.Metadata,
	} {
		if err := db.QueryRowContext(ctx, text).Scan(to); err != nil {
			return s, fmt.Errorf("check %s: no database of agentstatsd: %w", file, err)
		}
	}
	_, newest, err := schema.SQLite.Versions(ctx, db)
	if err == nil && s.SchemaVersion > newest {
		err = schema.Newer(s.SchemaVersion, newest)
	}
	if err != nil {
		return s, fmt.Errorf("check %s: %w", file, err)
	}
	return s, nil
}

// Place makes a copy the database, which nobody may use meanwhile. The copy stays. It
// belongs to the deployment that it is of, or to a new one. The database that was there,
// if any, is kept beside it: kept is its name. If the database exists after an error, it
// is whole: the one from before or the new one.
func Place(ctx context.Context, file, database string, newDeployment bool) (s Summary, kept string, err error) {
	if s, err = Check(ctx, file); err != nil {
		return s, "", err
	}
	part := database + ".restored"
	if err := copyFile(file, part); err != nil {
		return s, "", err
	}
	defer func() { _ = os.Remove(part) }() // gone if it was renamed
	if newDeployment {
		s.Deployment = uuid.New()
	}
	if err := identify(ctx, part, s.Deployment); err != nil {
		return s, "", err
	}
	if _, err := os.Stat(database); err == nil {
		if kept, err = setAside(ctx, database); err != nil {
			return s, "", err
		}
	}
	if err := os.Rename(part, database); err != nil {
		return s, kept, fmt.Errorf("restore: %w", err)
	}
	return s, kept, durable.SyncDir(filepath.Dir(database))
}

// identify writes that the file is the database of a deployment, and no copy of it.
func identify(ctx context.Context, file string, deployment agent.ID) (err error) {
	id, err := fileid.Of(file)
	if err != nil {
		return err
	}
	db, err := open(file, "rw")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, `UPDATE agentstatsd_deployment SET id = ?, cluster = '', object = ?`, deployment[:], id); err != nil {
		return fmt.Errorf("restore: name the deployment: %w", err)
	}
	return nil
}

// setAside renames the database with its write-ahead log, which is part of it.
func setAside(ctx context.Context, database string) (kept string, err error) {
	for n := 1; ; n++ {
		kept = fmt.Sprintf("%s.before-restore-%d", database, n)
		if _, err := os.Lstat(kept); errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	// What the log has goes into the file, unless the file is damaged.
	if db, err := open(database, "rw"); err == nil {
		_, _ = db.ExecContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`)
		_ = db.Close()
	}
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if err := os.Rename(database+suffix, kept+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("set database aside: %w", err)
		}
	}
	return kept, nil
}

// copyFile copies to a new file that only the owner may read, and syncs it. One that
// was left there is replaced.
func copyFile(from, to string) (err error) {
	source, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("read backup: %w", err)
	}
	defer func() { _ = source.Close() }()
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("restore: %w", err)
	}
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	_, err = io.Copy(target, source)
	if err := errors.Join(err, target.Sync(), target.Close()); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

// open opens a file that exists. A file without -wal and -shm beside it, as copies are,
// can be opened read-only.
func open(file, mode string) (*sql.DB, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("locate %s: %w", file, err)
	}
	query := url.Values{"mode": {mode}, "_pragma": {"busy_timeout(5000)", "synchronous(FULL)"}, "_dqs": {"0"}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}
