package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// buildRetention is how long it is remembered that a build was observed after
// its workspace has another: a registration that comes late may bring it back.
const buildRetention = 30 * 24 * time.Hour

// ObserveBuilds records that builds are observed at a time, in one transaction,
// and returns those of them that were not before: of all callers one is told.
// Records that are older than 30 days and of no workspace's build go.
func (s *Store) ObserveBuilds(ctx context.Context, builds []agent.ID, at time.Time) (fresh []agent.ID, err error) {
	if len(builds) == 0 {
		return nil, nil
	}
	observed, err := nanos(at)
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, "record observed builds", func(tx *sql.Tx) error {
		fresh, err = s.insertBuilds(ctx, tx, builds, observed)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.dialect.queries.deleteBuilds, observed.Int64-int64(buildRetention))
		return err
	})
	if err != nil {
		return nil, err
	}
	return fresh, nil
}

func (s *Store) insertBuilds(ctx context.Context, tx *sql.Tx, builds []agent.ID, observed sql.NullInt64) (fresh []agent.ID, err error) {
	stmt, err := tx.PrepareContext(ctx, s.dialect.queries.insertBuild)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	for i := range builds {
		result, err := stmt.ExecContext(ctx, builds[i][:], observed)
		if err != nil {
			return nil, err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return nil, err
		}
		if n > 0 {
			fresh = append(fresh, builds[i])
		}
	}
	return fresh, nil
}
