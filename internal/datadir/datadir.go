// Package datadir makes and locks the directory in which a service keeps its files.
package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/coder/agentstatsd/internal/preflight"
	"github.com/coder/agentstatsd/secrets"
)

// Database is the file of the SQLite database in a data directory.
const Database = "agentstatsd.db"

// Files are what the service makes in its data directory, but for coderd's
// token, which can be somewhere else.
var Files = []string{"lock", Database, Database + "-wal", Database + "-shm", Database + "-journal"}

// Lock makes the data directory, mode 0700, and locks it for this process. Two
// services over one SQLite file would each believe to be the only one. The lock ends
// with the process, however that ends, or by unlock. It does not wait: a directory that is
// in use is an error. A directory that others can write, and files in it that others may
// have put there, are refused.
func Lock(dir string) (unlock func(), err error) {
	if dir == "" {
		return nil, errors.New("--data-dir: want a directory, got an empty name")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, preflight.ExplainDir(fmt.Errorf("make data directory: %w", err))
	}
	if err := secrets.CheckDir(dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	for _, name := range Files {
		if err := secrets.CheckOwn(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("data directory: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, preflight.ExplainDir(fmt.Errorf("lock data directory: %w", err))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another process", dir)
		}
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return func() { _ = f.Close() }, nil
}
