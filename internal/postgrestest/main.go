package postgrestest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coder/agentstatsd/internal/freeport"
)

// TestingM is a *testing.M, or what stands before one.
type TestingM interface{ Run() int }

// Main returns m with the end of what Start and Shared keep for all tests. Use
// it in TestMain:
//
//	os.Exit(postgrestest.Main(m).Run())
func Main(m TestingM) TestingM {
	inMain.Store(true)
	return testMain{m}
}

type testMain struct{ m TestingM }

// Run runs the tests, then stops what they shared.
func (t testMain) Run() int {
	code := t.m.Run()
	sharedMu.Lock()
	defer sharedMu.Unlock()
	clusterMu.Lock()
	defer clusterMu.Unlock()
	var err error
	if shared != nil {
		err = shared.close()
		shared = nil
	}
	if clusterDir != "" {
		err = errors.Join(err, os.RemoveAll(clusterDir))
		clusterDir = ""
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stop PostgreSQL:", err)
		return max(code, 1)
	}
	return code
}

var (
	inMain atomic.Bool

	sharedMu sync.Mutex
	shared   *Server

	clusterMu  sync.Mutex
	clusterDir string
)

// skipInShort leaves a test out that needs a server, in the short mode of go test:
// `make check` runs without PostgreSQL.
func skipInShort(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("needs PostgreSQL")
	}
}

// Shared returns the server that all tests of this binary share. The first call
// starts it. Nobody may stop it. In the short mode of go test it skips the test.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	skipInShort(tb)
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if shared == nil {
		s, err := start()
		if err != nil {
			tb.Fatalf("start PostgreSQL: %v", err)
		}
		shared = s
	}
	return shared
}

// cluster returns a data directory to be copied: making one takes seconds.
func cluster() (string, error) {
	if !inMain.Load() {
		return "", errors.New("TestMain does not use postgrestest.Main, so nobody would clean up")
	}
	clusterMu.Lock()
	defer clusterMu.Unlock()
	if clusterDir != "" {
		return filepath.Join(clusterDir, "data"), nil
	}
	dir, data, err := newCluster()
	if err != nil {
		return "", err
	}
	clusterDir = dir
	return data, nil
}

// newCluster makes a data directory, data, in a directory of its own.
func newCluster() (dir, data string, err error) {
	if dir, err = newDir(); err != nil {
		return "", "", err
	}
	data = filepath.Join(dir, "data")
	cmd, err := command("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
	if err != nil {
		return "", "", errors.Join(err, os.RemoveAll(dir))
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", "", errors.Join(fmt.Errorf("initdb: %w\n%s", err, out), os.RemoveAll(dir))
	}
	return dir, data, nil
}

// Run starts a server for a program that is no test. stop ends it and removes its files.
func Run(opts ...Option) (s *Server, stop func() error, err error) {
	dir, _, err := newCluster()
	if err != nil {
		return nil, nil, err
	}
	s = &Server{dir: dir, port: freeport.Port()}
	for _, opt := range opts {
		opt(s)
	}
	if err := s.start(); err != nil {
		return nil, nil, errors.Join(err, s.close())
	}
	return s, s.close, nil
}
