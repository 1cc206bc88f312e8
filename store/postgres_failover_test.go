package store

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// After a failover in which the old primary lives on, read-only, and cuts nobody, the
// next call finds the new one. So do all connections that the pool had.
func TestPostgresFailover(t *testing.T) {
	for name, params := range map[string]string{
		"asked for":  "&target_session_attrs=read-write",
		"by default": "",
	} {
		t.Run(name, func(t *testing.T) {
			primary := postgrestest.Start(t)
			standby := primary.Standby(t)
			url := fmt.Sprintf("postgres://postgres@%s,%s/postgres?sslmode=disable%s", primary.Address(), standby.Address(), params)
			s := openURL(t, Options{URL: url, MaxConns: 5})
			register(t, s, id(1))
			// Several connections, all to the first.
			done := make(chan error)
			for range 5 {
				go func() {
					_, err := s.reader.ExecContext(t.Context(), `SELECT pg_sleep(0.2)`)
					done <- err
				}()
			}
			for range 5 {
				require.NoError(t, <-done)
			}
			deployment, err := s.Deployment(t.Context())
			require.NoError(t, err)

			standby.Promote(t, primary)
			primary.Demote(t)
			onNew := admin(t, standby.URL())
			// The old one still writes for a moment: its connections learn it one by one.
			for n := int64(1); scalar[int](t, onNew, `SELECT count(*) FROM metadata`) == 0; n++ {
				upsert(t, s, []agent.Metadata{row(id(1), "k", "after", 1, n)})
			}
			// The pool has no connection to the old one any more, or none that is used again.
			for range 20 {
				saveSessions(t, s, []agent.SessionRecord{{Agent: id(1), Epoch: 1}})
				require.False(t, ask[bool](t, s, `SELECT current_setting('transaction_read_only')::boolean`))
			}
			require.Zero(t, scalar[int](t, admin(t, primary.URL()), `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agentstatsd'`))
			again, err := openURL(t, Options{URL: url}).Deployment(t.Context())
			require.NoError(t, err)
			require.Equal(t, deployment, again, "the same deployment, before and after")
		})
	}
}

// A standby that is promoted before it had the last transactions gives their numbers
// again. What it writes under those is read, too, by who had read the lost ones.
func TestPostgresFailoverLosesTransactions(t *testing.T) {
	primary := postgrestest.Start(t)
	standby := primary.Standby(t)
	url := fmt.Sprintf("postgres://postgres@%s,%s/postgres?sslmode=disable", primary.Address(), standby.Address())
	stores := openEach(t, 2, Options{URL: url})
	writer, reader := stores[0], stores[1]
	register(t, writer, id(1), id(2))
	standby.Disconnect(t, primary)
	epoch := int64(0)
	burn := func() {
		for range 20 {
			epoch++
			saveSessions(t, writer, []agent.SessionRecord{{Agent: id(1), Epoch: epoch}})
			saveStates(t, writer, []agent.State{{Agent: id(1), NetworkOrder: agent.Order{Epoch: epoch}}})
		}
	}
	burn()
	_, sessions, err := reader.Sessions(t.Context(), 0)
	require.NoError(t, err)
	_, states, err := reader.States(t.Context(), 0)
	require.NoError(t, err)

	primary.Crash(t)
	standby.Promote(t, primary)
	record := agent.SessionRecord{Agent: id(2), Epoch: 1}
	saveSessions(t, writer, []agent.SessionRecord{record})
	saveStates(t, writer, []agent.State{{Agent: id(2), NetworkOrder: agent.Order{Epoch: 1}}})
	burn()
	burn() // the new server is further than the old one was
	records, sessions, err := reader.Sessions(t.Context(), sessions)
	require.NoError(t, err)
	require.Contains(t, records, record)
	found, states, err := reader.States(t.Context(), states)
	require.NoError(t, err)
	require.Len(t, found, 2)

	records, _, err = reader.Sessions(t.Context(), sessions)
	require.NoError(t, err)
	require.Empty(t, records, "once")
	found, _, err = reader.States(t.Context(), states)
	require.NoError(t, err)
	require.Empty(t, found)
}

// What every answer that means "wrong server" leads to; a server that is read-only for
// everybody does not make anybody the leader's successor.
func TestPostgresWrongServer(t *testing.T) {
	for _, code := range []string{"25006", "57P01", "57P02", "57P03", "57P04", "08006", "08001", "3D000", "3F000", "42P01", "26000"} {
		f := postgresFault(&pgconn.PgError{Code: code, Severity: "ERROR"})
		require.True(t, f.moved && f.transient && !f.rejected, code)
		require.NotEmpty(t, f.reason, code)
	}
	require.False(t, postgresFault(&pgconn.PgError{Code: "25006"}).down)
	for _, code := range []string{"40001", "57014", "23503", "22021", "53100"} {
		require.False(t, postgresFault(&pgconn.PgError{Code: code, Severity: "ERROR"}).moved, code)
	}
	// A server that is gone without a word, or the way to it: all connections lead there.
	for _, number := range []syscall.Errno{
		syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNABORTED, syscall.ECONNRESET, syscall.EPIPE,
	} {
		f := postgresFault(fmt.Errorf("read: %w", &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", number)}))
		require.True(t, f.moved && f.transient && !f.answered && !f.down, number)
		require.Equal(t, reasonCut, f.reason)
	}
	// These end one connection, not what was under way for good.
	for _, code := range []string{"25P03", "25P04", "57P05", "53300"} {
		f := postgresFault(&pgconn.PgError{Code: code, Severity: "FATAL"})
		require.True(t, f.transient && !f.moved && !f.down && !f.rejected && !f.answered, code)
		require.NotEmpty(t, f.reason, code)
	}
}

// Behind one name, too, connections that were made to a read-only server are not kept
// when a new one could write.
func TestPostgresReadOnlyPool(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	register(t, s, id(1))
	conn := admin(t, url)
	execute(t, conn, `ALTER DATABASE `+databaseOf(url)+` SET default_transaction_read_only = on`)
	execute(t, conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	rows := []agent.Metadata{row(id(1), "k", "v", 1, 1)}
	_, _, err := s.UpsertMetadata(t.Context(), rows)
	require.ErrorContains(t, err, "25006")
	require.NotErrorIs(t, err, agent.ErrStoreDown)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, reasonReadOnly, e.Reason())
	execute(t, conn, `SET default_transaction_read_only = off; ALTER DATABASE `+databaseOf(url)+` RESET default_transaction_read_only`)
	for err != nil { // until the pool may be renewed again
		_, _, err = s.UpsertMetadata(t.Context(), rows)
		require.NoError(t, t.Context().Err())
	}
}
