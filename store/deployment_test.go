package store

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// deploymentOf opens a database and returns whose it is, and what was logged.
func deploymentOf(t testing.TB, opts Options) (agent.ID, string) {
	t.Helper()
	var log bytes.Buffer
	s, err := Open(t.Context(), opts, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	id, err := s.Deployment(t.Context())
	require.NoError(t, err)
	require.Equal(t, s.deployment, id)
	require.NotZero(t, id)
	return id, log.String()
}

func TestDeploymentID(t *testing.T) {
	id := uuid.New()
	require.Equal(t, id, DeploymentID(id.String()))
	require.Equal(t, DeploymentID("staging"), DeploymentID("staging"))
	require.NotEqual(t, DeploymentID("staging"), DeploymentID("production"))
}

// The identity stays over restarts, is another one in a copy, and what its option says.
func TestDeployment(t *testing.T) {
	server := postgrestest.Shared(t)
	main := admin(t, server.URL())
	path := filepath.Join(t.TempDir(), "a.db")
	database := server.CreateDatabase(t)
	for name, c := range map[string]struct {
		opts Options
		copy func() Options
	}{
		"sqlite": {Options{Path: path}, func() Options {
			from, err := os.Open(path)
			require.NoError(t, err)
			defer func() { require.NoError(t, from.Close()) }()
			to, err := os.Create(path + ".copy")
			require.NoError(t, err)
			_, err = io.Copy(to, from)
			require.NoError(t, err)
			require.NoError(t, to.Close())
			return Options{Path: path + ".copy"}
		}},
		"postgres": {Options{URL: database}, func() Options {
			// As pg_dump and pg_restore do within one cluster.
			// The server waits for the ends of others' connections for 5 s only.
			for scalar[int](t, main, `SELECT count(*) FROM pg_stat_activity WHERE datname = $1`, databaseOf(database)) > 0 {
				require.NoError(t, t.Context().Err())
			}
			execute(t, main, `DROP DATABASE IF EXISTS copied WITH (FORCE)`)
			execute(t, main, `CREATE DATABASE copied TEMPLATE `+databaseOf(database))
			return Options{URL: strings.Replace(database, "/"+databaseOf(database)+"?", "/copied?", 1)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			first, log := deploymentOf(t, c.opts)
			require.Contains(t, log, "database belongs to a new deployment")
			again, log := deploymentOf(t, c.opts)
			require.Equal(t, first, again)
			require.Empty(t, log)

			copied := c.copy()
			other, log := deploymentOf(t, copied)
			require.NotEqual(t, first, other)
			require.Contains(t, log, "level=WARN msg=\"database is a copy: it belongs to a new deployment\"")
			require.Contains(t, log, "copied_from="+first.String())
			again, log = deploymentOf(t, copied)
			require.Equal(t, other, again, "once")
			require.Empty(t, log)
			again, _ = deploymentOf(t, c.opts)
			require.Equal(t, first, again, "the original keeps its own")

			copied.DeploymentID = DeploymentID("staging")
			other, log = deploymentOf(t, copied)
			require.Equal(t, DeploymentID("staging"), other)
			require.Contains(t, log, "deployment has another id, as was asked for")
			_, log = deploymentOf(t, copied)
			require.Empty(t, log)
			copied.DeploymentID = agent.ID{}
			again, _ = deploymentOf(t, copied)
			require.Equal(t, other, again)
		})
	}
	execute(t, main, `DROP DATABASE copied WITH (FORCE)`)

	require.NoError(t, os.Rename(path, path+".moved"))
	first, _ := deploymentOf(t, Options{Path: path + ".moved"})
	require.NoError(t, os.Rename(path+".moved", path))
	again, log := deploymentOf(t, Options{Path: path})
	require.Equal(t, first, again, "a file that moves is the same")
	require.Empty(t, log)
}

// databaseOf returns the name of the database of a test's URL.
func databaseOf(url string) string {
	name, _, _ := strings.Cut(url[strings.LastIndex(url, "/")+1:], "?")
	return name
}

// Replicas that start together agree.
func TestPostgresDeploymentTogether(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	ids := make([]agent.ID, 6)
	var group errgroup.Group
	for i := range ids {
		group.Go(func() error {
			s, err := Open(t.Context(), Options{URL: url}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			ids[i] = s.deployment
			return s.Close()
		})
	}
	require.NoError(t, group.Wait())
	for _, id := range ids {
		require.NotZero(t, id)
		require.Equal(t, ids[0], id)
	}
}

// A dump that is restored in another cluster is a copy. A role that may not ask for the
// cluster keeps what another has recorded.
func TestPostgresDeploymentOfCluster(t *testing.T) {
	database := postgrestest.Shared(t).CreateDatabase(t)
	conn := admin(t, database)
	id, _ := deploymentOf(t, Options{URL: database})
	require.Equal(t, scalar[string](t, conn, `SELECT system_identifier::text FROM pg_control_system()`),
		scalar[string](t, conn, `SELECT cluster FROM agentstatsd_deployment`))

	execute(t, conn, `CREATE ROLE unknowing LOGIN`)
	execute(t, conn, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO unknowing`)
	defer execute(t, conn, `DROP OWNED BY unknowing; DROP ROLE unknowing`)
	role := Options{URL: as(t, database, "unknowing", "")}
	again, log := deploymentOf(t, role)
	require.Equal(t, id, again)
	require.Empty(t, log, "everybody may, by default")
	execute(t, conn, `REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC`)
	again, log = deploymentOf(t, role)
	require.Equal(t, id, again)
	require.Contains(t, log, "this role may not execute pg_control_system()")
	again, _ = deploymentOf(t, Options{URL: database})
	require.Equal(t, id, again)

	execute(t, conn, `UPDATE agentstatsd_deployment SET cluster = '1'`)
	other, log := deploymentOf(t, Options{URL: database})
	require.NotEqual(t, id, other)
	require.Contains(t, log, "database is a copy")
}

// Two deployments in two schemas of one database do not meet: neither in tables, nor in
// the lock of who migrates, nor in their identities.
func TestPostgresSchemas(t *testing.T) {
	database := postgrestest.Shared(t).CreateDatabase(t)
	conn := admin(t, database)
	execute(t, conn, `CREATE SCHEMA a`)
	execute(t, conn, `CREATE SCHEMA b`)
	ofA := openURL(t, Options{URL: database + "&search_path=a"})
	register(t, ofA, id(1))

	// Somebody migrates a.
	execute(t, conn, `BEGIN`)
	execute(t, conn, `SELECT pg_advisory_xact_lock($1, oid::int) FROM pg_namespace WHERE nspname = 'a'`, migrationLock)
	ofB := openURL(t, Options{URL: database + "&search_path=b,a"})
	execute(t, conn, `ROLLBACK`)
	require.Empty(t, registrations(t, ofB).Agents)
	require.Len(t, registrations(t, ofA).Agents, 1)
	require.NotEqual(t, ofA.deployment, ofB.deployment)
	require.Equal(t, 2, scalar[int](t, conn, `SELECT count(*) FROM pg_class WHERE relname = 'agentstatsd_schema_version'`))
	openURL(t, Options{URL: database + "&search_path=b"})
	openURL(t, Options{URL: database + "&search_path=a,public"})
}
