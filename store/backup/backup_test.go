package backup

import (
	"bytes"
	"context"
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store"
)

func openStore(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return s
}

// register adds the workspaces from n to below end, one change each, and calls done
// after each.
func register(ctx context.Context, s *store.Store, n, end int64, done func(n int64)) error {
	for ; n < end && ctx.Err() == nil; n++ {
		id := uuid.UUID{15: byte(n), 14: byte(n >> 8)}
		if _, err := s.ApplyChange(ctx, n, agent.Change{Workspaces: []agent.Workspace{{ID: id, Name: "dev"}}}); err != nil {
			return err
		}
		done(n)
	}
	return nil
}

func registered(t *testing.T, s *store.Store) (revision int64, workspaces int) {
	t.Helper()
	r, err := s.Registrations(t.Context(), 0)
	require.NoError(t, err)
	return r.Revision, len(r.Workspaces)
}

// What was committed before the copy began is in it, whatever is written meanwhile. It is
// a database that the service goes on with.
func TestWriteBesideWriter(t *testing.T) {
	dir := t.TempDir()
	database := filepath.Join(dir, "a.db")
	s := openStore(t, database)
	defer func() { require.NoError(t, s.Close()) }()
	var committed atomic.Int64
	require.NoError(t, register(t.Context(), s, 1, 50, committed.Store))
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan error, 1)
	go func() { written <- register(ctx, s, 50, 20_000, committed.Store) }()
	for _, name := range []string{"one", "two", "three"} {
		before := committed.Load()
		file := filepath.Join(dir, name)
		got, err := Write(t.Context(), database, file)
		require.NoError(t, err)
		require.GreaterOrEqual(t, got.Workspaces, before)
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Equal(t, "-rw-------", info.Mode().String())
		require.Equal(t, info.Size(), got.Bytes)

		restored := filepath.Join(t.TempDir(), "b.db")
		placed, kept, err := Place(t.Context(), file, restored, false)
		require.NoError(t, err)
		require.Empty(t, kept)
		require.Equal(t, got, placed)
		other := openStore(t, restored)
		revision, workspaces := registered(t, other)
		require.EqualValues(t, got.Workspaces, workspaces)
		require.EqualValues(t, got.Workspaces+1, revision)
		require.NoError(t, register(t.Context(), other, revision, revision+1, func(int64) {}))
		require.NoError(t, other.Close())
	}
	stop()
	require.ErrorIs(t, cmpErr(<-written), context.Canceled)
	entries, err := filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	require.Empty(t, entries, "no part of a copy stays")
}

// cmpErr returns context.Canceled for a writer that ended between two changes.
func cmpErr(err error) error {
	if err == nil {
		return context.Canceled
	}
	return err
}

func TestStream(t *testing.T) {
	dir := t.TempDir()
	database := filepath.Join(dir, "a.db")
	s := openStore(t, database)
	require.NoError(t, register(t.Context(), s, 1, 10, func(int64) {}))
	require.NoError(t, s.Close())
	// Nobody has the database open, so it has no log beside it.
	var out bytes.Buffer
	got, err := Stream(t.Context(), database, &out)
	require.NoError(t, err)
	require.EqualValues(t, out.Len(), got.Bytes)
	file := filepath.Join(t.TempDir(), "copy.db")
	require.NoError(t, os.WriteFile(file, out.Bytes(), 0o600))
	checked, err := Check(t.Context(), file)
	require.NoError(t, err)
	require.Equal(t, got, checked)
	require.EqualValues(t, 9, checked.Workspaces)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

// A restored copy is the deployment that it was of, unless a new one is asked for. What
// was there before is kept whole.
func TestPlace(t *testing.T) {
	dir := t.TempDir()
	database, file := filepath.Join(dir, "a.db"), filepath.Join(t.TempDir(), "copy")
	s := openStore(t, database)
	id, err := s.Deployment(t.Context())
	require.NoError(t, err)
	require.NoError(t, register(t.Context(), s, 1, 3, func(int64) {}))
	summary, err := Write(t.Context(), database, file)
	require.NoError(t, err)
	require.Equal(t, id, summary.Deployment)
	require.NoError(t, register(t.Context(), s, 3, 10, func(int64) {}))
	require.NoError(t, s.Close())

	_, kept, err := Place(t.Context(), file, database, false)
	require.NoError(t, err)
	require.Equal(t, database+".before-restore-1", kept)
	s = openStore(t, database)
	now, err := s.Deployment(t.Context())
	require.NoError(t, err)
	require.Equal(t, id, now)
	_, workspaces := registered(t, s)
	require.Equal(t, 2, workspaces)
	require.NoError(t, s.Close())
	before, err := Check(t.Context(), kept)
	require.NoError(t, err)
	require.EqualValues(t, 9, before.Workspaces)

	summary, kept, err = Place(t.Context(), file, database, true)
	require.NoError(t, err)
	require.Equal(t, database+".before-restore-2", kept)
	s = openStore(t, database)
	now, err = s.Deployment(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, id, now)
	require.Equal(t, summary.Deployment, now)
	require.NoError(t, s.Close())
}

// A file that the service could not go on with replaces nothing.
func TestRefusedCopies(t *testing.T) {
	dir := t.TempDir()
	database := filepath.Join(dir, "a.db")
	s := openStore(t, database)
	require.NoError(t, register(t.Context(), s, 1, 500, func(int64) {}))
	require.NoError(t, s.Close())
	change := func(statement string) func(t *testing.T, file string) {
		return func(t *testing.T, file string) {
			db, err := sql.Open("sqlite", file)
			require.NoError(t, err)
			_, err = db.Exec(statement)
			require.NoError(t, err)
			require.NoError(t, db.Close())
		}
	}
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, file string)
		want  string
	}{
		"damaged": {func(t *testing.T, file string) {
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			for i := len(content) / 2; i < len(content); i++ {
				content[i] = 0x5a
			}
			require.NoError(t, os.WriteFile(file, content, 0o600))
		}, "check "},
		"cut off":        {func(t *testing.T, file string) { require.NoError(t, os.Truncate(file, 40<<10)) }, "check "},
		"another file":   {func(t *testing.T, file string) { require.NoError(t, os.WriteFile(file, []byte("PGDMP"), 0o600)) }, "check "},
		"no tables":      {change(`DROP TABLE agentstatsd_deployment`), "no database of agentstatsd"},
		"newer":          {change(`INSERT INTO agentstatsd_schema_version (version_id, is_applied) VALUES (9999, 1)`), "its schema version 9999 is newer than"},
		"does not exist": {func(t *testing.T, file string) { require.NoError(t, os.Remove(file)) }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "copy")
			_, err := Write(t.Context(), database, file)
			require.NoError(t, err)
			tc.spoil(t, file)
			_, kept, err := Place(t.Context(), file, database, false)
			require.ErrorContains(t, err, tc.want)
			require.Empty(t, kept)
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, entries, 1, "the database stays, and nothing else")
		})
	}
	before, err := os.ReadFile(database)
	require.NoError(t, err)
	_, err = Write(t.Context(), database, database)
	require.ErrorContains(t, err, "exists: name a new file")
	after, err := os.ReadFile(database)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after))
	_, err = Write(t.Context(), filepath.Join(dir, "none.db"), filepath.Join(dir, "copy"))
	require.ErrorContains(t, err, "copy database")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}
