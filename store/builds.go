package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
)

// buildRetention is how long the observation of a build is remembered after its
// workspace has another one. A registration that comes late may bring it back.
const buildRetention = 30 * 24 * time.Hour

// ObserveBuilds records in one transaction that builds are observed at a time. It
// returns those of them that were not before: at most one caller, on any replica, gets
// each. Nobody gets it if the answer of the database was lost. Records that are older
// than 30 days and of no workspace's build go; each call looks at the next thousand.
func (s *Store) ObserveBuilds(ctx context.Context, builds []agent.ID, at time.Time) (fresh []agent.ID, err error) {
	if len(builds) == 0 {
		return nil, nil
	}
	observed, err := nanos(at)
	if err != nil {
		return nil, err
	}
	rows := s.idRows(inOrderIDs(builds), observed)
	var from, to agent.ID
	if swept := s.buildsSwept.Load(); swept != nil {
		from = *swept
	}
	err = s.change(ctx, "record observed builds", func(tx *sql.Tx) (err error) {
		fresh, err = s.dialect.execIDs(ctx, tx, s.dialect.queries.insertBuild, rows)
		if err != nil {
			return err
		}
		to, err = s.forgetBuilds(ctx, tx, from, observed.Int64-int64(buildRetention))
		return err
	})
	if err != nil {
		return nil, err
	}
	s.buildsSwept.Store(&to)
	return fresh, nil
}

// buildsLookedAt are the records that a call looks at. Without a limit those of all
// workspaces with an old build would be looked at each time.
const buildsLookedAt = 1000

// forgetBuilds deletes records from before a time and of no workspace's build, among
// those that follow from. It returns where the next call begins: the last one that was
// looked at, or zero at the end of the table.
func (s *Store) forgetBuilds(ctx context.Context, tx *sql.Tx, from agent.ID, before int64) (to agent.ID, err error) {
	err = query(ctx, tx, `
SELECT build_id FROM builds_observed WHERE build_id > $1 ORDER BY build_id LIMIT 1 OFFSET $2`,
		[]any{s.dialect.id(from), buildsLookedAt - 1}, func(rows *sql.Rows) error { return rows.Scan(&to) })
	if err != nil {
		return to, err
	}
	last := to
	if last == (agent.ID{}) {
		last = uuid.Max
	}
	_, err = tx.ExecContext(ctx, `
DELETE FROM builds_observed WHERE build_id > $1 AND build_id <= $2 AND observed_at < $3
AND NOT EXISTS (SELECT 1 FROM workspaces WHERE workspaces.build_id = builds_observed.build_id)`,
		s.dialect.id(from), s.dialect.id(last), before)
	return to, err
}
