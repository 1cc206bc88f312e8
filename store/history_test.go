package store

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// An older dump is restored under a running replica, and others go on from there before
// it looks. It reads all, though the revision is not below what it knows. It changes
// nothing on the basis of what was.
func TestOlderDumpIsRestored(t *testing.T) {
	for engine, options := range map[string]func(testing.TB) Options{
		"sqlite":   func(t testing.TB) Options { return Options{Path: migratedPath(t)} },
		"postgres": func(t testing.TB) Options { return Options{URL: migratedDatabase(t)} },
	} {
		for _, c := range []struct {
			// by is how far beyond the revision that the replica knows the others are.
			// made: it knows that by a change of its own.
			by   int
			made bool
		}{{by: 0}, {by: 3}, {by: 0, made: true}, {by: 3, made: true}} {
			t.Run(fmt.Sprintf("%s/%d/made=%v", engine, c.by, c.made), func(t *testing.T) {
				opts := options(t)
				replica, other := openURL(t, opts), openURL(t, opts)
				register(t, other, id(1)) // 2
				change := agent.Change{Agents: []agent.Registration{registration(id(2), id(100))}}
				var known int64
				var err error
				if c.made {
					known, err = replica.ApplyChange(t.Context(), 2, change)
					require.NoError(t, err)
				} else {
					apply(t, other, change)
					known = registrations(t, replica).Revision
				}
				require.EqualValues(t, 3, known)
				r, err := replica.Registrations(t.Context(), known)
				require.NoError(t, err)
				require.Equal(t, agent.Registrations{Revision: known}, r)

				// As of revision 2, then others' changes.
				for _, statement := range []string{
					`UPDATE registrations SET revision = 2`, `DELETE FROM agents WHERE revision > 2`,
					`DELETE FROM workspaces WHERE revision > 2`, `DELETE FROM revisions WHERE revision > 2`,
				} {
					_, err := other.writer.ExecContext(t.Context(), statement)
					require.NoError(t, err)
				}
				third := openURL(t, opts)
				for n := range byte(c.by + 1) {
					apply(t, third, agent.Change{Agents: []agent.Registration{registration(id(10+n), id(101))}})
				}

				_, err = replica.ApplyChange(t.Context(), known, agent.Change{RemovedAgents: []agent.ID{id(1)}})
				require.ErrorIs(t, err, agent.ErrOutdated)
				r, err = replica.Registrations(t.Context(), known)
				require.NoError(t, err)
				require.True(t, r.Complete)
				require.EqualValues(t, 3+c.by, r.Revision)
				require.Len(t, r.Agents, c.by+1, "of the dump agent 1 went with its workspace's change")
				again, err := replica.Registrations(t.Context(), r.Revision)
				require.NoError(t, err)
				require.Equal(t, agent.Registrations{Revision: r.Revision}, again, "once")
			})
		}
	}
}

// Tokens of old revisions are forgotten; who is further behind reads all.
func TestRevisionsAreForgotten(t *testing.T) {
	s := openTemp(t)
	register(t, s, id(1))
	_, err := s.writer.ExecContext(t.Context(), fmt.Sprintf(`UPDATE registrations SET revision = %d`, revisionsKept+5))
	require.NoError(t, err)
	other := openURL(t, Options{Path: ask[string](t, s, `SELECT file FROM pragma_database_list WHERE name = 'main'`)})
	apply(t, other, agent.Change{NamedAgents: []agent.ID{id(1)}})
	require.EqualValues(t, 1, ask[int](t, s, `SELECT count(*) FROM revisions`))
	r, err := s.Registrations(t.Context(), 2)
	require.NoError(t, err)
	require.True(t, r.Complete)
}
