package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/tasks"
)

// AcquireTasks grants tasks, whose names are sorted, to a holder, as package tasks says.
func (s *Store) AcquireTasks(ctx context.Context, holder agent.ID, names []string, prefix string, d time.Duration) (granted []string, counted int, err error) {
	err = s.change(ctx, "acquire tasks", func(tx *sql.Tx) error {
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		granted, counted, err = tasks.Acquire(ctx, tx, s.dialect.id(holder), names, prefix, now, d)
		return err
	})
	return granted, counted, err
}
