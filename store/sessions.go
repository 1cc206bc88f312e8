package store

import (
	"cmp"
	"context"
	"database/sql"

	"github.com/coder/agentstatsd/agent"
)

// SaveSessions writes records in one transaction, each in place of the one of
// its agent unless that is newer. A record of the same session changes it only
// forward: what is closed is not opened, what has reported stays so. Unknown
// agents are skipped, and those of another incarnation: they were deregistered
// meanwhile.
func (s *Store) SaveSessions(ctx context.Context, records []agent.SessionRecord) error {
	if len(records) == 0 {
		return nil
	}
	records = inOrder(records, func(a, b agent.SessionRecord) int { return compareIDs(a.Agent, b.Agent) }, newerSession)
	rows, err := toRows(records, func(r *agent.SessionRecord) ([]any, error) {
		return []any{s.dialect.id(r.Agent), r.Epoch, s.dialect.id(r.Replica), r.Open, r.Reported, r.Incarnation}, nil
	})
	if err != nil {
		return err
	}
	return s.change(ctx, "save sessions", func(tx *sql.Tx) error {
		return s.skipOrphans(s.dialect.exec(ctx, tx, s.dialect.queries.upsertSession, rows))
	})
}

// newerSession is what is stored of a, then b.
func newerSession(a, b agent.SessionRecord) agent.SessionRecord {
	switch cmp.Or(cmp.Compare(b.Epoch, a.Epoch), compareIDs(b.Replica, a.Replica)) {
	case -1:
		return a
	case 0:
		b.Open = b.Open && a.Open
		b.Reported = b.Reported || a.Reported
	}
	return b
}

// Sessions returns the newest session of each agent that had one, in the order
// of their ids, or, if since is not 0, at least those that were written after
// the call that returned since as next. On SQLite, which one process has, it is
// always all, and next is 0. Agents whose registration cannot be decoded are left
// out.
func (s *Store) Sessions(ctx context.Context, since int64) (records []agent.SessionRecord, next int64, err error) {
	err = s.view(ctx, "read sessions", func(tx *sql.Tx) error {
		records = nil
		next, err = s.readSince(ctx, tx, pageOfSessions, `
SELECT agent_id, epoch, replica_id, open, reported FROM sessions`, since, ` ORDER BY agent_id`, func(rows *sql.Rows) error {
			var r agent.SessionRecord
			err := rows.Scan(&r.Agent, &r.Epoch, &r.Replica, &r.Open, &r.Reported)
			if err != nil {
				return s.skip(ctx, rows, kindSessions, idKey(r.Agent), err)
			}
			if !s.undecodable.agent(r.Agent) {
				records = append(records, r)
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return records, next, nil
}
