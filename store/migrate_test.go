package store

import (
	"database/sql"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
	"github.com/coder/agentstatsd/store/internal/schema"
)

// migrator returns goose's view of an open store.
func migrator(t *testing.T, s *Store) *goose.Provider {
	t.Helper()
	kind := goose.DialectSQLite3
	if s.dialect == &postgresDialect {
		kind = goose.DialectPostgres
	}
	files, err := s.dialect.schema.Files()
	require.NoError(t, err)
	provider, err := goose.NewProvider(kind, s.writer, files,
		goose.WithDisableGlobalRegistry(true), goose.WithTableName(schema.VersionTable))
	require.NoError(t, err)
	return provider
}

// newest returns the newest schema version of a database.
func newest(t testing.TB, d *dialect) int64 {
	t.Helper()
	files, err := d.schema.Files()
	require.NoError(t, err)
	names, err := fs.Glob(files, "*.sql")
	require.NoError(t, err)
	version, err := strconv.ParseInt(names[len(names)-1][:5], 10, 64)
	require.NoError(t, err)
	return version
}

// The way back leaves nothing, and the way up again works.
func TestMigrationsDown(t *testing.T) {
	for name, open := range map[string]func(testing.TB) *Store{"sqlite": openTemp, "postgres": openPostgresTemp} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			register(t, s, id(1))
			saveSessions(t, s, []agent.SessionRecord{{Agent: id(1), Epoch: 7}})
			provider := migrator(t, s)
			_, err := provider.DownTo(t.Context(), 0)
			require.NoError(t, err)
			_, err = provider.Up(t.Context())
			require.NoError(t, err)
			require.Empty(t, registrations(t, s).Agents)
			register(t, s, id(1))
		})
	}
}

// A database of the version before replicas: epochs become sessions, and all that is
// there has the first revision and version. The way back keeps the epochs.
func TestSQLiteMigratedFrom3(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := openPath(t, path)
	_, err := migrator(t, s).DownTo(t.Context(), 3)
	require.NoError(t, err)
	for _, statement := range []string{
		`INSERT INTO workspaces VALUES (x'0a000000000000000000000000000064', 'dev', zeroblob(16), '', zeroblob(16), '', '', '', zeroblob(16), NULL, '', 0)`,
		`INSERT INTO agents VALUES (x'0a000000000000000000000000000001', x'0a000000000000000000000000000064', zeroblob(16), 'main', NULL, 0, zeroblob(32), '[]', '[]', 7)`,
		`INSERT INTO agents VALUES (x'0a000000000000000000000000000002', x'0a000000000000000000000000000064', zeroblob(16), 'other', NULL, 0, zeroblob(32), '[]', '[]', 0)`,
		`INSERT INTO pushes VALUES (x'0b000000000000000000000000000001', 'coderd-a', NULL, x'61')`,
	} {
		_, err := s.writer.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	require.NoError(t, s.Close())

	s, err = Open(t.Context(), Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	got := registrations(t, s)
	require.EqualValues(t, 1, got.Revision)
	require.Len(t, got.Agents, 2)
	require.Equal(t, "dev", got.Agents[0].Workspace.Name)
	records, _, err := s.Sessions(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.SessionRecord{{Agent: id(1), Epoch: 7}}, records)
	versions, err := s.PushVersions(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[agent.Instance]int64{push(1, "").Instance: 1}, versions)
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(2)}})

	_, err = migrator(t, s).DownTo(t.Context(), 3)
	require.NoError(t, err)
	require.EqualValues(t, 7, ask[int64](t, s, `SELECT epoch FROM agents`))
	require.NoError(t, s.Close())
}

// eachDatabase runs a test on an empty database of each kind: open opens it, conn is
// somebody else in it.
func eachDatabase(t *testing.T, test func(t *testing.T, open func() (*Store, error), conn *sql.DB)) {
	t.Run("sqlite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "a.db")
		conn, err := sql.Open("sqlite", path)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, conn.Close()) })
		test(t, func() (*Store, error) {
			return Open(t.Context(), Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		}, conn)
	})
	t.Run("postgres", func(t *testing.T) {
		url := postgrestest.Shared(t).CreateDatabase(t)
		conn, err := sql.Open("pgx", url)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, conn.Close()) })
		test(t, func() (*Store, error) {
			return Open(t.Context(), Options{URL: url}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		}, conn)
	})
}

func do(t testing.TB, conn *sql.DB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := conn.ExecContext(t.Context(), statement)
		require.NoError(t, err, statement)
	}
}

func value[T any](t testing.TB, conn *sql.DB, statement string) (v T) {
	t.Helper()
	require.NoError(t, conn.QueryRowContext(t.Context(), statement).Scan(&v))
	return v
}

// versionsOf are those that a program's goose has noted.
func versionsOf(t testing.TB, conn *sql.DB, table string) (versions []int64) {
	t.Helper()
	require.NoError(t, query(t.Context(), conn, `SELECT version_id FROM `+table+` ORDER BY id`, nil, func(rows *sql.Rows) error {
		var version int64
		err := rows.Scan(&version)
		versions = append(versions, version)
		return err
	}))
	return versions
}

// A version table of goose's default name that is ours gets our name.
func TestVersionTableTakenOver(t *testing.T) {
	eachDatabase(t, func(t *testing.T, open func() (*Store, error), conn *sql.DB) {
		s, err := open()
		require.NoError(t, err)
		register(t, s, id(1))
		require.NoError(t, s.Close())
		versions := versionsOf(t, conn, schema.VersionTable)
		do(t, conn, `ALTER TABLE `+schema.VersionTable+` RENAME TO goose_db_version`)
		s, err = open()
		require.NoError(t, err)
		require.Len(t, registrations(t, s).Agents, 1)
		require.NoError(t, s.Close())
		require.Equal(t, versions, versionsOf(t, conn, schema.VersionTable))
		_, err = conn.ExecContext(t.Context(), `SELECT 1 FROM goose_db_version`)
		require.Error(t, err)

		do(t, conn, `ALTER TABLE `+schema.VersionTable+` RENAME TO goose_db_version`, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (88, true)`)
		_, err = open()
		require.ErrorContains(t, err, "its schema version 88 is newer than ")
	})
}

// One that is another program's is neither taken for ours nor touched, whatever version
// that has.
func TestVersionTableOfAnother(t *testing.T) {
	for _, newest := range []int{0, 1, 2, 20} {
		eachDatabase(t, func(t *testing.T, open func() (*Store, error), conn *sql.DB) {
			do(t, conn, `CREATE TABLE orders (id int)`,
				`CREATE TABLE goose_db_version (id int PRIMARY KEY, version_id bigint NOT NULL, is_applied boolean NOT NULL)`)
			var want []int64
			for n := range newest + 1 {
				do(t, conn, fmt.Sprintf(`INSERT INTO goose_db_version VALUES (%d, %d, true)`, n, n))
				want = append(want, int64(n))
			}
			for range 2 {
				s, err := open()
				require.NoError(t, err)
				require.NoError(t, s.Ping(t.Context()))
				require.NoError(t, s.Close())
				require.Equal(t, want, versionsOf(t, conn, "goose_db_version"))
			}
		})
	}
}

// Tables of another program that have our names are not touched.
func TestTablesOfAnother(t *testing.T) {
	eachDatabase(t, func(t *testing.T, open func() (*Store, error), conn *sql.DB) {
		do(t, conn, `CREATE TABLE workspaces (id int)`, `CREATE TABLE replicas (id int)`, `INSERT INTO replicas VALUES (7)`)
		for range 2 {
			_, err := open()
			require.ErrorContains(t, err, "it has tables of another program (replicas, workspaces): give agentstatsd a ")
		}
		require.Equal(t, 7, value[int](t, conn, `SELECT id FROM replicas`))
		_, err := conn.ExecContext(t.Context(), `SELECT 1 FROM `+schema.VersionTable)
		require.Error(t, err)
		// With all of the first and a version table that fits somebody else's.
		do(t, conn, `CREATE TABLE agents (id int)`, `CREATE TABLE agent_states (id int)`, `CREATE TABLE metadata (id int)`,
			`CREATE TABLE goose_db_version (id int, version_id bigint, is_applied boolean)`, `INSERT INTO goose_db_version VALUES (1, 9, true)`)
		_, err = open()
		require.ErrorContains(t, err, "it has tables of another program (agent_states, agents, metadata, replicas, workspaces): ")
		require.Equal(t, []int64{9}, versionsOf(t, conn, "goose_db_version"))
	})
}

// The health of apps, once a map of each agent, becomes a row of each app, and a map
// again on the way back.
func TestAppHealthMigrated(t *testing.T) {
	for name, open := range map[string]func(testing.TB) *Store{"sqlite": openTemp, "postgres": openPostgresTemp} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			register(t, s, id(1), id(2))
			want := agent.State{Agent: id(1), NetworkOrder: agent.Order{Epoch: 1, Sequence: 2}}
			want.SetAppHealth(id(201), agent.AppHealthHealthy, agent.Order{Epoch: 7, Sequence: 3})
			want.SetAppHealth(id(202), agent.AppHealthUnhealthy, agent.Order{Epoch: 7, Sequence: 3})
			saveStates(t, s, []agent.State{want})
			provider := migrator(t, s)
			_, err := provider.DownTo(t.Context(), 11)
			require.NoError(t, err)
			require.EqualValues(t, 1, ask[int64](t, s, `SELECT count(*) FROM agent_states WHERE part = 'app_health'`))
			_, err = s.writer.ExecContext(t.Context(), `
INSERT INTO agent_states (agent_id, part, epoch, sequence, data) VALUES ($1, 'app_health', 1, 1, 'null')`, s.dialect.id(id(2)))
			require.NoError(t, err, "an agent that said nothing of its apps")
			_, err = provider.Up(t.Context())
			require.NoError(t, err)
			states, _, err := s.States(t.Context(), 0)
			require.NoError(t, err)
			require.Equal(t, []agent.State{want}, states)
		})
	}
}

// The start of an agent, once a part of its lifecycle, becomes rows of its own, and
// a part again on the way back.
func TestStartupMigrated(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 123456789).UTC() }
	for name, open := range map[string]func(testing.TB) *Store{"sqlite": openTemp, "postgres": openPostgresTemp} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			register(t, s, id(1), id(2), id(3), id(4), id(5))
			order := func(sequence int64) agent.Order { return agent.Order{Epoch: 7, Sequence: sequence} }
			said := func(n byte, states ...agent.LifecycleState) agent.State {
				st := agent.State{Agent: id(n)}
				for i, state := range states {
					st.SetLifecycle(agent.Lifecycle{State: state, ChangedAt: at(int64(i))}, order(int64(i)+1))
				}
				return st
			}
			want := []agent.State{
				said(1, agent.LifecycleStarting, agent.LifecycleReady),
				said(2, agent.LifecycleStarting),
				said(3, agent.LifecycleStartError),
				said(4, agent.LifecycleOff),
				said(5, agent.LifecycleStarting, agent.LifecycleReady, agent.LifecycleStarting),
			}
			want[0].NetworkOrder = order(1)
			saveStates(t, s, want)
			_, err := s.writer.ExecContext(t.Context(), `
INSERT INTO agent_states (agent_id, part, epoch, sequence, data) VALUES ($1, 'ready', 7, 2, '{"ready_at": "2026-01-01T00:00:00Z"}')`, s.dialect.id(id(5)))
			require.NoError(t, err, "the end of the start before")
			provider := migrator(t, s)
			_, err = provider.DownTo(t.Context(), 15)
			require.NoError(t, err)
			require.EqualValues(t, 6, ask[int64](t, s, `SELECT count(*) FROM agent_states`))
			_, err = provider.Up(t.Context())
			require.NoError(t, err)
			states, _, err := s.States(t.Context(), 0)
			require.NoError(t, err)
			want[2].StartedOrder = order(0) // of a beginning that nobody reported
			want[4].ReadyOrder = agent.Order{}
			require.Equal(t, want, states)
		})
	}
}
