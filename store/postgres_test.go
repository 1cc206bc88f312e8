package store

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
	"github.com/coder/agentstatsd/store/internal/schema"
)

func TestPostgres(t *testing.T) {
	testContract(t, func(t testing.TB, opts Options) *Store {
		opts.URL = migratedDatabase(t)
		return openURL(t, opts)
	})
}

// All that a store does works through a pooler that changes the connection
// behind ours after each transaction.
func TestPostgresPooled(t *testing.T) {
	server := postgrestest.Shared(t)
	pooler, err := url.Parse(server.PgBouncer(t, server.URL())) // of all databases
	require.NoError(t, err)
	testContract(t, func(t testing.TB, opts Options) *Store {
		database, err := url.Parse(migratedDatabase(t))
		require.NoError(t, err)
		database.Host = pooler.Host
		opts.URL, opts.TransactionPooling = database.String(), true
		return openURL(t, opts)
	})
}

func openPostgresTemp(t testing.TB) *Store {
	return openURL(t, Options{URL: migratedDatabase(t)})
}

var migrated = postgrestest.NewTemplate(func(url string) error {
	s, err := Open(context.Background(), Options{URL: url}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return s.Close()
})

// migratedDatabase returns the URL of a database of its own that has the newest schema
// and nothing else.
func migratedDatabase(t testing.TB) string { return migrated.Copy(t) }

func openURL(t testing.TB, opts Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// openEach returns n stores of one database, as n replicas have it.
func openEach(t testing.TB, n int, opts Options) []*Store {
	stores := make([]*Store, n)
	for i := range stores {
		stores[i] = openURL(t, opts)
	}
	return stores
}

// admin connects to the database of url as somebody else.
func admin(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.Background())) })
	return conn
}

func execute(t testing.TB, conn *pgx.Conn, text string, args ...any) {
	t.Helper()
	_, err := conn.Exec(t.Context(), text, args...)
	require.NoError(t, err)
}

func scalar[T any](t testing.TB, conn *pgx.Conn, text string, args ...any) T {
	t.Helper()
	var value T
	require.NoError(t, conn.QueryRow(t.Context(), text, args...).Scan(&value))
	return value
}

// Replicas that start together: one migrates, the others wait for it.
func TestPostgresOpenedTogether(t *testing.T) {
	server := postgrestest.Shared(t)
	direct := server.CreateDatabase(t)
	behind := server.CreateDatabase(t)
	for name, c := range map[string]struct {
		database string
		opts     Options
	}{
		"direct": {direct, Options{URL: direct}},
		"pooled": {behind, Options{URL: server.PgBouncer(t, behind), TransactionPooling: true}},
	} {
		t.Run(name, func(t *testing.T) {
			var group errgroup.Group
			stores := make([]*Store, 8)
			for i := range stores {
				group.Go(func() (err error) {
					stores[i], err = Open(t.Context(), c.opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
					return err
				})
			}
			require.NoError(t, group.Wait())
			for i, s := range stores {
				register(t, s, id(byte(i)))
				require.NoError(t, s.Close())
			}
			conn := admin(t, c.database)
			files, err := schema.PostgreSQL.Files()
			require.NoError(t, err)
			known, err := fs.ReadDir(files, ".")
			require.NoError(t, err)
			require.Equal(t, len(known)+1, scalar[int](t, conn, `SELECT count(*) FROM agentstatsd_schema_version`), "each once, and goose's own")
			require.Equal(t, len(stores), scalar[int](t, conn, `SELECT count(*) FROM agents`))
		})
	}
}

// Opening waits for a migration of another for as long as its context allows,
// and what fails leaves nothing behind.
func TestPostgresMigrationLocked(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	conn := admin(t, url)
	execute(t, conn, `BEGIN`)
	execute(t, conn, `SELECT pg_advisory_xact_lock($1, oid::int) FROM pg_namespace WHERE nspname = 'public'`, migrationLock)
	// What is not the wait has the timeout, too: it must be enough on a busy machine.
	const timeout = time.Second
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := Open(ctx, Options{URL: url, StatementTimeout: timeout}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		done <- err
	}()
	watch := admin(t, url)
	for waits := 0.0; waits < 2*timeout.Seconds(); {
		waits = scalar[float64](t, watch, `
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - query_start)), 0)::float8
FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
		select {
		case err := <-done:
			require.NoError(t, err)
			require.Fail(t, "not waited")
		default:
		}
	}
	cancel()
	err := <-done
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "lock schema: ")
	execute(t, conn, `ROLLBACK`)
	require.Zero(t, scalar[int](t, conn, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`))
	openURL(t, Options{URL: url})
}

func TestPostgresNewerSchema(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	_, err := s.writer.ExecContext(t.Context(), `INSERT INTO agentstatsd_schema_version (version_id, is_applied) VALUES (77, true)`)
	require.NoError(t, err)
	_, err = Open(t.Context(), Options{URL: url}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, fmt.Sprintf("its schema version 77 is newer than %[1]d, the newest that this program knows:"+
		" use the program that wrote it, or a later one, or have that one take the schema back: agentstatsd migrate --to %[1]d", newest(t, &postgresDialect)))
	require.ErrorContains(t, err, `open database "test_`)
}

// No error shows the password, wherever it stands in the URL.
func TestPostgresPasswordIsSecret(t *testing.T) {
	server, err := url.Parse(postgrestest.Shared(t).CreateDatabase(t))
	require.NoError(t, err)
	const secret = "hunter2"
	for name, given := range map[string]string{
		"no such database":  "postgres://postgres:hunter2@" + server.Host + "/missing?sslmode=disable",
		"no server":         "postgres://postgres:hunter2@127.0.0.1:1/x?sslmode=disable",
		"no host":           "postgres://postgres:hunter2@host.invalid/x?sslmode=disable",
		"as a parameter":    "postgres://127.0.0.1:1/x?user=postgres&password=hunter2",
		"bad mode":          "postgres://postgres:hunter2@127.0.0.1/x?sslmode=bogus",
		"bad port":          "postgres://postgres:hunter2@127.0.0.1:port/x",
		"bad encoding":      "postgres://postgres:hunter2%zz@127.0.0.1/x",
		"unencoded":         "postgres://postgres:hun/hunter2@127.0.0.1/x",
		"unencoded at":      "postgres://postgres:x@hunter2@127.0.0.1:1:2/x",
		"no files":          "postgres://postgres:hunter2@127.0.0.1/x?sslrootcert=/missing/hunter2",
		"another scheme":    "mysql://postgres:hunter2@127.0.0.1/x",
		"unknown parameter": "postgres://postgres:hunter2@" + server.Host + server.Path + "?sslmode=disable&bogus=1",
	} {
		for _, pooled := range []bool{false, true} {
			_, err := Open(t.Context(), Options{URL: given, TransactionPooling: pooled}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
			require.Error(t, err, name)
			for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err)} {
				require.NotContains(t, text, secret, name)
			}
		}
	}

	// It is used, though.
	with := *server
	with.User = url.UserPassword("postgres", secret)
	s := openURL(t, Options{URL: with.String()})
	require.NoError(t, s.Ping(t.Context()))
}

// What limits statements is set on every connection, unless a pooler would
// refuse it or the URL says otherwise.
func TestPostgresParameters(t *testing.T) {
	server := postgrestest.Shared(t)
	url := migratedDatabase(t)
	for name, c := range map[string]struct {
		opts Options
		want string
	}{
		"default":      {Options{URL: url}, "agentstatsd 10s 5s 10s"},
		"given":        {Options{URL: url, StatementTimeout: 3 * time.Second}, "agentstatsd 3s 1500ms 3s"},
		"named":        {Options{URL: url, Name: "agentstatsd pod-1"}, "agentstatsd pod-1 10s 5s 10s"},
		"in the URL":   {Options{URL: url + "&lock_timeout=7s&application_name=mine"}, "mine 10s 7s 10s"},
		"other text":   {Options{URL: url + "&client_encoding=LATIN1"}, "agentstatsd 10s 5s 10s"},
		"pooled":       {Options{URL: server.PgBouncer(t, url), TransactionPooling: true}, "agentstatsd 0 0 0"},
		"other scheme": {Options{URL: strings.Replace(url, "postgres:", "postgresql:", 1)}, "agentstatsd 10s 5s 10s"},
	} {
		s := openURL(t, c.opts)
		var got string
		require.NoError(t, s.reader.QueryRowContext(t.Context(), `SELECT concat_ws(' ', current_setting('application_name'),
    current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'))`).Scan(&got))
		require.Equal(t, c.want, got, name)
		var dash string
		require.NoError(t, s.reader.QueryRowContext(t.Context(), `SELECT chr(8212)`).Scan(&dash))
		require.Equal(t, "\u2014", dash, name)
	}
}

func TestPostgresMaxConns(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url, MaxConns: 2})
	register(t, s, id(1))
	var group errgroup.Group
	for range 20 {
		group.Go(func() error { return s.MetadataKeys(t.Context(), func(agent.ID, []string) error { return nil }) })
	}
	require.NoError(t, group.Wait())
	require.Equal(t, 2, s.writer.Stats().MaxOpenConnections)
	require.LessOrEqual(t, s.writer.Stats().OpenConnections, 2)
	require.Equal(t, 10, openURL(t, Options{URL: url}).writer.Stats().MaxOpenConnections)
}

// Keys are in the order of their bytes, as on SQLite, whatever the locale of the
// database.
func TestPostgresOrderOfKeys(t *testing.T) {
	server := postgrestest.Shared(t)
	main := admin(t, server.URL())
	execute(t, main, `CREATE DATABASE icu TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'`)
	defer execute(t, main, `DROP DATABASE icu WITH (FORCE)`)
	s := openURL(t, Options{URL: strings.Replace(server.URL(), "/postgres?", "/icu?", 1)})
	defer func() { require.NoError(t, s.Close()) }()
	require.Equal(t, true, ask[bool](t, s, `SELECT 'a' < 'B'`), "by the locale")
	register(t, s, id(1))
	upsert(t, s, []agent.Metadata{row(id(1), "a", "1", 1, 1), row(id(1), "_", "1", 1, 1), row(id(1), "B", "1", 1, 1)})
	reg := registrations(t, s).Agents[0]
	reg.MetadataKeys = nil
	apply(t, s, agent.Change{Agents: []agent.Registration{reg}})
	var keys []string
	require.NoError(t, s.MetadataKeys(t.Context(), func(_ agent.ID, of []string) error {
		keys = of
		return nil
	}))
	require.Equal(t, []string{"B", "_", "a"}, keys)
	found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, []string{"B", "_", "a"}, []string{found[0].Key, found[1].Key, found[2].Key})
}

func ask[T any](t testing.TB, s *Store, text string) T {
	t.Helper()
	var value T
	require.NoError(t, s.reader.QueryRowContext(t.Context(), text).Scan(&value))
	return value
}

// Values that are the same again cost nothing: no row is written, locked or
// synced.
func TestPostgresUnchangedIsNotWritten(t *testing.T) {
	const n = 500
	s := openURL(t, Options{URL: postgrestest.Start(t, postgrestest.Setting("autovacuum", "off")).URL(), TouchInterval: time.Hour})
	register(t, s, id(1))
	rows := make([]agent.Metadata, n)
	for i := range rows {
		rows[i] = row(id(1), fmt.Sprintf("key %d", i), strings.Repeat("v", 40), 1, 1)
	}
	upsert(t, s, rows)
	wal := func(change func(*agent.Metadata)) (bytes int64, changed int) {
		for i := range rows {
			rows[i].Order.Sequence++
			change(&rows[i])
		}
		before := walPosition(t, s)
		ids, _, err := s.UpsertMetadata(t.Context(), rows)
		require.NoError(t, err)
		return walPosition(t, s) - before, len(ids)
	}
	// The server itself notes now and then which transactions run: 100 bytes.
	unchanged, changed := wal(func(*agent.Metadata) {})
	require.Zero(t, changed)
	require.Less(t, unchanged, int64(n))
	rewritten, changed := wal(func(m *agent.Metadata) { m.Value += "!" })
	require.Equal(t, n, changed)
	require.Greater(t, rewritten, int64(n*50))
}

// walPosition is how many bytes of write-ahead log were written so far.
func walPosition(t testing.TB, s *Store) int64 {
	return ask[int64](t, s, `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint`)
}

// What PostgreSQL refuses and SQLite takes is returned as refused, so that callers
// look for the row.
func TestPostgresRejected(t *testing.T) {
	s := openPostgresTemp(t)
	register(t, s, id(1))
	good := row(id(1), "good", "1", 1, 1)
	nul, invalid, long := good, good, good
	nul.Key, nul.Value = "nul", "a\x00b"
	invalid.Key, invalid.Value = "invalid", "a\xffb"
	var key strings.Builder
	for i := range 2000 { // that does not compress
		fmt.Fprintf(&key, "%x", i*i*i*7919)
	}
	long.Key = key.String()
	for _, bad := range []agent.Metadata{nul, invalid, long} {
		_, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{good, bad})
		require.ErrorIs(t, err, agent.ErrRejected)
		require.NotErrorIs(t, err, agent.ErrStoreDown)
		found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
		require.NoError(t, err)
		require.Empty(t, found)
	}
	require.Zero(t, s.rewriteUntil.Load(), "answered")
	upsert(t, s, []agent.Metadata{good})

	named := registration(id(2), id(101))
	named.Apps[0].DisplayName = "\x00"
	_, err := s.ApplyChange(t.Context(), 2, agent.Change{Agents: []agent.Registration{named}})
	require.ErrorIs(t, err, agent.ErrRejected)
	state := agent.State{Agent: id(1), NetworkOrder: agent.Order{Epoch: 1}, Network: agent.Network{Regions: []agent.Region{{Name: "\x00"}}}}
	_, err = s.SaveStates(t.Context(), []agent.State{state})
	require.ErrorIs(t, err, agent.ErrRejected)
}
