package store

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// MigrateTo takes the schema back and up again. SchemaVersions makes nothing.
func TestMigrateTo(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (Options, *Store){
		"sqlite": func(t *testing.T) (Options, *Store) {
			path := migratedPath(t)
			return Options{Path: path}, openPath(t, path)
		},
		"postgres": func(t *testing.T) (Options, *Store) {
			url := migratedDatabase(t)
			return Options{URL: url}, openURL(t, Options{URL: url})
		},
	} {
		t.Run(name, func(t *testing.T) {
			opts, s := open(t)
			latest := newest(t, s.dialect)
			register(t, s, id(1))
			require.NoError(t, s.Close())
			current, known, err := SchemaVersions(t.Context(), opts)
			require.NoError(t, err)
			require.Equal(t, []int64{latest, latest}, []int64{current, known})

			const lease = 50 * time.Millisecond
			before, err := MigrateTo(t.Context(), opts, 28, lease)
			require.NoError(t, err)
			require.Equal(t, latest, before)
			current, _, err = SchemaVersions(t.Context(), opts)
			require.NoError(t, err)
			require.EqualValues(t, 28, current)
			_, err = MigrateTo(t.Context(), opts, 19, lease)
			require.ErrorContains(t, err, "schema version: want one of ")
			before, err = MigrateTo(t.Context(), opts, latest, lease)
			require.NoError(t, err)
			require.EqualValues(t, 28, before)
			s = openOptions(t, opts)
			require.Len(t, registrations(t, s).Agents, 1)
		})
	}
}

func openOptions(t *testing.T, opts Options) *Store {
	t.Helper()
	if opts.URL != "" {
		return openURL(t, opts)
	}
	return openPath(t, opts.Path)
}

// The schema of a database is not changed under a replica that beats.
func TestMigrateToBesideReplica(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	_, _, err := s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(1), Name: "gone"}, -1)
	require.NoError(t, err)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, _, err := s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(2), Name: "there"}, -1); err != nil {
				return
			}
		}
	}()
	_, err = MigrateTo(t.Context(), Options{URL: url}, 28, time.Second)
	require.ErrorContains(t, err, "1 replicas use the database (there): stop them first")
	close(stop)
	<-stopped
	_, err = MigrateTo(t.Context(), Options{URL: url}, 28, 50*time.Millisecond)
	require.NoError(t, err)
}

// To look makes nothing.
func TestSchemaVersionsOfNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	_, _, err := SchemaVersions(t.Context(), Options{Path: path})
	require.ErrorContains(t, err, "unable to open database file")
	require.NoFileExists(t, path)

	url := postgrestest.Shared(t).CreateDatabase(t)
	current, known, err := SchemaVersions(t.Context(), Options{URL: url})
	require.NoError(t, err)
	require.Zero(t, current)
	require.Equal(t, newest(t, &postgresDialect), known)
	_, err = MigrateTo(t.Context(), Options{URL: url}, known, time.Second)
	require.ErrorContains(t, err, "it has no tables yet: start the service once")
	require.Zero(t, scalar[int](t, admin(t, url), `SELECT count(*) FROM pg_class WHERE relname LIKE '%version%' AND relnamespace = current_schema()::regnamespace`))
}
