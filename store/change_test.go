package store

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

func sqlstate(code, message string) error {
	return fmt.Errorf("begin: %w", &pgconn.PgError{Severity: "FATAL", Code: code, Message: message})
}

// What is tried again, how often, and what is returned in the end.
func TestAttempt(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for name, c := range map[string]struct {
		errs     []error
		attempts int
		want     error
		not      []error
	}{
		"at once":               {[]error{nil}, 1, nil, nil},
		"cut, then good":        {[]error{io.ErrUnexpectedEOF, nil}, 2, nil, nil},
		"serialization":         {[]error{sqlstate("40001", ""), sqlstate("40P01", ""), nil}, 3, nil, nil},
		"lock timeout":          {[]error{sqlstate("55P03", ""), nil}, 2, nil, nil},
		"cut each time":         {[]error{io.EOF, syscall.ECONNRESET, syscall.EPIPE}, 3, syscall.EPIPE, []error{agent.ErrStoreDown}},
		"refused":               {[]error{refused, refused, refused}, 3, agent.ErrStoreDown, []error{agent.ErrRejected}},
		"stopping":              {[]error{sqlstate("57P01", ""), refused, io.EOF}, 3, agent.ErrStoreDown, nil},
		"starting":              {[]error{sqlstate("57P03", ""), nil}, 2, nil, nil},
		"crashing":              {[]error{sqlstate("57P02", ""), sqlstate("57P02", ""), sqlstate("57P02", "")}, 3, agent.ErrStoreDown, nil},
		"down, then timeout":    {[]error{refused, context.DeadlineExceeded}, 2, context.DeadlineExceeded, []error{agent.ErrStoreDown}},
		"timeout":               {[]error{context.DeadlineExceeded}, 1, context.DeadlineExceeded, []error{agent.ErrStoreDown, agent.ErrRejected}},
		"timeout of a dial":     {[]error{&net.OpError{Op: "dial", Err: context.DeadlineExceeded}}, 1, context.DeadlineExceeded, []error{agent.ErrStoreDown}},
		"reading is not a dial": {[]error{&net.OpError{Op: "read", Err: syscall.ECONNREFUSED}}, 1, syscall.ECONNREFUSED, []error{agent.ErrStoreDown}},
		"statement timeout":     {[]error{sqlstate("57014", "")}, 1, nil, []error{agent.ErrStoreDown, agent.ErrRejected}},
		"too many connections": {[]error{sqlstate("53300", ""), sqlstate("53300", ""), sqlstate("53300", "")},
			3, nil, []error{agent.ErrStoreDown, agent.ErrRejected}},
		"data":       {[]error{sqlstate("22021", "")}, 1, agent.ErrRejected, []error{agent.ErrStoreDown}},
		"constraint": {[]error{sqlstate("23514", "")}, 1, agent.ErrRejected, nil},
		"too long":   {[]error{sqlstate("54000", "")}, 1, agent.ErrRejected, nil},
		"pooler cut": {[]error{sqlstate("08P01", "server conn crashed?"), nil}, 2, nil, nil},
		"pooler waits": {[]error{sqlstate("08P01", "query_wait_timeout"), sqlstate("08P01", "query_wait_timeout"), sqlstate("08P01", "query_wait_timeout")},
			3, nil, []error{agent.ErrStoreDown}},
		"pooler refused": {[]error{io.EOF, io.EOF, sqlstate("08P01", "server login has been failing, try again later (server_login_retry)")},
			3, agent.ErrStoreDown, nil},
		"outdated": {[]error{fmt.Errorf("x: %w", agent.ErrOutdated)}, 1, agent.ErrOutdated, []error{agent.ErrRejected, agent.ErrStoreDown}},
		"orphan":   {[]error{fmt.Errorf("%w: %w", errAgain, sqlstate("23503", "")), nil}, 2, nil, nil},
	} {
		bubble.Test(t, func(t *testing.T) {
			s := &Store{dialect: &postgresDialect}
			start, n := time.Now(), 0
			err := s.attempt(t.Context(), "do it", func() error {
				n++
				return c.errs[n-1]
			})
			require.Equal(t, c.attempts, n, name)
			require.GreaterOrEqual(t, time.Since(start), time.Duration(n-1)*attempts.Min/2, name)
			require.LessOrEqual(t, time.Since(start), time.Duration(n-1)*attempts.Max, name)
			last := c.errs[n-1]
			if last == nil {
				require.NoError(t, err, name)
				return
			}
			require.ErrorContains(t, err, "do it: ", name)
			require.ErrorIs(t, err, last, name)
			if c.want != nil {
				require.ErrorIs(t, err, c.want, name)
			}
			for _, not := range c.not {
				require.NotErrorIs(t, err, not, name)
			}
		})
	}
}

// A context that ends during a pause ends the call, with what is known of the
// database.
func TestAttemptEnded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), attempts.Min/4)
		defer cancel()
		s := &Store{dialect: &postgresDialect}
		start := time.Now()
		err := s.attempt(ctx, "do it", func() error { return sqlstate("57P03", "the database system is starting up") })
		require.ErrorIs(t, err, agent.ErrStoreDown)
		require.Equal(t, attempts.Min/4, time.Since(start))
	})
}

func TestInOrder(t *testing.T) {
	type item struct {
		key, n int
	}
	items := []item{{2, 1}, {1, 1}, {2, 2}, {3, 1}, {1, 2}, {2, 3}}
	given := append([]item(nil), items...)
	byKey := func(a, b item) int { return a.key - b.key }
	require.Equal(t, []item{{1, 2}, {2, 3}, {3, 1}}, inOrder(items, byKey, nil))
	require.Equal(t, []item{{1, 3}, {2, 6}, {3, 1}}, inOrder(items, byKey, func(a, b item) item { return item{a.key, a.n + b.n} }))
	require.Equal(t, given, items, "the caller's")
	require.Empty(t, inOrder(nil, byKey, nil))
}

func TestTranspose(t *testing.T) {
	_, err := transpose([][]any{{"a", 1}})
	require.EqualError(t, err, "argument 2 is a int")
}
