package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// replicas is how many stores share a database in these tests.
const replicas = 4

// withReplicas runs test directly and through a pooler.
func withReplicas(t *testing.T, test func(t *testing.T, stores []*Store)) {
	server := postgrestest.Shared(t)
	t.Run("direct", func(t *testing.T) {
		test(t, openEach(t, replicas, Options{URL: migratedDatabase(t)}))
	})
	t.Run("pooled", func(t *testing.T) {
		url := server.PgBouncer(t, migratedDatabase(t))
		test(t, openEach(t, replicas, Options{URL: url, TransactionPooling: true}))
	})
}

// atOnce calls f for each store at the same time, rounds times.
func atOnce(t *testing.T, stores []*Store, rounds int, f func(round, replica int, s *Store) error) {
	t.Helper()
	for round := range rounds {
		var group errgroup.Group
		for i, s := range stores {
			group.Go(func() error { return f(round, i, s) })
		}
		require.NoError(t, group.Wait())
	}
}

// Of replicas that change registrations on one revision exactly one does.
func TestPostgresOneChangePerRevision(t *testing.T) {
	withReplicas(t, func(t *testing.T, stores []*Store) {
		const rounds = 20
		var winners [rounds]atomic.Int64
		atOnce(t, stores, rounds, func(round, replica int, s *Store) error {
			a := id(byte(round*replicas + replica))
			revision, err := s.ApplyChange(t.Context(), int64(round+1), agent.Change{
				Agents: []agent.Registration{registration(a, id(byte(replica)))},
			})
			if errors.Is(err, agent.ErrOutdated) {
				return nil
			}
			if err == nil && revision != int64(round+2) {
				err = fmt.Errorf("revision %d in round %d", revision, round)
			}
			winners[round].Add(1)
			return err
		})
		for round := range winners {
			require.EqualValues(t, 1, winners[round].Load(), round)
		}
		got := registrations(t, stores[0])
		require.EqualValues(t, rounds+1, got.Revision)
		require.Len(t, got.Agents, rounds)
	})
}

// A reader that follows changes while they are made knows at each moment what
// one read of all would return.
func TestPostgresFollowed(t *testing.T) {
	withReplicas(t, func(t *testing.T, stores []*Store) {
		known := make(map[agent.ID]agent.Registration)
		var revision int64
		follow := func(s *Store) {
			changes, err := s.Registrations(t.Context(), revision)
			require.NoError(t, err)
			require.Equal(t, revision == 0, changes.Complete)
			revision = changes.Revision
			for _, gone := range changes.RemovedAgents {
				delete(known, gone)
			}
			for _, r := range changes.Agents {
				known[r.ID] = r
			}
			for _, w := range changes.Workspaces {
				for k, r := range known {
					if r.Workspace.ID == w.ID {
						r.Workspace = w
						known[k] = r
					}
				}
			}
		}
		follow(stores[0])
		done := make(chan struct{})
		var group errgroup.Group
		for i, s := range stores[1:] {
			group.Go(func() error {
				for n := range 20 {
					basis, err := s.Registrations(t.Context(), 0)
					if err != nil {
						return err
					}
					r := registration(id(byte(n%5)), id(byte(100+n%3)))
					r.Workspace.Name = fmt.Sprint(i, n)
					c := agent.Change{Agents: []agent.Registration{r}}
					switch n % 4 {
					case 1:
						c.RemovedAgents = []agent.ID{id(byte((n + i) % 5))}
					case 2:
						c = agent.Change{RemovedWorkspaces: []agent.ID{id(byte(100 + n%3))}}
					case 3:
						c = agent.Change{Workspaces: []agent.Workspace{r.Workspace}}
					}
					if _, err := s.ApplyChange(t.Context(), basis.Revision, c); err != nil && !errors.Is(err, agent.ErrOutdated) {
						return err
					}
				}
				return nil
			})
		}
		go func() { defer close(done); _ = group.Wait() }()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			follow(stores[0])
		}
		require.NoError(t, group.Wait())
		all := make(map[agent.ID]agent.Registration)
		whole, err := stores[0].Registrations(t.Context(), 0)
		require.NoError(t, err)
		for _, r := range whole.Agents {
			all[r.ID] = r
		}
		require.Equal(t, all, known)
		require.Greater(t, revision, int64(20))
	})
}

// What is read of registrations is of one moment, even if a change comes between
// two statements.
func TestPostgresOneMoment(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	register(t, s, id(1))
	want, err := s.Registrations(t.Context(), 0)
	require.NoError(t, err)

	change := admin(t, url)
	execute(t, change, `BEGIN`)
	execute(t, change, `LOCK TABLE agents IN ACCESS EXCLUSIVE MODE`)
	read := make(chan agent.Registrations, 1)
	go func() {
		r, _ := s.Registrations(t.Context(), 0)
		read <- r
	}()
	waitBlocked(t, admin(t, url), 1) // has the workspaces, waits for the agents
	execute(t, change, `UPDATE registrations SET revision = 3`)
	execute(t, change, `INSERT INTO workspaces SELECT $1, name, owner_id, owner_username, template_id, template_name,
    template_version, organization, build_id, build_created_at, build_transition, build_is_prebuild, 3 FROM workspaces`, id(101).String())
	execute(t, change, `UPDATE agents SET workspace_id = $1, name = 'moved', revision = 3`, id(101).String())
	execute(t, change, `COMMIT`)
	require.Equal(t, want, <-read)
}

// A row that is written late does not replace one that became newer while it
// waited.
func TestPostgresOlderMeanwhile(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	register(t, s, id(1))
	upsert(t, s, []agent.Metadata{row(id(1), "k", "first", 1, 1)})
	other := admin(t, url)
	execute(t, other, `BEGIN`)
	execute(t, other, `UPDATE metadata SET value = 'newest', epoch = 3`)
	type result struct {
		changed []agent.ID
		err     error
	}
	done := make(chan result, 1)
	go func() {
		changed, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{row(id(1), "k", "late", 2, 1)})
		done <- result{changed, err}
	}()
	waitBlocked(t, admin(t, url), 1)
	execute(t, other, `COMMIT`)
	got := <-done
	require.NoError(t, got.err)
	require.Empty(t, got.changed)
	found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, "newest", found[0].Value)
}

// A cursor does not pass what a transaction that began earlier commits later,
// and what a server does not know makes it read all.
func TestPostgresCursor(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	register(t, s, id(1), id(2))
	late := admin(t, url)
	execute(t, late, `BEGIN`)
	execute(t, late, `INSERT INTO sessions VALUES ($1, 1, $2, true, false)`, id(1).String(), id(50).String())
	execute(t, late, `INSERT INTO agent_states VALUES ($1, 'lifecycle', 1, 1, '{}')`, id(1).String())

	second := agent.SessionRecord{Agent: id(2), Epoch: 1, Replica: id(50), Open: true}
	secondState := agent.State{Agent: id(2), NetworkOrder: agent.Order{Epoch: 1}}
	saveSessions(t, s, []agent.SessionRecord{second})
	saveStates(t, s, []agent.State{secondState})
	records, nextSession, err := s.Sessions(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.SessionRecord{second}, records)
	states, nextState, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, states, 1)

	execute(t, late, `COMMIT`)
	first := agent.SessionRecord{Agent: id(1), Epoch: 1, Replica: id(50), Open: true}
	records, nextSession, err = s.Sessions(t.Context(), nextSession)
	require.NoError(t, err)
	require.Contains(t, records, first)
	states, nextState, err = s.States(t.Context(), nextState)
	require.NoError(t, err)
	require.Equal(t, id(1), states[0].Agent)

	// Nothing of it is read again when nothing is new.
	records, nextSession, err = s.Sessions(t.Context(), nextSession)
	require.NoError(t, err)
	require.Empty(t, records)
	states, nextState, err = s.States(t.Context(), nextState)
	require.NoError(t, err)
	require.Empty(t, states)
	// What changes nothing is not written, either.
	saveSessions(t, s, []agent.SessionRecord{first, second})
	saveStates(t, s, []agent.State{secondState})
	records, _, err = s.Sessions(t.Context(), nextSession)
	require.NoError(t, err)
	require.Empty(t, records)

	// Of a server that was further.
	records, _, err = s.Sessions(t.Context(), nextSession+1_000_000)
	require.NoError(t, err)
	require.Equal(t, []agent.SessionRecord{first, second}, records)
	states, _, err = s.States(t.Context(), nextState+1_000_000)
	require.NoError(t, err)
	require.Len(t, states, 2)
}

// Replicas that write at the same time do not fail, whatever isolation a database has
// by default. Nor do those that start at the same time.
func TestPostgresIsolation(t *testing.T) {
	for _, level := range []string{"serializable", "repeatable read"} {
		t.Run(level, func(t *testing.T) {
			url := migratedDatabase(t)
			execute(t, admin(t, url), `ALTER DATABASE `+databaseOf(url)+` SET default_transaction_isolation = '`+level+`'`)
			stores := make([]*Store, 3)
			var group errgroup.Group
			for i := range stores {
				group.Go(func() (err error) {
					stores[i], err = Open(t.Context(), Options{URL: url}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
					return err
				})
			}
			require.NoError(t, group.Wait())
			register(t, stores[0], id(1))
			group = errgroup.Group{}
			for i, s := range stores {
				group.Go(func() error {
					for n := range int64(30) {
						if _, _, err := s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(byte(10 + i))}, -1); err != nil {
							return err
						}
						if _, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{row(id(1), "k", fmt.Sprint(i), n+1, int64(i))}); err != nil {
							return err
						}
					}
					return nil
				})
			}
			require.NoError(t, group.Wait())
			for _, s := range stores {
				require.NoError(t, s.Close())
			}
		})
	}
}

// Of all replicas that see a build end, one observes it.
func TestPostgresBuildsOnce(t *testing.T) {
	withReplicas(t, func(t *testing.T, stores []*Store) {
		var mu sync.Mutex
		observers := make(map[agent.ID]int)
		const rounds, builds = 10, 20
		ids := make([]agent.ID, rounds*builds)
		for i := range ids {
			ids[i] = uuid.New()
		}
		atOnce(t, stores, rounds, func(round, _ int, s *Store) error {
			fresh, err := s.ObserveBuilds(t.Context(), ids[round*builds:(round+1)*builds], time.Unix(1000, 0))
			mu.Lock()
			defer mu.Unlock()
			for _, f := range fresh {
				observers[f]++
			}
			return err
		})
		require.Len(t, observers, len(ids))
		for _, n := range observers {
			require.Equal(t, 1, n)
		}
	})
}

// Of replicas that write the row of an instance as they read it, one does. A row
// that is folded away meanwhile does not come back.
func TestPostgresPushesOnce(t *testing.T) {
	withReplicas(t, func(t *testing.T, stores []*Store) {
		const rounds = 20
		var written, folded atomic.Int64
		atOnce(t, stores, rounds, func(round, replica int, s *Store) error {
			p := push(1, fmt.Sprint(round, replica))
			p.Version = int64(round)
			err := s.SavePush(t.Context(), p)
			if errors.Is(err, agent.ErrOutdated) {
				return nil
			}
			written.Add(1)
			return err
		})
		require.EqualValues(t, rounds, written.Load())

		row := allPushes(t, stores[0])[0]
		atOnce(t, stores, 1, func(_, replica int, s *Store) error {
			var err error
			if replica == 0 {
				err = s.SavePush(t.Context(), row)
			} else {
				totals := agent.PushRow{Data: []byte("totals")}
				err = s.FoldPushes(t.Context(), []agent.PushRow{totals}, []agent.PushRow{row})
			}
			if errors.Is(err, agent.ErrOutdated) {
				return nil
			}
			folded.Add(1)
			return err
		})
		require.EqualValues(t, 1, folded.Load())
		left := allPushes(t, stores[0])
		require.Len(t, left, 1)
		if left[0].Instance == row.Instance {
			require.Equal(t, row.Version+1, left[0].Version)
		}
	})
}

// At each moment one replica has the lease, and of those that take over a lost
// one, one does.
func TestPostgresLeaseOnce(t *testing.T) {
	withReplicas(t, func(t *testing.T, stores []*Store) {
		const rounds = 10
		heartbeats := int64(-1)
		for range rounds {
			var mu sync.Mutex
			holders := make(map[agent.Lease]int)
			atOnce(t, stores, 1, func(_, replica int, s *Store) error {
				me := agent.Replica{ID: id(byte(replica + 1)), Name: fmt.Sprint(replica)}
				_, lease, err := s.RecordHeartbeat(t.Context(), me, heartbeats)
				mu.Lock()
				defer mu.Unlock()
				if lease.Holder == me.ID {
					holders[lease]++
				}
				return err
			})
			require.Len(t, holders, 1)
			for lease := range holders {
				require.Greater(t, lease.Heartbeats, heartbeats)
				heartbeats = lease.Heartbeats
			}
		}
		known, _, err := stores[0].RecordHeartbeat(t.Context(), agent.Replica{ID: id(1)}, -1)
		require.NoError(t, err)
		require.Len(t, known, replicas)
		for _, r := range known[1:] {
			require.EqualValues(t, rounds, r.Heartbeats)
		}
	})
}

// Who notes that a replica is gone does not wait for a transaction that has its row: the
// replica itself may be stuck in one.
func TestPostgresNoteGoneWaitsForNobody(t *testing.T) {
	withReplicas(t, func(t *testing.T, stores []*Store) {
		read := func() []agent.Replica {
			known, _, err := stores[0].RecordHeartbeat(t.Context(), agent.Replica{ID: id(3)}, -1)
			require.NoError(t, err)
			return known
		}
		for n := byte(1); n <= 2; n++ {
			_, _, err := stores[0].RecordHeartbeat(t.Context(), agent.Replica{ID: id(n)}, -1)
			require.NoError(t, err)
		}
		known := read()
		tx, err := stores[1].writer.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		defer func() { _ = tx.Rollback() }()
		_, err = tx.ExecContext(t.Context(), `UPDATE replicas SET name = 'stuck' WHERE id = $1`, stores[1].dialect.id(id(1)))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, stores[0].NoteGone(ctx, known[:2]))
		known = read()
		require.Equal(t, []agent.ReplicaPhase{agent.ReplicaUnknown, agent.ReplicaGone}, []agent.ReplicaPhase{known[0].Phase, known[1].Phase})
		require.NoError(t, tx.Rollback())
		require.NoError(t, stores[0].NoteGone(ctx, known[:1]))
		require.Equal(t, agent.ReplicaGone, read()[0].Phase)
	})
}

// An agent is removed and registered again while a write of it is under way. The write
// waits for the change, writes nothing of the agent that was, and says so.
func TestPostgresLateWriteMeetsItsSuccessor(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	register(t, s, id(1))
	r, err := s.Registrations(t.Context(), 0)
	require.NoError(t, err)
	incarnation := r.Agents[0].Incarnation
	other, watcher := admin(t, url), admin(t, url)
	for name, write := range map[string]func() ([]agent.StoredEpoch, error){
		"metadata": func() ([]agent.StoredEpoch, error) {
			m := row(id(1), "k", "v", 5, 1)
			m.Incarnation = incarnation
			_, lost, err := s.UpsertMetadata(t.Context(), []agent.Metadata{m})
			return lost, err
		},
		"state": func() ([]agent.StoredEpoch, error) {
			return s.SaveStates(t.Context(), []agent.State{{Agent: id(1), Incarnation: incarnation, NetworkOrder: agent.Order{Epoch: 5}}})
		},
	} {
		execute(t, other, `BEGIN`)
		execute(t, other, `CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM agents`)
		execute(t, other, `DELETE FROM agents`)
		execute(t, other, `UPDATE kept SET registered = registered + 1000`)
		execute(t, other, `INSERT INTO agents SELECT * FROM kept`)
		var lost []agent.StoredEpoch
		result := make(chan error, 1)
		go func() {
			var err error
			lost, err = write()
			result <- err
		}()
		waitBlocked(t, watcher, 1)
		execute(t, other, `COMMIT`)
		require.NoError(t, <-result, name)
		require.Len(t, lost, 1, name)
		require.Zero(t, lost[0].Epoch, name)
		require.Zero(t, scalar[int](t, watcher, `SELECT (SELECT count(*) FROM metadata) + (SELECT count(*) FROM agent_states)`), name)
		incarnation += 1000
	}
}

// A session with a lower epoch stores or renews a row while a write is under way whose
// session did not know of it. The write waits for the commit, and loses, although it
// saw nothing of the row when it began.
func TestPostgresFirstCommitStays(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	register(t, s, id(1))
	other, watcher := admin(t, url), admin(t, url)
	order := agent.Order{Epoch: 9, Sequence: 1, Basis: 3}
	for _, table := range []struct {
		name, values string
		write        func() ([]agent.StoredEpoch, error)
	}{
		{"metadata (agent_id, key, value, error, epoch, sequence)", `'k', 'first', ''`, func() ([]agent.StoredEpoch, error) {
			m := row(id(1), "k", "second", 0, 0)
			m.Order = order
			_, lost, err := s.UpsertMetadata(t.Context(), []agent.Metadata{m})
			return lost, err
		}},
		{"agent_states (agent_id, part, data, epoch, sequence)", `'network', '{"node_id": "1"}'`, func() ([]agent.StoredEpoch, error) {
			return s.SaveStates(t.Context(), []agent.State{{Agent: id(1), NetworkOrder: order}})
		}},
	} {
		for _, epoch := range []int64{5, 7} { // there is no row; there is one
			execute(t, other, `BEGIN`)
			name, _, _ := strings.Cut(table.name, " ")
			if epoch == 7 {
				execute(t, watcher, `UPDATE `+name+` SET epoch = 3`) // which it knows
				execute(t, other, `UPDATE `+name+` SET epoch = 7`)
			} else {
				execute(t, other, fmt.Sprintf(`INSERT INTO %s VALUES ('%s', %s, %d, 1)`, table.name, id(1), table.values, epoch))
			}
			var lost []agent.StoredEpoch
			result := make(chan error, 1)
			go func() {
				var err error
				lost, err = table.write()
				result <- err
			}()
			waitBlocked(t, watcher, 1)
			execute(t, other, `COMMIT`)
			require.NoError(t, <-result, name)
			require.Len(t, lost, 1, name)
			require.Equal(t, epoch, lost[0].Epoch, name)
			require.True(t, lost[0].First, name)
			require.Equal(t, epoch, scalar[int64](t, watcher, `SELECT epoch FROM `+name), name)
		}
	}
}
