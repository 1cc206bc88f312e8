// Package sqlitetest makes SQLite files for tests that start a store often.
package sqlitetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/store"
)

// Create makes a file with the newest schema at path, whose directory exists. It
// copies a file for which the migrations ran once in this process.
func Create(path string) error {
	content, err := migrated()
	if err != nil {
		return fmt.Errorf("migrate a database to copy: %w", err)
	}
	return os.WriteFile(path, content, 0o600)
}

var migrated = sync.OnceValues(func() (content []byte, err error) {
	dir, err := os.MkdirTemp("", "agentstatsd-sqlite-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "migrated.db")
	s, err := store.Open(context.Background(), store.Options{Path: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	// A copy is a deployment of its own.
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return nil, err
	}
	_, err = db.ExecContext(context.Background(), `DELETE FROM agentstatsd_deployment`)
	if err := errors.Join(err, db.Close()); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})
