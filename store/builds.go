package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// buildRetention is how long it is remembered that a build was observed after
// its workspace has another: a registration that comes late may bring it back.
const buildRetention = 30 * 24 * time.Hour

// ObserveBuilds records that builds are observed at a time, in one transaction,
// and returns those of them that were not before: of all callers, on any
// replica, one is told at most. It is told none if the answer of the database
// was lost. Records that are older than 30 days and of no workspace's build go.
func (s *Store) ObserveBuilds(ctx context.Context, builds []agent.ID, at time.Time) (fresh []agent.ID, err error) {
	if len(builds) == 0 {
		return nil, nil
	}
	observed, err := nanos(at)
	if err != nil {
		return nil, err
	}
	rows := s.idRows(inOrderIDs(builds), observed)
	err = s.change(ctx, "record observed builds", func(tx *sql.Tx) (err error) {
		fresh, err = s.dialect.execIDs(ctx, tx, s.dialect.queries.insertBuild, rows)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `
DELETE FROM builds_observed
WHERE observed_at < $1 AND build_id NOT IN (SELECT build_id FROM workspaces)`, observed.Int64-int64(buildRetention))
		return err
	})
	if err != nil {
		return nil, err
	}
	return fresh, nil
}
