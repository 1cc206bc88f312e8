package pgpool_test

import (
	"bytes"
	"log/slog"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/postgrestest"
	"github.com/coder/agentstatsd/store/internal/pgpool"
)

func TestMain(m *testing.M) { os.Exit(postgrestest.Main(m).Run()) }

// What a real server warns of is in the log, without a password in it.
func TestNotices(t *testing.T) {
	config, err := pgx.ParseConfig(postgrestest.Shared(t).CreateDatabase(t))
	require.NoError(t, err)
	var out bytes.Buffer
	config.OnNotice = pgpool.Notices(slog.New(slog.NewTextHandler(&out, nil)))
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	_, err = conn.Exec(t.Context(), `DO $$ BEGIN RAISE NOTICE 'routine'; RAISE WARNING 'subscription to postgres://ada:s3cret@db/x'; END $$`)
	require.NoError(t, err)
	require.Contains(t, out.String(), `level=WARN msg="PostgreSQL has a notice" severity=WARNING code=01000 message="subscription to postgres://ada:xxxxx@db/x"`)
	require.NotContains(t, out.String(), "routine", "that is for debugging")
}
