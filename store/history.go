package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// revisionsKept is how many revisions have their token in the database. A replica that
// is further behind reads all registrations.
const revisionsKept = 10_000

// noteRevision gives a revision its token, and if something is removed at it the time.
// The one before it must be the one that was seen: otherwise the database was replaced,
// and the error wraps agent.ErrOutdated.
func (s *Store) noteRevision(ctx context.Context, tx *sql.Tx, revision int64, removes bool) (token int64, err error) {
	var before int64
	err = query(ctx, tx, `SELECT token FROM revisions WHERE revision = $1`, []any{revision - 1}, func(rows *sql.Rows) error {
		return rows.Scan(&before)
	})
	if err != nil {
		return 0, err
	}
	if s.history.Differs(revision-1, before) {
		return 0, fmt.Errorf("revision %d is another one: the database was replaced: %w", revision-1, agent.ErrOutdated)
	}
	var removedAt int64
	if removes {
		if removedAt, err = s.dialect.clock(ctx, tx); err != nil {
			return 0, err
		}
	}
	token = 1 + rand.Int64N(math.MaxInt64)
	_, err = tx.ExecContext(ctx, `INSERT INTO revisions (revision, token, removed_at) VALUES ($1, $2, $3)`, revision, token, removedAt)
	if err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM revisions WHERE revision <= $1`, revision-revisionsKept)
	return token, err
}

// Removals returns what was removed within a time until now, by the clock of the
// database, the newest removal of each. It may have been registered again since. What is
// not remembered any more is left out.
func (s *Store) Removals(ctx context.Context, within time.Duration) ([]agent.Removal, error) {
	var removals []agent.Removal
	err := s.view(ctx, "read removals", func(tx *sql.Tx) error {
		removals = nil
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		return s.stream(ctx, tx, pageOfRemovals, `
SELECT r.kind = 'workspaces', r.id, max(v.removed_at) FROM removed AS r JOIN revisions AS v ON v.revision = r.revision
WHERE v.removed_at >= $1 AND v.removed_at > 0 GROUP BY r.kind, r.id ORDER BY r.kind, r.id`, []any{now - int64(within)}, func(rows *sql.Rows) error {
			var r agent.Removal
			var at int64
			err := rows.Scan(&r.IsWorkspace, &r.ID, &at)
			r.Age = time.Duration(max(0, now-at))
			removals = append(removals, r)
			return err
		})
	})
	return removals, err
}
