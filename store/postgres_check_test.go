package store

import (
	"log/slog"
	"net/url"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

// as returns a database's URL for a role, with more parameters.
func as(t testing.TB, database, role, params string) string {
	t.Helper()
	u, err := url.Parse(database)
	require.NoError(t, err)
	u.User = url.User(role)
	u.RawQuery += params
	return u.String()
}

// A database that is not what is needed is refused in one sentence, and nothing is made
// in it.
func TestPostgresStartChecks(t *testing.T) {
	server := postgrestest.Shared(t)
	main := admin(t, server.URL())
	execute(t, main, `CREATE ROLE limited LOGIN`)
	defer execute(t, main, `DROP ROLE limited`)
	for name, c := range map[string]struct {
		prepare  []string
		role     string
		params   string
		pooler   []string
		declared bool
		want     string
	}{
		"encoding": {
			prepare: []string{`UPDATE pg_database SET encoding = 0 WHERE datname = current_database()`},
			want:    "its encoding is SQL_ASCII, not UTF8: make the database with ENCODING 'UTF8' TEMPLATE template0",
		},
		"no right to create": {
			role: "limited",
			want: `the role may not make tables in schema "public": GRANT USAGE, CREATE ON SCHEMA "public" to it`,
		},
		"no schema": {
			params: "&search_path=missing",
			want:   "no schema of the search_path exists for this role",
		},
		"read-only": {
			params: "&default_transaction_read_only=on",
			want:   "the server takes no writes (default_transaction_read_only is on): name the primary in the URL",
		},
		"no database": {
			want: "the database does not exist: make it with CREATE DATABASE",
		},
		"pooler that takes no settings": {
			pooler: []string{""},
			want:   "a pooler in transaction mode stands before the server: set --database-transaction-pooling",
		},
		"pooler that ignores settings": {
			pooler: []string{"ignore_startup_parameters = statement_timeout,lock_timeout,idle_in_transaction_session_timeout"},
			want:   "a pooler in transaction mode stands before the server: set --database-transaction-pooling",
		},
		"search_path that the pooler does not take": {
			prepare: []string{`CREATE SCHEMA a`}, params: "&search_path=a",
			pooler: []string{""}, declared: true,
			want: "of search_path, set it on the role (ALTER ROLE ... SET search_path = ...) and leave it out of the URL",
		},
		"bytes that a pooler does not show as hex": {
			prepare: []string{`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET bytea_output = escape', current_database()); END $$`},
			pooler:  []string{""}, declared: true,
			want: "its bytea_output is escape, which this program does not read by a pooler: set it on the role",
		},
		// It would join the deployment that has the schema public.
		"search_path that the pooler ignores": {
			prepare: []string{`CREATE SCHEMA a`}, params: "&search_path=a",
			pooler: []string{"ignore_startup_parameters = search_path"}, declared: true,
			want: `a pooler ignores the search_path of the URL, "a", and has `,
		},
	} {
		t.Run(name, func(t *testing.T) {
			database := server.CreateDatabase(t)
			conn := admin(t, database)
			given := database
			if name == "no database" {
				given = as(t, "postgres://"+server.Address()+"/missing?sslmode=disable", "postgres", "")
			} else {
				for _, statement := range c.prepare {
					execute(t, conn, statement)
				}
			}
			if c.role != "" {
				given = as(t, database, c.role, c.params)
			} else {
				given += c.params
			}
			if c.pooler != nil {
				given = server.PgBouncer(t, database, c.pooler...) + c.params
			}
			_, err := Open(t.Context(), Options{URL: given, TransactionPooling: c.declared}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "transaction is aborted")
			require.Zero(t, scalar[int](t, conn, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`))
		})
	}
}

// A standby is not taken for a primary.
func TestPostgresStandby(t *testing.T) {
	primary := postgrestest.Start(t)
	standby := primary.Standby(t)
	_, err := Open(t.Context(), Options{URL: standby.URL()}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "the server is a standby, which cannot be written to: name the primary in the URL")
}

// A role that does not own the tables may use them, if it may; otherwise the error says what
// it lacks.
func TestPostgresRights(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.CreateDatabase(t)
	conn := admin(t, database)
	execute(t, conn, `CREATE ROLE reader LOGIN`)
	defer execute(t, conn, `DROP OWNED BY reader; DROP ROLE reader`)
	openURL(t, Options{URL: database})
	execute(t, conn, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reader`)
	openURL(t, Options{URL: as(t, database, "reader", "")})
	execute(t, conn, `REVOKE DELETE ON agents, removed FROM reader`)
	_, err := Open(t.Context(), Options{URL: as(t, database, "reader", "")}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "the role may not read and write all tables: GRANT SELECT, INSERT, UPDATE, DELETE ON agents, removed to it")
}

// Of a migration that fails the cause is returned, not that the transaction is over.
func TestPostgresMigrationFails(t *testing.T) {
	database := postgrestest.Shared(t).CreateDatabase(t)
	conn := admin(t, database)
	execute(t, conn, `CREATE SEQUENCE agents_revision`)
	_, err := Open(t.Context(), Options{URL: database}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, `relation "agents_revision" already exists`)
	require.NotContains(t, err.Error(), "transaction is aborted")
	require.Zero(t, scalar[int](t, conn, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`))
}
