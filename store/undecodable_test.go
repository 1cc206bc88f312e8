package store

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// A row that cannot be decoded is counted and logged once, and left out: the rest is
// read.
func TestUndecodableRows(t *testing.T) {
	// What no statement of ours writes, and no constraint refuses.
	const lax = `PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF; `
	agentIDs := func(r agent.Registrations) (ids []agent.ID) {
		for i := range r.Agents {
			ids = append(ids, r.Agents[i].ID)
		}
		return ids
	}
	readAgents := func(want ...agent.ID) func(*testing.T, *Store) {
		return func(t *testing.T, s *Store) {
			r, err := s.Registrations(t.Context(), 0)
			require.NoError(t, err)
			require.Equal(t, want, agentIDs(r))
		}
	}
	// Of the agent that cannot be decoded the rest is left out, too: nobody knows it.
	withoutFirst := func(t *testing.T, s *Store) {
		readAgents(id(2))(t, s)
		states, _, err := s.States(t.Context(), 0)
		require.NoError(t, err)
		require.Len(t, states, 1)
		sessions, _, err := s.Sessions(t.Context(), 0)
		require.NoError(t, err)
		require.Len(t, sessions, 1)
	}
	readStates := func(t *testing.T, s *Store) {
		states, _, err := s.States(t.Context(), 0)
		require.NoError(t, err)
		require.Len(t, states, 2)
		require.Equal(t, agent.Order{}, states[0].LifecycleOrder)
		require.Equal(t, agent.Lifecycle{}, states[0].Lifecycle)
		require.Equal(t, agent.Order{Epoch: 4, Sequence: 2}, states[0].NetworkOrder)
		require.Equal(t, agent.Order{Epoch: 4, Sequence: 1}, states[1].LifecycleOrder)
	}
	first := fmt.Sprintf("'%s'", id(1))
	blob := func(n byte) string { i := id(n); return fmt.Sprintf("x'%x'", i[:]) }
	firstBlob := blob(1)
	for name, c := range map[string]struct {
		kind, row        string
		sqlite, postgres string
		read             func(*testing.T, *Store)
	}{
		"apps": {
			kindAgents, id(1).String(),
			`UPDATE agents SET apps = '{"a": 1}' WHERE id = ` + firstBlob,
			`UPDATE agents SET apps = '{"a": 1}' WHERE id = ` + first, withoutFirst,
		},
		"keys": {
			kindAgents, id(1).String(),
			`UPDATE agents SET metadata_keys = '[1]' WHERE id = ` + firstBlob,
			`UPDATE agents SET metadata_keys = '[1]' WHERE id = ` + first, withoutFirst,
		},
		"workspace": {
			kindWorkspaces, id(101).String(),
			lax + `UPDATE workspaces SET owner_id = x'01' WHERE id = ` + blob(101),
			fmt.Sprintf(`ALTER TABLE workspaces ALTER COLUMN build_created_at TYPE numeric; UPDATE workspaces SET build_created_at = 1e30 WHERE id = '%s'`, id(101)),
			readAgents(id(1)),
		},
		"state": {
			kindStates, id(1).String() + " lifecycle",
			`UPDATE agent_states SET data = '[]' WHERE part = 'lifecycle' AND agent_id = ` + firstBlob,
			`UPDATE agent_states SET data = '[]' WHERE part = 'lifecycle' AND agent_id = ` + first, readStates,
		},
		"part": {
			kindStates, id(1).String() + " app_health/x",
			`UPDATE agent_states SET part = 'app_health/x' WHERE part = 'lifecycle' AND agent_id = ` + firstBlob,
			`UPDATE agent_states SET part = 'app_health/x' WHERE part = 'lifecycle' AND agent_id = ` + first, readStates,
		},
		"unknown part": {
			kindStates, id(1).String() + " mood",
			lax + `UPDATE agent_states SET part = 'mood' WHERE part = 'lifecycle' AND agent_id = ` + firstBlob,
			`ALTER TABLE agent_states DROP CONSTRAINT agent_states_part_check; UPDATE agent_states SET part = 'mood' WHERE part = 'lifecycle' AND agent_id = ` + first,
			readStates,
		},
		"session": {
			kindSessions, id(1).String(),
			lax + `UPDATE sessions SET open = 7 WHERE agent_id = ` + firstBlob,
			`ALTER TABLE sessions ALTER COLUMN epoch TYPE numeric; UPDATE sessions SET epoch = 1e30 WHERE agent_id = ` + first,
			func(t *testing.T, s *Store) {
				sessions, _, err := s.Sessions(t.Context(), 0)
				require.NoError(t, err)
				require.Equal(t, []agent.SessionRecord{{Agent: id(2), Epoch: 4}}, sessions)
			},
		},
		"push": {
			kindPushes, "",
			lax + `UPDATE pushes SET instance_id = x'01' WHERE replica = 'coderd-1'`,
			`ALTER TABLE pushes ALTER COLUMN version TYPE numeric; UPDATE pushes SET version = 1e30 WHERE replica = 'coderd-1'`,
			func(t *testing.T, s *Store) {
				require.Len(t, allPushes(t, s), 1)
				versions, err := s.PushVersions(t.Context())
				require.NoError(t, err)
				require.Len(t, versions, 1)
			},
		},
		"named": {
			kindNamed, "revision 3",
			`UPDATE named SET agents = x'01'`, `UPDATE named SET agents = '\x01'`,
			func(t *testing.T, s *Store) {
				r, err := s.Registrations(t.Context(), 2)
				require.NoError(t, err)
				require.True(t, r.Complete, "nobody knows who was named")
				require.Len(t, r.Agents, 2)
			},
		},
	} {
		for engine, opts := range map[string]func(testing.TB) Options{
			"sqlite":   func(t testing.TB) Options { return Options{Path: migratedPath(t)} },
			"postgres": func(t testing.TB) Options { return Options{URL: migratedDatabase(t)} },
		} {
			t.Run(name+"/"+engine, func(t *testing.T) {
				opts := opts(t)
				s := openURL(t, opts)
				apply(t, s, agent.Change{Agents: []agent.Registration{registration(id(1), id(100)), registration(id(2), id(101))}})
				apply(t, s, agent.Change{NamedAgents: []agent.ID{id(1)}})
				for _, a := range []agent.ID{id(1), id(2)} {
					saveStates(t, s, []agent.State{{
						Agent: a, LifecycleOrder: agent.Order{Epoch: 4, Sequence: 1}, NetworkOrder: agent.Order{Epoch: 4, Sequence: 2},
					}})
					saveSessions(t, s, []agent.SessionRecord{{Agent: a, Epoch: 4}})
				}
				for n := range byte(2) {
					p := push(n+1, "x")
					p.Replica = fmt.Sprintf("coderd-%d", n+1)
					require.NoError(t, s.SavePush(t.Context(), p))
				}
				statements := c.sqlite
				if engine == "postgres" {
					statements = c.postgres
				}
				for statement := range strings.SplitSeq(statements, "; ") {
					_, err := s.writer.ExecContext(t.Context(), statement)
					require.NoError(t, err, statement)
				}
				var log bytes.Buffer
				s, err := Open(t.Context(), opts, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(&log, nil)))
				require.NoError(t, err)
				defer func() { require.NoError(t, s.Close()) }()
				for range 2 {
					c.read(t, s)
				}
				require.EqualValues(t, 1, testutil.ToFloat64(s.metrics.UndecodableRows.WithLabelValues(c.kind)))
				line := "a row of the database cannot be decoded and is skipped\" kind=" + c.kind
				require.Equal(t, 1, strings.Count(log.String(), line), log.String())
				require.Contains(t, log.String(), c.row)
			})
		}
	}
}

// A session that cannot be decoded is no session to whoever opens the next one: its
// acks wait for the answer.
func TestSessionsBeforeUndecodableOnes(t *testing.T) {
	for engine, open := range map[string]func(testing.TB) *Store{"sqlite": openTemp, "postgres": openPostgresTemp} {
		t.Run(engine, func(t *testing.T) {
			s := open(t)
			exec := func(statement string) {
				_, err := s.writer.ExecContext(t.Context(), statement)
				require.NoError(t, err, statement)
			}
			register(t, s, id(1), id(2))
			if engine == "postgres" {
				exec(`ALTER TABLE sessions ALTER COLUMN epoch TYPE numeric`)
			}
			saveSessions(t, s, []agent.SessionRecord{{Agent: id(1), Epoch: 4}, {Agent: id(2), Epoch: 4}})
			if engine == "postgres" {
				exec(`UPDATE sessions SET epoch = 1e30 WHERE epoch = 4 AND agent_id = ` + fmt.Sprintf("'%s'", id(1)))
			} else {
				exec(`PRAGMA ignore_check_constraints = ON`)
				exec(`UPDATE sessions SET replica_id = x'01' WHERE hex(agent_id) = ` + fmt.Sprintf("'%X'", [16]byte(id(1))))
			}
			before, err := s.SaveSessions(t.Context(), []agent.SessionRecord{{Agent: id(1), Epoch: 9}, {Agent: id(2), Epoch: 9}})
			require.NoError(t, err)
			require.Equal(t, []agent.SessionRecord{{Agent: id(1)}, {Agent: id(2), Epoch: 4}}, before)
		})
	}
}

// Who cannot be decoded is unknown, also to a reader of what changed; registered again
// it is another incarnation, as for whoever registers it.
func TestUndecodableAgentIsRegisteredAgain(t *testing.T) {
	for engine, open := range map[string]func(testing.TB) *Store{"sqlite": openTemp, "postgres": openPostgresTemp} {
		t.Run(engine, func(t *testing.T) {
			s := open(t)
			register(t, s, id(1), id(2))
			before := registrations(t, s).Revision
			changed := registration(id(1), id(100))
			changed.Name = "renamed"
			apply(t, s, agent.Change{Agents: []agent.Registration{changed}})
			_, err := s.writer.ExecContext(t.Context(), `UPDATE agents SET apps = '{"a": 1}' WHERE name = 'renamed'`)
			require.NoError(t, err)
			r, err := s.Registrations(t.Context(), before)
			require.NoError(t, err)
			require.Empty(t, r.Agents)
			require.Equal(t, []agent.ID{id(1)}, r.RemovedAgents)

			revision, err := s.ApplyChange(t.Context(), r.Revision, agent.Change{Agents: []agent.Registration{changed}})
			require.NoError(t, err)
			saveSessions(t, s, []agent.SessionRecord{{Agent: id(1), Epoch: 5}})
			sessions, _, err := s.Sessions(t.Context(), 0)
			require.NoError(t, err)
			require.Len(t, sessions, 1, "before it reads its own change")
			r, err = s.Registrations(t.Context(), 0)
			require.NoError(t, err)
			require.Len(t, r.Agents, 2)
			require.Equal(t, revision, r.Agents[0].Incarnation)
			m := row(id(1), "k", "v", 1, 1)
			m.Incarnation = revision
			changedIDs, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{m})
			require.NoError(t, err)
			require.Equal(t, []agent.ID{id(1)}, changedIDs)
		})
	}
}

// A batch that cannot be read is counted, and does not stop its watcher.
func TestUndecodableBatch(t *testing.T) {
	s := openTemp(t)
	a, err := s.OpenSubscription(t.Context(), reportOpening("a", 1))
	require.NoError(t, err)
	for _, text := range []string{
		"INSERT INTO report_batches (subscription_id, number, data) VALUES (1, 1, x'ff')",
		"UPDATE report_subscriptions SET number = 1",
	} {
		_, err := s.writer.ExecContext(t.Context(), text)
		require.NoError(t, err)
	}
	for range 2 {
		opened, err := s.OpenSubscription(t.Context(), reportOpening("a", 1))
		require.NoError(t, err)
		require.Equal(t, &agent.ReportBatch{Number: 1}, opened.Unacked)
	}
	require.Equal(t, 1.0, testutil.ToFloat64(s.metrics.UndecodableRows.WithLabelValues(kindBatches)))
	batch, err := s.DeliverReports(t.Context(), agent.Delivery{
		Subscription: a.ID, Incarnation: a.Incarnation, Stream: id(1), Number: 1, Acked: 1, Limit: 1,
	})
	require.NoError(t, err)
	require.Nil(t, batch)
}
