package store

import (
	"io/fs"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// migrator returns goose's view of an open store.
func migrator(t *testing.T, s *Store) *goose.Provider {
	t.Helper()
	files, err := fs.Sub(migrations, "migrations/"+s.dialect.name)
	require.NoError(t, err)
	provider, err := goose.NewProvider(s.dialect.goose, s.writer, files, goose.WithDisableGlobalRegistry(true))
	require.NoError(t, err)
	return provider
}

// The way back leaves nothing, and the way up again works.
func TestMigrationsDown(t *testing.T) {
	for name, open := range map[string]func(testing.TB) *Store{"sqlite": openTemp, "postgres": openPostgresTemp} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			register(t, s, id(1))
			require.NoError(t, s.SaveSessions(t.Context(), []agent.SessionRecord{{Agent: id(1), Epoch: 7}}))
			provider := migrator(t, s)
			_, err := provider.DownTo(t.Context(), 0)
			require.NoError(t, err)
			_, err = provider.Up(t.Context())
			require.NoError(t, err)
			require.Empty(t, roster(t, s).Agents)
			register(t, s, id(1))
		})
	}
}

// A database of the version before replicas: epochs become sessions, all that is
// there has the first revision and version, and the way back keeps the epochs.
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

	s, err = Open(t.Context(), Options{Path: path}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	got := roster(t, s)
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
