// Package tasks has who may do what one process at a time may do.
package tasks

import (
	"context"
	"database/sql"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/coder/agentstatsd/agent"
)

// maxTasks bounds the tasks that are granted at one time.
const maxTasks = 10_000

// Acquire grants to a holder the tasks that nobody else has now, in nanoseconds by the
// database's clock, and returns them in their order. With a duration of 0 the holder loses
// those that it has, and gets none. The names are in an order that all callers keep.
// counted is how many tasks are granted then that begin with the prefix, unless that is
// empty.
func Acquire(ctx context.Context, tx *sql.Tx, holder any, names []string, prefix string, now int64, d time.Duration) (granted []string, counted int, err error) {
	if _, err := tx.ExecContext(ctx, `DELETE FROM tasks WHERE expires_at <= $1`, now); err != nil {
		return nil, 0, err
	}
	if d == 0 {
		for _, name := range names {
			if _, err := tx.ExecContext(ctx, `DELETE FROM tasks WHERE name = $1 AND holder = $2`, name, holder); err != nil {
				return nil, 0, err
			}
		}
		return nil, 0, nil
	}
	for _, name := range names {
		result, err := tx.ExecContext(ctx, `
INSERT INTO tasks (name, holder, expires_at) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at WHERE tasks.holder = excluded.holder`, name, holder, now+int64(d))
		if err != nil {
			return nil, 0, err
		}
		if n, err := result.RowsAffected(); err != nil {
			return nil, 0, err
		} else if n > 0 {
			granted = append(granted, name)
		}
	}
	var count int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM tasks`).Scan(&count); err != nil {
		return nil, 0, err
	}
	if prefix != "" {
		length := utf8.RuneCountInString(prefix)
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM tasks WHERE substr(name, 1, $1) = $2`, length, prefix).Scan(&counted); err != nil {
			return nil, 0, err
		}
	}
	if count > maxTasks {
		return nil, 0, fmt.Errorf("%w: want at most %d at once", agent.ErrTooMany, maxTasks)
	}
	return granted, counted, nil
}
