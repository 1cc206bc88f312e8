package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/agent"
)

// SavePush writes the row of one coderd instance, in place of the one of its Version,
// or as the first if that is 0. It is stored with the next version. If its version is
// not the one that is stored, nothing is written, and the error wraps
// agent.ErrOutdated.
func (s *Store) SavePush(ctx context.Context, row agent.PushRow) error {
	return s.writePushes(ctx, "save push", []agent.PushRow{row}, nil)
}

// FoldPushes writes rows as SavePush does, and deletes those of removed, of which
// Instance and Version count. All is one transaction: nothing is written if one of them
// is outdated. No instance may be in both, or twice.
func (s *Store) FoldPushes(ctx context.Context, rows, removed []agent.PushRow) error {
	return s.writePushes(ctx, "fold pushes", rows, removed)
}

func (s *Store) writePushes(ctx context.Context, doing string, rows, removed []agent.PushRow) error {
	byInstance := func(a, b agent.PushRow) int { return compareIDs(agent.ID(a.Instance), agent.ID(b.Instance)) }
	rows, removed = slices.SortedFunc(slices.Values(rows), byInstance), slices.SortedFunc(slices.Values(removed), byInstance)
	q := &s.dialect.queries
	return s.change(ctx, doing, func(tx *sql.Tx) error {
		gone, err := toRows(removed, func(row *agent.PushRow) ([]any, error) {
			return []any{s.dialect.id(agent.ID(row.Instance)), row.Version}, nil
		})
		if err != nil {
			return err
		}
		var fresh, known [][]any
		for i := range rows {
			args, err := s.pushArgs(&rows[i])
			if err != nil {
				return err
			}
			if rows[i].Version == 0 {
				fresh = append(fresh, args)
			} else {
				known = append(known, args)
			}
		}
		for _, write := range []struct {
			text string
			rows [][]any
		}{{q.deletePush, gone}, {q.insertPush, fresh}, {q.updatePush, known}} {
			written, err := s.dialect.exec(ctx, tx, write.text, write.rows)
			if err != nil {
				return err
			}
			if written != int64(len(write.rows)) {
				return fmt.Errorf("%d of %d rows: %w", int64(len(write.rows))-written, len(write.rows), agent.ErrOutdated)
			}
		}
		return nil
	})
}

func (s *Store) pushArgs(row *agent.PushRow) ([]any, error) {
	updated, err := nanos(row.UpdatedAt)
	if err != nil {
		return nil, fmt.Errorf("push of instance %x: %w", row.Instance, err)
	}
	data := row.Data
	if data == nil {
		data = []byte{} // NULL otherwise
	}
	return []any{s.dialect.id(agent.ID(row.Instance)), row.Replica, updated, data, row.Version + 1}, nil
}

// Pushes returns the rows of coderd instances, in the order of their ids; nil:
// of all. Instances that have none are left out.
func (s *Store) Pushes(ctx context.Context, instances []agent.Instance) ([]agent.PushRow, error) {
	if instances == nil {
		return s.pushes(ctx, "", nil)
	}
	ids := make([]agent.ID, len(instances))
	for i, instance := range instances {
		ids[i] = agent.ID(instance)
	}
	var found []agent.PushRow
	for part := range slices.Chunk(inOrderIDs(ids), idChunk) {
		condition, args := s.dialect.among(part)
		some, err := s.pushes(ctx, `WHERE instance_id `+condition, args)
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	return found, nil
}

func (s *Store) pushes(ctx context.Context, condition string, args []any) ([]agent.PushRow, error) {
	var found []agent.PushRow
	err := s.view(ctx, "read pushes", func(tx *sql.Tx) error {
		found = nil
		text := `SELECT instance_id, replica, updated_at, data, version FROM pushes ` + condition + ` ORDER BY instance_id`
		return s.stream(ctx, tx, pageOfPushes, text, args, func(rows *sql.Rows) error {
			var row agent.PushRow
			var updated sql.NullInt64
			err := rows.Scan((*agent.ID)(&row.Instance), &row.Replica, &updated, &row.Data, &row.Version)
			if err != nil {
				return s.skip(ctx, rows, kindPushes, idKey(agent.ID(row.Instance)), err)
			}
			row.UpdatedAt = fromNanos(updated)
			if len(row.Data) == 0 {
				row.Data = nil // on one database it is, on the other not
			}
			found = append(found, row)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// PushVersions returns the version of each row of a coderd instance: with it
// those that changed are found without reading all.
func (s *Store) PushVersions(ctx context.Context) (map[agent.Instance]int64, error) {
	var versions map[agent.Instance]int64
	err := s.view(ctx, "read versions of pushes", func(tx *sql.Tx) error {
		versions = make(map[agent.Instance]int64)
		return s.stream(ctx, tx, pageOfVersions, `SELECT instance_id, version FROM pushes ORDER BY instance_id`, nil, func(rows *sql.Rows) error {
			var id agent.ID
			var version int64
			if err := rows.Scan(&id, &version); err != nil {
				return s.skip(ctx, rows, kindPushes, idKey(id), err)
			}
			versions[agent.Instance(id)] = version
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return versions, nil
}
