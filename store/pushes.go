package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/coder/agentstatsd/agent"
)

// SavePush writes the row of one coderd instance, in place of the one before.
func (s *Store) SavePush(ctx context.Context, row agent.PushRow) error {
	return s.change(ctx, "save push", func(tx *sql.Tx) error {
		return execEach(ctx, tx, s.dialect.queries.upsertPush, []agent.PushRow{row}, pushArgs)
	})
}

// FoldPushes writes rows and deletes those of removed instances, in one
// transaction. Instances that have no row are fine.
func (s *Store) FoldPushes(ctx context.Context, rows []agent.PushRow, removed []agent.Instance) error {
	return s.change(ctx, "fold pushes", func(tx *sql.Tx) error {
		err := execEach(ctx, tx, s.dialect.queries.deletePush, removed, func(id *agent.Instance) ([]any, error) {
			return []any{id[:]}, nil
		})
		if err != nil {
			return err
		}
		return execEach(ctx, tx, s.dialect.queries.upsertPush, rows, pushArgs)
	})
}

func pushArgs(row *agent.PushRow) ([]any, error) {
	updated, err := nanos(row.UpdatedAt)
	if err != nil {
		return nil, fmt.Errorf("push of instance %x: %w", row.Instance, err)
	}
	data := row.Data
	if data == nil {
		data = []byte{} // NULL otherwise
	}
	return []any{row.Instance[:], row.Replica, updated, data}, nil
}

// Pushes returns the rows of all coderd instances, in the order of their ids.
func (s *Store) Pushes(ctx context.Context) ([]agent.PushRow, error) {
	var pushes []agent.PushRow
	err := query(ctx, s.reader, s.dialect.queries.pushes, nil, func(rows *sql.Rows) error {
		var row agent.PushRow
		var id []byte
		var updated sql.NullInt64
		if err := rows.Scan(&id, &row.Replica, &updated, &row.Data); err != nil {
			return err
		}
		copy(row.Instance[:], id) // of 16 bytes, as the table demands
		row.UpdatedAt = fromNanos(updated)
		pushes = append(pushes, row)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read pushes: %w", err)
	}
	return pushes, nil
}
