package postgrestest

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(Main(m)) }

// What was committed is there after each kind of end, and directly and through
// PgBouncer the same database is seen.
func TestServer(t *testing.T) {
	s := Start(t, Setting("work_mem", "1234kB"))
	database := s.CreateDatabase(t)
	pooled := s.PgBouncer(t, database)
	require.Equal(t, []string{"off", "1234kB"}, settings(t, s.URL(), "fsync", "work_mem"))

	execute(t, database, `CREATE TABLE t (n int)`)
	for i, end := range []func(testing.TB){s.Stop, s.Crash, s.Restart} {
		execute(t, pooled, `INSERT INTO t VALUES (1)`)
		end(t)
		if i < 2 {
			_, err := pgx.Connect(t.Context(), database)
			require.ErrorContains(t, err, "connection refused")
			end(t) // again
			s.Restart(t)
		}
		conn := connect(t, database)
		var n int
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM t`).Scan(&n))
		require.Equal(t, i+1, n)
		// PgBouncer, another process, learns it in its own time.
		require.Eventually(t, func() bool {
			conn, err := pgx.Connect(t.Context(), pooled)
			if err != nil {
				return false
			}
			defer func() { _ = conn.Close(t.Context()) }()
			_, err = conn.Exec(t.Context(), `SELECT 1`, pgx.QueryExecModeSimpleProtocol)
			return err == nil
		}, startTimeout, 20*time.Millisecond)
	}

	second := s.CreateDatabase(t)
	require.NotEqual(t, database, second)
	execute(t, second, `CREATE TABLE t (n int)`)
}

func TestShared(t *testing.T) {
	require.Same(t, Shared(t), Shared(t))
	require.NotEqual(t, Shared(t).URL(), Start(t, Durable()).URL())
	execute(t, Shared(t).CreateDatabase(t), `CREATE TABLE t (n int)`)
}

// Copies have what the template has, which is filled once, and nothing in common.
func TestTemplate(t *testing.T) {
	filled := 0
	template := NewTemplate(func(url string) error {
		filled++
		execute(t, url, `CREATE TABLE t (n int)`)
		return nil
	})
	first, second := template.Copy(t), template.Copy(t)
	require.Equal(t, 1, filled)
	execute(t, first, `INSERT INTO t VALUES (1)`)
	for url, want := range map[string]int{first: 1, second: 0} {
		var n int
		require.NoError(t, connect(t, url).QueryRow(t.Context(), `SELECT count(*) FROM t`).Scan(&n))
		require.Equal(t, want, n)
	}
}

func TestDurable(t *testing.T) {
	require.Equal(t, []string{"on", "on"}, settings(t, Start(t, Durable()).URL(), "fsync", "synchronous_commit"))
}

func TestMissing(t *testing.T) {
	_, err := find("no-such-server")
	require.EqualError(t, err, "no-such-server is not installed: run `make servers`")
}

func settings(t *testing.T, url string, names ...string) []string {
	conn := connect(t, url)
	values := make([]string, len(names))
	for i, name := range names {
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT current_setting($1)`, name).Scan(&values[i]))
	}
	return values
}

func connect(t *testing.T, url string) *pgx.Conn {
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

func execute(t *testing.T, url, statement string) {
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), statement, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
}
