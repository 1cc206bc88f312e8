package store

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
	"github.com/coder/agentstatsd/store/internal/measured"
)

// childEnv makes the test binary write to the database that it names until it
// is killed.
const childEnv = "STORE_TEST_WRITE_UNTIL_KILLED"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		fmt.Fprintln(os.Stderr, writeUntilKilled(path))
		os.Exit(1)
	}
	goleak.VerifyTestMain(postgrestest.Main(m))
}

func TestSQLite(t *testing.T) {
	testContract(t, func(t testing.TB, opts Options) *Store {
		opts.Path = migratedPath(t)
		return openURL(t, opts)
	})
}

func testMetrics(t testing.TB) *metrics {
	t.Helper()
	m, err := newMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	return m
}

func openTemp(t testing.TB) *Store {
	return openPath(t, migratedPath(t))
}

// migratedFile is a database that has the newest schema and nothing else: to migrate one
// takes some ten times as long as to copy it.
var migratedFile = sync.OnceValues(func() (content []byte, err error) {
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "a.db")
	s, err := Open(context.Background(), Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// migratedPath returns the path of a database of its own that has the newest schema.
func migratedPath(t testing.TB) string {
	t.Helper()
	content, err := migratedFile()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "agentstatsd.db")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

func openPath(t testing.TB, path string) *Store {
	s, err := Open(t.Context(), Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestOptions(t *testing.T) {
	for want, opts := range map[string]Options{
		"path: want":   {},
		"read conns":   {Path: "x", ReadConns: -1},
		"busy timeout": {Path: "x", BusyTimeout: -1},
	} {
		_, err := Open(t.Context(), opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, want)
	}
}

// The pragmas are those of every connection, not of the first one.
func TestSQLitePragmas(t *testing.T) {
	s := openTemp(t)
	for name, want := range map[string]string{
		"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1",
		"busy_timeout": "5000", "journal_size_limit": "67108864",
	} {
		for pool, db := range map[string]*sql.DB{"writer": s.writer, "reader": s.reader} {
			for _, value := range pragmaOfAll(t, db, name) {
				require.Equal(t, want, value, "%s of a %s", name, pool)
			}
		}
	}
	require.Equal(t, []string{"-16384"}, pragmaOfAll(t, s.writer, "cache_size"))
	require.Equal(t, []string{"0"}, pragmaOfAll(t, s.writer, "query_only"))
	require.Equal(t, []string{"1", "1", "1", "1"}, pragmaOfAll(t, s.reader, "query_only"))
}

// pragmaOfAll opens all connections of a pool at once and asks each.
func pragmaOfAll(t *testing.T, db *sql.DB, name string) []string {
	var values []string
	for range db.Stats().MaxOpenConnections {
		conn, err := db.Conn(t.Context())
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close()) }()
		var value string
		require.NoError(t, conn.QueryRowContext(t.Context(), "PRAGMA "+name).Scan(&value))
		values = append(values, value)
	}
	return values
}

// Only the owner reads the files, whatever the umask.
func TestSQLiteFileModes(t *testing.T) {
	for _, umask := range []int{0o000, 0o077, 0o277} {
		path := filepath.Join(t.TempDir(), "a.db")
		s := openWithUmask(t, path, umask)
		register(t, s, id(1))
		for _, suffix := range []string{"", "-wal", "-shm"} {
			require.Equal(t, os.FileMode(0o600), mode(t, path+suffix), "%s with umask %o", suffix, umask)
		}
	}

	dir := filepath.Join(t.TempDir(), "new", "data")
	openWithUmask(t, filepath.Join(dir, "a.db"), 0)
	require.Equal(t, os.FileMode(0o700), mode(t, dir))
	require.Equal(t, os.FileMode(0o700), mode(t, filepath.Dir(dir)))

	// A file that others could read is made private.
	path := filepath.Join(t.TempDir(), "a.db")
	require.NoError(t, openPath(t, path).Close())
	require.NoError(t, os.Chmod(path, 0o644))
	openPath(t, path)
	require.Equal(t, os.FileMode(0o600), mode(t, path))
}

func openWithUmask(t *testing.T, path string, umask int) *Store {
	old := syscall.Umask(umask)
	defer syscall.Umask(old)
	return openPath(t, path)
}

func mode(t *testing.T, path string) os.FileMode {
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Mode().Perm()
}

func TestSQLitePathIsEscaped(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a b?mode=memory&_pragma=foreign_keys(0)#%41.db")
	s := openPath(t, path)
	register(t, s, id(1))
	_, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{row(id(2), "a", "", 1, 1)})
	require.ErrorIs(t, err, agent.ErrRejected)
	require.FileExists(t, path)
}

func TestSQLiteReopened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := openPath(t, path)
	register(t, s, id(1))
	want := []agent.Metadata{row(id(1), "a", "1", 1, 1)}
	upsert(t, s, want)
	require.NoError(t, s.Close())
	_, err := os.Stat(path + "-wal")
	require.ErrorIs(t, err, os.ErrNotExist, "checkpointed")

	found, _, err := openPath(t, path).MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, want, found)
}

func TestSQLiteNewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := openPath(t, path)
	_, err := s.writer.ExecContext(t.Context(), `INSERT INTO agentstatsd_schema_version (version_id, is_applied) VALUES (77, 1)`)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = Open(t.Context(), Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.EqualError(t, err, fmt.Sprintf("open database %[1]s: its schema version 77 is newer than %[2]d, the newest that this program knows:"+
		" use the program that wrote it, or a later one, or have that one take the schema back: agentstatsd migrate --to %[2]d", path, newest(t, &sqliteDialect)))
}

func TestSQLiteNotADatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("not a database\n"), 100), 0o600))
	_, err := Open(t.Context(), Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "file is not a database")
	_, err = Open(t.Context(), Options{Path: filepath.Join(path, "b.db")}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "make data directory: ")
}

// A database that another process has locked is not a refusal of the data, and
// the wait for it ends with the context.
func TestSQLiteBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := openPath(t, path)
	register(t, s, id(1))
	other, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	defer func() { require.NoError(t, other.Close()) }()
	conn, err := other.Conn(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	_, err = conn.ExecContext(t.Context(), `BEGIN IMMEDIATE`)
	require.NoError(t, err)

	rows := []agent.Metadata{row(id(1), "a", "1", 1, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, _, err = s.UpsertMetadata(ctx, rows)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, agent.ErrRejected)

	impatient, err := Open(t.Context(), Options{Path: path, BusyTimeout: time.Millisecond}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	_, _, err = impatient.UpsertMetadata(t.Context(), rows)
	require.ErrorContains(t, err, "upsert metadata: begin: database is locked")
	require.NotErrorIs(t, err, agent.ErrRejected)
	// Reads do not wait for a writer.
	_, _, err = impatient.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)

	_, err = conn.ExecContext(t.Context(), `ROLLBACK`)
	require.NoError(t, err)
	upsert(t, impatient, rows)
	require.NoError(t, impatient.Close())
}

func TestSQLiteClosed(t *testing.T) {
	s := openTemp(t)
	require.NoError(t, s.Ping(t.Context()))
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorContains(t, s.Ping(t.Context()), "ping database: ")
	_, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{row(id(1), "a", "", 1, 1)})
	require.ErrorContains(t, err, "upsert metadata: begin: ")
	require.NotErrorIs(t, err, agent.ErrRejected)
}

const (
	killBatches = 20
	killRows    = 50
)

// writeUntilKilled upserts batches of killRows rows and prints the number of
// each when it is committed.
func writeUntilKilled(path string) error {
	ctx := context.Background()
	s, err := Open(ctx, Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	for n := int64(1); ; n++ {
		rows := make([]agent.Metadata, killRows)
		for i := range rows {
			rows[i] = row(id(1), strconv.Itoa(i), strconv.FormatInt(n, 10), 1, n)
		}
		if _, _, err := s.UpsertMetadata(ctx, rows); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// What was acknowledged is there after kill -9, and a batch is there as a whole.
func TestSQLiteKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := openPath(t, path)
	register(t, s, id(1))
	require.NoError(t, s.Close())

	for range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+path)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(stdout)
		acked, printed := "", 0
		for lines.Scan() {
			acked = lines.Text()
			if printed++; printed == killBatches {
				require.NoError(t, cmd.Process.Kill())
			}
		}
		require.Error(t, cmd.Wait())
		require.Empty(t, stderr.String())

		s := openPath(t, path)
		found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
		require.NoError(t, err)
		require.Len(t, found, killRows)
		for _, m := range found {
			require.Equal(t, found[0].Value, m.Value, "one transaction")
			require.GreaterOrEqual(t, len(m.Value), len(acked))
			if len(m.Value) == len(acked) {
				require.GreaterOrEqual(t, m.Value, acked)
			}
		}
		var check string
		require.NoError(t, s.reader.QueryRowContext(t.Context(), `PRAGMA integrity_check`).Scan(&check))
		require.Equal(t, "ok", check)
		// The next child starts again from 1, as a new agent.
		apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}})
		register(t, s, id(1))
		require.NoError(t, s.Close())
	}
}

// What SQLite needs beside its file it keeps in memory: a container may have no directory
// that can be written to.
func TestSQLiteNoTemporaryFiles(t *testing.T) {
	s := openTemp(t)
	for _, db := range []*sql.DB{s.writer, s.reader} {
		var kept int
		require.NoError(t, db.QueryRowContext(t.Context(), `PRAGMA temp_store`).Scan(&kept))
		require.Equal(t, 2, kept, "memory")
	}
}

// A full disk is named as that. It may have room later.
func TestSQLiteFull(t *testing.T) {
	s := openTemp(t)
	register(t, s, id(1))
	_, err := s.writer.ExecContext(t.Context(), `PRAGMA max_page_count = 100`)
	require.NoError(t, err)
	var e *Error
	for n := int64(1); err == nil; n++ {
		_, _, err = s.UpsertMetadata(t.Context(), []agent.Metadata{row(id(1), fmt.Sprint(n), strings.Repeat("v", 2000), 1, n)})
	}
	require.ErrorAs(t, err, &e)
	require.Equal(t, "the disk of the database is full", e.Reason())
	require.ErrorContains(t, err, "full")
	require.NotErrorIs(t, err, agent.ErrRejected)
	require.Equal(t, measured.CauseDiskFull, causeOf(e))
	_, err = s.writer.ExecContext(t.Context(), `PRAGMA max_page_count = 100000`)
	require.NoError(t, err)
	upsert(t, s, []agent.Metadata{row(id(1), "later", "v", 1, 1)})
	require.NoError(t, s.Close())

	// At start, too.
	path := filepath.Join(t.TempDir(), "a.db")
	db, err := sql.Open("sqlite", sqliteDSN(path, Options{}, url.Values{"_pragma": {"max_page_count(20)"}}))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	_, _, err = sqliteDialect.schema.Up(t.Context(), db, func(context.Context) error { return nil })
	require.Equal(t, reasonFull, sqliteFault(err).reason)
	// What a new index of the log ends with.
	require.Equal(t, reasonFull, sqliteCodeFault(sqlite3.SQLITE_IOERR_SHMSIZE).reason)
	require.Empty(t, sqliteCodeFault(sqlite3.SQLITE_IOERR_WRITE).reason)
}
