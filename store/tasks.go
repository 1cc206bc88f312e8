package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/tasks"
)

// AcquireTasks grants tasks, whose names are sorted, to a holder, as package tasks says.
func (s *Store) AcquireTasks(ctx context.Context, holder agent.ID, names []string, d time.Duration) (granted []string, err error) {
	err = s.change(ctx, "acquire tasks", func(tx *sql.Tx) error {
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		granted, err = tasks.Acquire(ctx, tx, s.dialect.id(holder), names, now, d)
		return err
	})
	return granted, err
}
