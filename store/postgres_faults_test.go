package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// waitBlocked waits until n connections to the database wait for a lock.
func waitBlocked(t testing.TB, conn *pgx.Conn, n int) {
	t.Helper()
	for scalar[int](t, conn, `
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) < n {
		require.NoError(t, t.Context().Err())
	}
}

// writer upserts a higher number under one key until it is stopped. What
// was acknowledged last is acked.
type writer struct {
	mu    sync.Mutex
	acked int64
	errs  []error
	// results has a value after each call, unless nobody took the last.
	results chan error
	stop    context.CancelFunc
	done    chan struct{}
}

func startWriter(t testing.TB, s *Store, key string, patience time.Duration) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{results: make(chan error), stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for n := int64(1); ctx.Err() == nil; n++ {
			// Not ctx: the last call is to end by itself.
			bounded, cancel := context.WithTimeout(context.Background(), patience)
			_, _, err := s.UpsertMetadata(bounded, []agent.Metadata{row(id(1), key, fmt.Sprint(n), 1, n)})
			cancel()
			w.mu.Lock()
			if err == nil {
				w.acked = n
			} else {
				w.errs = append(w.errs, err)
			}
			w.mu.Unlock()
			select {
			case w.results <- err:
			default:
			}
		}
	}()
	t.Cleanup(func() { w.end() })
	return w
}

// wait waits for a call that fails, or one that does not.
func (w *writer) wait(fails bool) {
	for (<-w.results != nil) != fails {
		continue
	}
}

func (w *writer) end() (acked int64, errs []error) {
	w.stop()
	<-w.done
	return w.acked, w.errs
}

// A server that stops, crashes and starts again: what was acknowledged is there.
// As long as it is away that is what the errors say; but PgBouncer lets callers
// wait for it until they give up.
func TestPostgresRestarted(t *testing.T) {
	server := postgrestest.Start(t)
	database := server.CreateDatabase(t)
	for name, c := range map[string]struct {
		opts    Options
		patient time.Duration
		away    []error
	}{
		"direct": {Options{URL: database}, 30 * time.Second, []error{agent.ErrStoreDown}},
		"pooled": {
			Options{URL: server.PgBouncer(t, database), TransactionPooling: true},
			time.Second, []error{agent.ErrStoreDown, context.DeadlineExceeded},
		},
	} {
		t.Run(name, func(t *testing.T) {
			requireAway := func(err error) {
				t.Helper()
				require.True(t, slices.ContainsFunc(c.away, func(e error) bool { return errors.Is(err, e) }), "%v", err)
				require.NotErrorIs(t, err, agent.ErrRejected)
			}
			s := openURL(t, c.opts)
			apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}})
			register(t, s, id(1))
			for i, end := range []func(testing.TB){server.Stop, server.Crash} {
				w := startWriter(t, s, fmt.Sprint(i), c.patient)
				w.wait(false)
				end(t)
				w.wait(true)
				bounded, cancel := context.WithTimeout(t.Context(), c.patient)
				_, err := s.Registrations(bounded, 0)
				requireAway(err)
				requireAway(s.Ping(bounded))
				cancel()
				server.Restart(t)
				w.wait(false)
				acked, errs := w.end()
				for _, err := range errs {
					requireAway(err)
				}
				found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
				require.NoError(t, err)
				require.Len(t, found, i+1)
				stored, err := strconv.ParseInt(found[i].Value, 10, 64)
				require.NoError(t, err)
				// The last may be one whose answer was lost.
				require.GreaterOrEqual(t, stored, acked)
			}
		})
	}
}

// A server that is not there is an error of opening, too.
func TestPostgresDown(t *testing.T) {
	server := postgrestest.Start(t)
	server.Stop(t)
	_, err := Open(t.Context(), Options{URL: server.URL()}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, agent.ErrStoreDown)
	_, err = Open(t.Context(), Options{URL: "postgres:///postgres?user=postgres&host=" + t.TempDir()}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, agent.ErrStoreDown, "no socket")

	// Nobody says that it is down.
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	_, err = Open(ctx, Options{URL: server.URL()}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, agent.ErrStoreDown)
}

// Connections that an administrator ends are replaced without an error.
func TestPostgresTerminated(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	register(t, s, id(1))
	conn := admin(t, url)
	terminate := func() int {
		return scalar[int](t, conn, `
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'agentstatsd'`)
	}

	// In the middle of a write.
	execute(t, conn, `BEGIN`)
	execute(t, conn, `LOCK TABLE metadata IN SHARE MODE`)
	blocked := make(chan error, 1)
	go func() {
		_, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{row(id(1), "k", "1", 1, 1)})
		blocked <- err
	}()
	waitBlocked(t, conn, 1)
	require.Equal(t, 1, terminate())
	execute(t, conn, `COMMIT`)
	require.NoError(t, <-blocked)
	found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, []agent.Metadata{row(id(1), "k", "1", 1, 1)}, found)
	require.Greater(t, s.rewriteUntil.Load(), time.Now().UnixNano(), "what became of the first attempt is not known")

	// At any other time, of calls of every kind.
	w := startWriter(t, s, "w", 30*time.Second)
	for i := range 5 {
		w.wait(false)
		require.Positive(t, terminate())
		_, err := s.Registrations(t.Context(), 0)
		require.NoError(t, err)
		_, _, err = s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(1)}, -1)
		require.NoError(t, err)
		_, _, err = s.Sessions(t.Context(), int64(i))
		require.NoError(t, err)
	}
	acked, errs := w.end()
	require.Empty(t, errs)
	found, _, err = s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprint(acked), found[1].Value)
}

// A deadlock, here with somebody else who takes rows in another order, is tried
// again.
func TestPostgresDeadlock(t *testing.T) {
	url := migratedDatabase(t)
	watch, gate, other := admin(t, url), admin(t, url), admin(t, url)
	// We look for it when we are the last to wait, the other does not.
	execute(t, watch, `ALTER DATABASE `+scalar[string](t, watch, `SELECT current_database()`)+` SET deadlock_timeout = '20ms'`)
	execute(t, other, `SET deadlock_timeout = '1min'`)
	s := openURL(t, Options{URL: url})
	register(t, s, id(1))
	rows := []agent.Metadata{row(id(1), "a", "1", 1, 1), row(id(1), "b", "1", 1, 1)}
	upsert(t, s, rows)
	// Between its two rows a write passes a gate.
	execute(t, watch, `CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END'`)
	execute(t, watch, `CREATE TRIGGER gate BEFORE INSERT ON metadata FOR EACH ROW WHEN (NEW.key = 'b') EXECUTE FUNCTION gate()`)
	execute(t, gate, `SELECT pg_advisory_lock(1)`)

	execute(t, other, `BEGIN`)
	execute(t, other, `UPDATE metadata SET error = 'x' WHERE key = 'b'`)
	rows[0].Order.Sequence, rows[1].Order.Sequence = 2, 2
	done := make(chan error, 2)
	go func() {
		_, _, err := s.UpsertMetadata(t.Context(), rows)
		done <- err
	}()
	waitBlocked(t, watch, 1)
	go func() {
		_, err := other.Exec(t.Context(), `UPDATE metadata SET error = 'x' WHERE key = 'a'; COMMIT`)
		done <- err
	}()
	waitBlocked(t, watch, 2)
	execute(t, gate, `SELECT pg_advisory_unlock(1)`)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, rows, found)
	require.NoError(t, s.Close())
	require.Equal(t, 1, deadlocks(t, watch))
}

// deadlocks is how many there were; all others have closed their connections,
// as they report it then at the latest.
func deadlocks(t testing.TB, conn *pgx.Conn) int {
	t.Helper()
	for scalar[int](t, conn, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'agentstatsd'`) > 0 {
		require.NoError(t, t.Context().Err())
	}
	return scalar[int](t, conn, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`)
}

// Replicas that write the same rows, each in another order, lock them in one.
func TestPostgresOppositeOrder(t *testing.T) {
	url := migratedDatabase(t)
	stores := openEach(t, 2, Options{URL: url})
	register(t, stores[0], id(1), id(2))
	var group errgroup.Group
	for i, s := range stores {
		group.Go(func() error {
			for n := range int64(40) {
				var rows []agent.Metadata
				var states []agent.State
				for k := range 200 {
					rows = append(rows, row(id(1), fmt.Sprintf("%03d", k), fmt.Sprint(i, n), n+1, int64(i)))
				}
				for a := range byte(2) {
					states = append(states, agent.State{Agent: id(a + 1), NetworkOrder: agent.Order{Epoch: n + 1, Sequence: int64(i)}})
				}
				if i == 1 {
					slices.Reverse(rows)
					slices.Reverse(states)
				}
				if _, _, err := s.UpsertMetadata(t.Context(), rows); err != nil {
					return err
				}
				if _, err := s.SaveStates(t.Context(), states); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	found, _, err := stores[0].MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Len(t, found, 200)
	for _, m := range found {
		require.Equal(t, "1 39", m.Value)
	}
	for _, s := range stores {
		require.NoError(t, s.Close())
	}
	require.Zero(t, deadlocks(t, admin(t, url)))
}

// A lock that somebody else keeps too long ends a call with an error that is not of the
// data and not of the database. One that is kept shorter than the attempts last does
// not.
func TestPostgresLockTimeout(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url, StatementTimeout: time.Second})
	register(t, s, id(1))
	rows := []agent.Metadata{row(id(1), "k", "1", 1, 1)}
	upsert(t, s, rows)
	conn := admin(t, url)
	execute(t, conn, `BEGIN`)
	execute(t, conn, `UPDATE metadata SET error = 'x'`)
	rows[0].Order.Sequence = 2
	_, _, err := s.UpsertMetadata(t.Context(), rows)
	require.ErrorContains(t, err, "lock timeout")
	require.NotErrorIs(t, err, agent.ErrRejected)
	require.NotErrorIs(t, err, agent.ErrStoreDown)
	require.Zero(t, s.rewriteUntil.Load(), "answered")
	// Those who do not need the lock are served.
	found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, row(id(1), "k", "1", 1, 1), found[0])

	done := make(chan error, 1)
	go func() {
		_, _, err := s.UpsertMetadata(t.Context(), rows)
		done <- err
	}()
	watch := admin(t, url)
	waitBlocked(t, watch, 1)
	execute(t, conn, `COMMIT`)
	require.NoError(t, <-done)
}

// A statement that takes too long is ended by the server, once.
func TestPostgresStatementTimeout(t *testing.T) {
	url := migratedDatabase(t)
	register(t, openURL(t, Options{URL: url}), id(1))
	// What is before the trigger has the timeout, too, and so has each wait between two
	// statements: it must be enough on a busy machine.
	s := openURL(t, Options{URL: url, StatementTimeout: time.Second})
	conn := admin(t, url)
	execute(t, conn, `CREATE SEQUENCE calls`)
	execute(t, conn, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''calls''), pg_sleep(60); RETURN NEW; END'`)
	execute(t, conn, `CREATE TRIGGER slow BEFORE INSERT ON metadata FOR EACH ROW EXECUTE FUNCTION slow()`)
	_, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{row(id(1), "k", "1", 1, 1)})
	require.ErrorContains(t, err, "statement timeout")
	require.NotErrorIs(t, err, agent.ErrRejected)
	require.NotErrorIs(t, err, agent.ErrStoreDown)
	require.EqualValues(t, 1, scalar[int64](t, conn, `SELECT last_value FROM calls`))
}

// A process that stood still in a transaction until the server ended it does it again.
func TestPostgresStoodStill(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url, StatementTimeout: time.Second})
	calls := 0
	err := s.change(t.Context(), "test", func(tx *sql.Tx) error {
		if calls++; calls == 1 {
			if _, err := tx.ExecContext(t.Context(), `SET LOCAL idle_in_transaction_session_timeout = 1`); err != nil {
				return err
			}
			conn := admin(t, url)
			for scalar[int](t, conn, `
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`) > 0 {
				require.NoError(t, t.Context().Err())
			}
		}
		_, err := tx.ExecContext(t.Context(), `SELECT 1`)
		return err
	})
	require.NoError(t, err)
	require.Equal(t, 2, calls)
}

// A call whose commit may still come must not let a later value be taken for
// one that is stored already.
func TestPostgresLateCommit(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url, TouchInterval: time.Hour})
	register(t, s, id(1))
	value := func(v string, sequence int64) []agent.Metadata {
		m := row(id(1), "k", v, 1, sequence)
		m.CollectedAt = time.Unix(1000, 0).UTC()
		return []agent.Metadata{m}
	}
	upsert(t, s, value("a", 1))

	// The other is what is left of the call in the server: it has the row, and
	// has not committed.
	other := admin(t, url)
	execute(t, other, `BEGIN`)
	execute(t, other, `UPDATE metadata SET value = 'b', sequence = 2`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, _, err := s.UpsertMetadata(ctx, value("b", 2))
		done <- err
	}()
	waitBlocked(t, admin(t, url), 1)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)

	go func() {
		_, _, err := s.UpsertMetadata(t.Context(), value("a", 3))
		done <- err
	}()
	select {
	case err := <-done:
		require.NoError(t, err)
		require.Fail(t, "taken for the stored value")
	case <-blocked(t, url):
	}
	execute(t, other, `COMMIT`)
	require.NoError(t, <-done)
	found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, value("a", 3), found)

	// A while later what is the same is left out again.
	s.rewriteUntil.Store(time.Now().Add(-1).UnixNano())
	changed, _, err := s.UpsertMetadata(t.Context(), value("a", 4))
	require.NoError(t, err)
	require.Empty(t, changed)
}

// blocked is closed when a connection to the database waits for a lock.
func blocked(t testing.TB, url string) <-chan struct{} {
	conn := admin(t, url)
	c := make(chan struct{})
	go func() {
		defer close(c)
		var n int
		for n == 0 {
			if err := conn.QueryRow(t.Context(), `
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
				return
			}
		}
	}()
	return c
}

// An agent that is removed while its state is written is skipped like one that
// was removed before.
func TestPostgresRemovedMeanwhile(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	conn := admin(t, url)
	watch := admin(t, url)
	for name, save := range map[string]func() error{
		"states": func() error {
			_, err := s.SaveStates(t.Context(), []agent.State{
				{Agent: id(1), NetworkOrder: agent.Order{Epoch: 1}}, {Agent: id(2), NetworkOrder: agent.Order{Epoch: 1}},
			})
			return err
		},
		"sessions": func() error {
			_, err := s.SaveSessions(t.Context(), []agent.SessionRecord{{Agent: id(1), Epoch: 1}, {Agent: id(2), Epoch: 1}})
			return err
		},
	} {
		register(t, s, id(1), id(2))
		execute(t, conn, `BEGIN`)
		execute(t, conn, `DELETE FROM agents WHERE id = $1`, id(1).String())
		done := make(chan error, 1)
		go func() { done <- save() }()
		waitBlocked(t, watch, 1)
		execute(t, conn, `COMMIT`)
		require.NoError(t, <-done, name)
	}
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, states, 1)
	records, _, err := s.Sessions(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, records, 1)
}
