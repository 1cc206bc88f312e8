package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/agent"
)

// UpsertMetadata writes rows in one transaction, and returns how many of them
// were newer than what was stored: a row whose order is not above that of the
// stored value of its key changes nothing. If the database refuses one of the
// rows (its agent is unknown), none is written and the error wraps
// agent.ErrRejected.
func (s *Store) UpsertMetadata(ctx context.Context, rows []agent.Metadata) (changed int, err error) {
	if len(rows) == 0 {
		return 0, nil
	}
	err = s.change(ctx, "upsert metadata", func(tx *sql.Tx) (err error) {
		// The driver starts a goroutine for each statement whose context can
		// end, a third of the cost of a row. The transaction has the write
		// lock, so no statement waits: looking between them is enough.
		stmtCtx := context.WithoutCancel(ctx)
		stmt := tx.StmtContext(stmtCtx, s.upsertMetadata)
		defer func() { err = errors.Join(err, stmt.Close()) }()
		for i := range rows {
			if err := ctx.Err(); err != nil {
				return err
			}
			r := &rows[i]
			collected, err := nanos(r.CollectedAt)
			if err != nil {
				return err
			}
			result, err := stmt.ExecContext(stmtCtx, r.Agent[:], r.Key, r.Value, r.Error, collected, r.Order.Epoch, r.Order.Sequence)
			if err != nil {
				return err
			}
			n, err := result.RowsAffected()
			if err != nil {
				return err
			}
			changed += int(n)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return changed, nil
}

// metadataAgents is how many agents one query names. SQLite takes 32,766
// arguments, but the text is parsed each time.
const metadataAgents = 1000

// Metadata returns the stored values of agents, ordered by agent and key.
// Agents without any, and unknown ones, are left out.
func (s *Store) Metadata(ctx context.Context, ids []agent.ID) ([]agent.Metadata, error) {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
	ids = slices.Compact(ids)
	var found []agent.Metadata
	for part := range slices.Chunk(ids, metadataAgents) {
		args := make([]any, len(part))
		for i := range part {
			args[i] = part[i][:]
		}
		err := query(ctx, s.reader, s.dialect.queries.metadata(len(part)), args, func(rows *sql.Rows) error {
			var m agent.Metadata
			var collected sql.NullInt64
			err := rows.Scan(&m.Agent, &m.Key, &m.Value, &m.Error, &collected, &m.Order.Epoch, &m.Order.Sequence)
			m.CollectedAt = fromNanos(collected)
			found = append(found, m)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read metadata: %w", err)
		}
	}
	return found, nil
}

// MetadataKeys returns the keys that have a stored value, of each agent that
// has any, in order.
func (s *Store) MetadataKeys(ctx context.Context) (map[agent.ID][]string, error) {
	keys := make(map[agent.ID][]string)
	err := query(ctx, s.reader, s.dialect.queries.metadataKeys, nil, func(rows *sql.Rows) error {
		var id agent.ID
		var key string
		err := rows.Scan(&id, &key)
		keys[id] = append(keys[id], key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read metadata keys: %w", err)
	}
	return keys, nil
}
