package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// What is acked is on disk, also where the database is set not to wait for that;
// one that waits for more goes on to.
func TestCommitIsDurable(t *testing.T) {
	for set, want := range map[string]string{"off": "on", "on": "on", "remote_apply": "remote_apply"} {
		t.Run(set, func(t *testing.T) {
			url := migratedDatabase(t)
			conn := admin(t, url)
			execute(t, conn, `ALTER DATABASE `+scalar[string](t, conn, `SELECT current_database()`)+` SET synchronous_commit = '`+set+`'`)
			s := openURL(t, Options{URL: url})
			execute(t, conn, `CREATE TABLE seen (setting text)`)
			execute(t, conn, `CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
				'BEGIN INSERT INTO seen VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END'`)
			for _, table := range []string{"agents", "agent_states", "metadata", "pushes"} {
				execute(t, conn, `CREATE TRIGGER note AFTER INSERT ON `+table+` EXECUTE FUNCTION note()`)
			}
			register(t, s, id(1))
			upsert(t, s, []agent.Metadata{row(id(1), "k", "v", 1, 1)})
			saveStates(t, s, []agent.State{{Agent: id(1), LifecycleOrder: agent.Order{Epoch: 1}}})
			require.NoError(t, s.SavePush(t.Context(), push(1, "x")))
			require.EqualValues(t, 4, scalar[int64](t, conn, `SELECT count(*) FROM seen`))
			require.EqualValues(t, 4, scalar[int64](t, conn, `SELECT count(*) FROM seen WHERE setting = $1`, want))
		})
	}
}
