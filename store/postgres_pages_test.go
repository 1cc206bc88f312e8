package store

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/undecodable"
)

// rowTracer notes how many rows each statement returned.
type rowTracer struct {
	mu   sync.Mutex
	rows []int64
}

func (r *rowTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, r, data.SQL)
}

func (r *rowTracer) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, data.CommandTag.RowsAffected())
}

// take returns the most rows that a statement returned since the last call.
func (r *rowTracer) take() (most int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.rows {
		most = max(most, n)
	}
	r.rows = nil
	return most
}

// fill makes n agents with a workspace, a state, a session and a value each, and
// a push each, by statements of its own.
func fill(t testing.TB, conn *pgx.Conn, n int) {
	const number = `lpad(to_hex(n), 32, '0')::uuid`
	for _, statement := range []string{
		`UPDATE registrations SET revision = revision + 1`,
		`INSERT INTO workspaces SELECT ` + number + `, 'w' || n, ` + number + `, 'u', ` + number + `, 't', 'v', 'o', ` + number + `, 1, 'start', false, 2`,
		`INSERT INTO agents SELECT ` + number + `, ` + number + `, ` + number + `, 'main', 1, 1, sha256(n::text::bytea), '[]', '[]', 2`,
		`INSERT INTO agent_states (agent_id, part, epoch, sequence, data) SELECT ` + number + `, 'network', 1, 1, '{"node_id": "7"}'`,
		`INSERT INTO sessions (agent_id, epoch, replica_id, open, reported) SELECT ` + number + `, 1, ` + number + `, true, false`,
		`INSERT INTO metadata SELECT ` + number + `, 'k', 'v', '', 1, 1, 1`,
	} {
		if statement[0] == 'I' {
			statement += fmt.Sprintf(` FROM generate_series(1, %d) AS n`, n)
		}
		execute(t, conn, statement)
	}
	execute(t, conn, `INSERT INTO pushes SELECT `+number+`, 'r', 1, '\x01', 1 FROM generate_series(1, 50) AS n`)
}

// No statement of a read grows with the fleet, so that a limit of time for each does
// not depend on its size. What the pages make together is all.
func TestPostgresPages(t *testing.T) {
	const agents = 12_345
	url := migratedDatabase(t)
	openURL(t, Options{URL: url})
	fill(t, admin(t, url), agents)
	opts := Options{URL: url}.withDefaults()
	config, err := postgresConfig(opts)
	require.NoError(t, err)
	tracer := &rowTracer{}
	config.Tracer = tracer
	db := stdlib.OpenDB(*config)
	s := &Store{dialect: &postgresDialect, writer: db, reader: db, patience: time.Minute, log: slog.New(slog.DiscardHandler)}
	s.undecodable = undecodable.New(testMetrics(t).UndecodableRows, s.log)
	t.Cleanup(func() { require.NoError(t, s.Close()) })

	var ids []agent.ID
	for name, read := range map[string]func() (got, page int, err error){
		"registrations": func() (int, int, error) {
			r, err := s.Registrations(t.Context(), 0)
			require.True(t, r.Complete)
			require.Len(t, r.Workspaces, len(r.Agents))
			for i := range r.Agents {
				require.Equal(t, r.Workspaces[i], r.Agents[i].Workspace)
				ids = append(ids, r.Agents[i].ID)
			}
			return len(r.Agents), pageOfAgents.rows, err
		},
		"registrations since": func() (int, int, error) {
			r, err := s.Registrations(t.Context(), 1)
			require.False(t, r.Complete)
			return len(r.Agents), pageOfAgents.rows, err
		},
		"states": func() (int, int, error) {
			states, _, err := s.States(t.Context(), 0)
			return len(states), pageOfStates.rows, err
		},
		"states since": func() (int, int, error) {
			states, _, err := s.States(t.Context(), 1)
			return len(states), pageOfStates.rows, err
		},
		"sessions": func() (int, int, error) {
			records, _, err := s.Sessions(t.Context(), 0)
			return len(records), pageOfSessions.rows, err
		},
		"metadata keys": func() (int, int, error) {
			keys := 0
			err := s.MetadataKeys(t.Context(), func(agent.ID, []string) error { keys++; return nil })
			return keys, pageOfKeys.rows, err
		},
	} {
		got, page, err := read()
		require.NoError(t, err, name)
		require.Equal(t, agents, got, name)
		require.LessOrEqual(t, tracer.take(), int64(page), name)
	}
	read := 0
	for some := range slices.Chunk(ids, idChunk) {
		values, left, err := s.MetadataWithin(t.Context(), some, 1<<30)
		require.NoError(t, err)
		require.Empty(t, left)
		read += len(values)
	}
	require.Equal(t, agents, read)
	require.LessOrEqual(t, tracer.take(), int64(pageOfMetadata.rows))
	pushes, err := s.Pushes(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, pushes, 50)
	require.LessOrEqual(t, tracer.take(), int64(pageOfPushes.rows))

	conn := admin(t, url)
	execute(t, conn, `INSERT INTO pushes SELECT gen_random_uuid(), 'r', 1, '\x01', 1 FROM generate_series(1, 12000) AS n`)
	execute(t, conn, `INSERT INTO replicas SELECT gen_random_uuid(), 'r', 1 FROM generate_series(1, 3000) AS n`)
	versions, err := s.PushVersions(t.Context())
	require.NoError(t, err)
	require.Len(t, versions, 12_050)
	require.LessOrEqual(t, tracer.take(), int64(pageOfVersions.rows))
	replicas, _, err := s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(1)}, -1)
	require.NoError(t, err)
	require.Len(t, replicas, 3001)
	require.LessOrEqual(t, tracer.take(), int64(pageOfReplicas.rows))
}

// Old records of builds are looked for a thousand at a time, and all are looked at in
// the end. Those of workspaces stay.
func TestPostgresBuildsAreForgottenInParts(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	conn := admin(t, url)
	fill(t, conn, 1500)
	execute(t, conn, `UPDATE workspaces SET build_id = gen_random_uuid()`)
	execute(t, conn, `INSERT INTO builds_observed SELECT build_id, 1 FROM workspaces`)
	execute(t, conn, `INSERT INTO builds_observed SELECT gen_random_uuid(), 1 FROM generate_series(1, 1800) AS n`)
	left := func() int { return scalar[int](t, conn, `SELECT count(*) FROM builds_observed WHERE observed_at = 1`) }
	var lefts []int
	for n := byte(0); left() > 1500 && n < 10; n++ {
		before := left()
		_, err := s.ObserveBuilds(t.Context(), []agent.ID{{15: n + 1}}, time.Now())
		require.NoError(t, err)
		lefts = append(lefts, left())
		require.LessOrEqual(t, before-left(), buildsLookedAt)
	}
	require.Equal(t, 1500, left())
	require.Len(t, lefts, 4, "3,304 records: %v", lefts)
}

// A large read is of one moment, whatever is written between two of its pages.
func TestPostgresPagesOfOneMoment(t *testing.T) {
	const agents = 3500
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	conn := admin(t, url)
	fill(t, conn, agents)
	tx, err := s.reader.BeginTx(t.Context(), s.dialect.snapshot)
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback()) }()
	read := 0
	err = s.dialect.stream(t.Context(), tx, pageOfAgents, `SELECT id FROM agents ORDER BY id`, nil, func(*sql.Rows) error {
		if read++; read == pageOfAgents.rows {
			execute(t, conn, `DELETE FROM agents WHERE id::text LIKE '%a'`)
			execute(t, conn, `
INSERT INTO agents SELECT gen_random_uuid(), workspace_id, parent_id, name, created_at, connection_timeout, token_sha256, apps, metadata_keys, 3
FROM agents WHERE id::text LIKE '%b'`)
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, agents, read)
}

// Rows that a dump brought from a cluster with more transactions are read once, by a
// cursor of that cluster, too. Then what is written here is read.
func TestPostgresYoungerCluster(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	register(t, s, id(1), id(2))
	state := func(a byte, sequence int64) agent.State {
		return agent.State{Agent: id(a), NetworkOrder: agent.Order{Epoch: 1, Sequence: sequence}, Network: agent.Network{NodeID: uint64(sequence)}}
	}
	saveStates(t, s, []agent.State{state(1, 1), state(2, 1)})
	saveSessions(t, s, []agent.SessionRecord{{Agent: id(1), Epoch: 1}, {Agent: id(2), Epoch: 1}})
	conn := admin(t, url)
	const ahead = 1 << 40
	execute(t, conn, `UPDATE agent_states SET changed = $1::text::xid8`, fmt.Sprint(ahead))
	execute(t, conn, `UPDATE sessions SET changed = $1::text::xid8`, fmt.Sprint(ahead+1))

	var states, sessions int64 = ahead, ahead + 2
	read := func() (int, int) {
		t.Helper()
		changed, next, err := s.States(t.Context(), states)
		require.NoError(t, err)
		records, nextSession, err := s.Sessions(t.Context(), sessions)
		require.NoError(t, err)
		states, sessions = next, nextSession
		require.Less(t, max(states, sessions)%(1<<transactionBits), int64(ahead))
		return len(changed), len(records)
	}
	changed, records := read()
	require.Equal(t, []int{2, 2}, []int{changed, records})
	changed, records = read()
	require.Equal(t, []int{0, 0}, []int{changed, records}, "once")
	saveStates(t, s, []agent.State{state(2, 2)})
	saveSessions(t, s, []agent.SessionRecord{{Agent: id(1), Epoch: 2}})
	changed, records = read()
	require.Equal(t, []int{1, 1}, []int{changed, records})
}

// A large read may take longer than any of its statements, but does not wait for a server
// that has fallen silent.
func TestPostgresPagesStandStill(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url, TransactionPooling: true}) // no limit of the server's
	fill(t, admin(t, url), 1500)
	conn := admin(t, url)
	s.patience = 50 * time.Millisecond
	execute(t, conn, `BEGIN`)
	execute(t, conn, `LOCK TABLE agent_states IN ACCESS EXCLUSIVE MODE`)
	_, _, err := s.States(t.Context(), 0)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, t.Context().Err())
	execute(t, conn, `ROLLBACK`)
	s.patience = time.Minute
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, states, 1500)
}
