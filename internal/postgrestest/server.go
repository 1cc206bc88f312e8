// Package postgrestest runs real PostgreSQL servers, and PgBouncers before
// them, for tests. The binaries are those of the machine: `make servers`
// installs them. What is missing fails a test, it never skips it.
package postgrestest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coder/agentstatsd/internal/freeport"
)

// startTimeout bounds the start of a server, also of one that recovers.
const startTimeout = time.Minute

// Option of a Server.
type Option func(*Server)

// Durable makes the server sync each commit, as in production. Without it a
// test is faster, and what is committed survives the server but not the machine.
func Durable() Option {
	return func(s *Server) { s.settings = append(s.settings, "fsync=on", "synchronous_commit=on") }
}

// Setting sets a parameter of the server, like "max_connections".
func Setting(name, value string) Option {
	return func(s *Server) { s.settings = append(s.settings, name+"="+value) }
}

// Server is a PostgreSQL server on 127.0.0.1 with a data directory of its own.
// Everybody may connect, as postgres with all rights. Its methods are not safe
// for concurrent use, but for URL and CreateDatabase.
type Server struct {
	dir      string
	port     int
	settings []string
	running  *process // nil: stopped
	created  atomic.Int64

	mu sync.Mutex
	// admin is a connection to the database postgres, nil: none yet. Each connection is
	// a process of the server, which costs more than most statements.
	admin *pgx.Conn
}

// Start starts a server, which is stopped when the test ends. TestMain must use
// Main.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	skipInShort(tb)
	s, err := start(opts...)
	if err != nil {
		tb.Fatalf("start PostgreSQL: %v", err)
	}
	tb.Cleanup(func() {
		if err := s.close(); err != nil {
			tb.Errorf("stop PostgreSQL: %v", err)
		}
	})
	return s
}

func start(opts ...Option) (*Server, error) {
	template, err := cluster()
	if err != nil {
		return nil, err
	}
	dir, err := newDir()
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, port: freeport.Port()}
	for _, opt := range opts {
		opt(s)
	}
	// cp keeps owners and modes.
	if err := run("cp", "-a", template, s.data()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.start(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// start starts the server on its port and data, and waits until it answers.
func (s *Server) start() error {
	args := []string{
		"-D", s.data(), "-p", strconv.Itoa(s.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=" + s.dir,
		"-c", "fsync=off", "-c", "max_connections=200",
	}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	p, err := startProcess(filepath.Join(s.dir, "log"), "postgres", args...)
	if err != nil {
		return err
	}
	s.running = p
	return p.waitReady(func(ctx context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.closeAdminLocked()
		conn, err := pgx.Connect(ctx, s.URL())
		s.admin = conn
		return err
	})
}

// URL returns that of the database postgres. It is the same after Restart.
func (s *Server) URL() string { return s.url("postgres") }

func (s *Server) url(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", s.port, database)
}

// CreateDatabase makes an empty database that is dropped when the test ends,
// and returns its URL.
func (s *Server) CreateDatabase(tb testing.TB) string {
	tb.Helper()
	return s.createDatabase(tb, "template1")
}

func (s *Server) createDatabase(tb testing.TB, template string) string {
	tb.Helper()
	name := fmt.Sprintf("test_%d", s.created.Add(1))
	// Copying by the write-ahead log, which is the default, takes four times as long
	// where nothing is synced.
	if err := s.exec("CREATE DATABASE " + name + " TEMPLATE " + template + " STRATEGY file_copy"); err != nil {
		tb.Fatalf("create database: %v", err)
	}
	tb.Cleanup(func() {
		// Of no use if the server is gone.
		_ = s.exec("DROP DATABASE " + name + " WITH (FORCE)")
	})
	return s.url(name)
}

// exec runs one statement in the database postgres.
func (s *Server) exec(statement string) error {
	return s.do(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, statement)
		return err
	})
}

// query reads one value in the database postgres.
func (s *Server) query(value any, statement string) error {
	return s.do(func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, statement).Scan(value)
	})
}

// do runs f with the connection to the database postgres, one at a time.
func (s *Server) do(f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	// A server that was stopped, or a test, may have ended the one that there is.
	if s.admin != nil && s.admin.Ping(ctx) != nil {
		s.closeAdminLocked()
	}
	if s.admin == nil {
		conn, err := pgx.Connect(ctx, s.URL())
		if err != nil {
			return err
		}
		s.admin = conn
	}
	return f(ctx, s.admin)
}

func (s *Server) closeAdmin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeAdminLocked()
}

func (s *Server) closeAdminLocked() {
	if s.admin == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	_ = s.admin.Close(ctx) // it may be broken
	s.admin = nil
}

// Stop ends all connections and stops the server, orderly. One that is stopped
// stays so.
func (s *Server) Stop(tb testing.TB) {
	tb.Helper()
	s.end(tb, syscall.SIGINT)
}

// Crash stops the server at once, as a failure of it would: the next start
// recovers what was committed from the write-ahead log.
func (s *Server) Crash(tb testing.TB) {
	tb.Helper()
	s.end(tb, syscall.SIGQUIT)
}

func (s *Server) end(tb testing.TB, signal syscall.Signal) {
	tb.Helper()
	if s.running == nil {
		return
	}
	s.closeAdmin()
	err := s.running.stop(signal)
	s.running = nil
	if err != nil {
		tb.Fatalf("stop PostgreSQL: %v", err)
	}
}

// Restart stops the server, if it runs, and starts it on the same port and data.
func (s *Server) Restart(tb testing.TB) {
	tb.Helper()
	s.Stop(tb)
	if err := s.start(); err != nil {
		tb.Fatalf("start PostgreSQL again: %v", err)
	}
}

// close stops the server and removes its files.
func (s *Server) close() error {
	var err error
	if s.running != nil {
		s.closeAdmin()
		err = s.running.stop(syscall.SIGINT)
		s.running = nil
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// Standby starts a server that follows this one by streaming replication, and can be
// read from. It is stopped when the test ends.
func (s *Server) Standby(tb testing.TB) *Server {
	tb.Helper()
	dir, err := newDir()
	if err != nil {
		tb.Fatalf("start standby: %v", err)
	}
	standby := &Server{dir: dir, port: freeport.Port(), settings: s.settings}
	tb.Cleanup(func() {
		if err := standby.close(); err != nil {
			tb.Errorf("stop standby: %v", err)
		}
	})
	cmd, err := command("pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(s.port), "-U", "postgres",
		"-D", standby.data(), "-R", "-X", "stream", "-c", "fast", "--no-sync")
	if err != nil {
		tb.Fatalf("start standby: %v", err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
	if err := standby.start(); err != nil {
		tb.Fatalf("start standby: %v", err)
	}
	return standby
}

// Promote makes a standby a primary, once it has all that was committed on primary, if
// that runs.
func (s *Server) Promote(tb testing.TB, primary *Server) {
	tb.Helper()
	if primary.running != nil {
		s.catchUp(tb, primary)
	}
	if err := s.exec("SELECT pg_promote(true, 60)"); err != nil {
		tb.Fatalf("promote: %v", err)
	}
}

// Disconnect has a standby follow no more, once it has all that was committed on primary.
func (s *Server) Disconnect(tb testing.TB, primary *Server) {
	tb.Helper()
	s.catchUp(tb, primary)
	for _, statement := range []string{"ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"} {
		if err := s.exec(statement); err != nil {
			tb.Fatalf("disconnect standby: %v", err)
		}
	}
	for connected := true; connected; {
		if err := primary.query(&connected, "SELECT EXISTS (SELECT 1 FROM pg_stat_replication)"); err != nil {
			tb.Fatalf("disconnect standby: %v", err)
		}
	}
}

// catchUp waits until a standby has all that was committed on primary.
func (s *Server) catchUp(tb testing.TB, primary *Server) {
	tb.Helper()
	var at string
	if err := primary.query(&at, "SELECT pg_current_wal_lsn()::text"); err != nil {
		tb.Fatalf("catch up: %v", err)
	}
	for behind := true; behind; {
		if err := s.query(&behind, "SELECT pg_last_wal_replay_lsn() < '"+at+"'::pg_lsn"); err != nil {
			tb.Fatalf("catch up: %v", err)
		}
	}
}

// Demote makes the server read-only for all, connections that stand included, as an old
// primary may be after a failover. None is cut.
func (s *Server) Demote(tb testing.TB) {
	tb.Helper()
	for _, statement := range []string{"ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"} {
		if err := s.exec(statement); err != nil {
			tb.Fatalf("demote: %v", err)
		}
	}
}

// Address returns the host and port.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// PgBouncer starts one in transaction mode before the server, which is stopped
// when the test ends, and returns the URL of a database through it. database is
// a URL of this server. settings are lines of its configuration.
func (s *Server) PgBouncer(tb testing.TB, database string, settings ...string) string {
	tb.Helper()
	parsed, err := url.Parse(database)
	if err != nil {
		tb.Fatalf("URL of a database: %v", err)
	}
	dir, err := newDir()
	if err != nil {
		tb.Fatalf("start PgBouncer: %v", err)
	}
	port := freeport.Port()
	parsed.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	config := fmt.Sprintf(`[databases]
* = host=127.0.0.1 port=%d user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 400
default_pool_size = 20
server_login_retry = 1
%s
`, s.port, port, strings.Join(settings, "\n"))
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		tb.Fatalf("start PgBouncer: %v", err)
	}
	p, err := startProcess(filepath.Join(dir, "log"), "pgbouncer", file)
	if err != nil {
		tb.Fatalf("start PgBouncer: %v", errors.Join(err, os.RemoveAll(dir)))
	}
	tb.Cleanup(func() {
		if err := errors.Join(p.stop(syscall.SIGTERM), os.RemoveAll(dir)); err != nil {
			tb.Errorf("stop PgBouncer: %v", err)
		}
	})
	if err := p.waitReady(func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, parsed.String())
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}); err != nil {
		tb.Fatalf("start PgBouncer: %v", err)
	}
	return parsed.String()
}

// run runs a program to its end.
func run(name string, args ...string) error {
	out, err := exec.CommandContext(context.Background(), name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
