package store

import (
	"cmp"
	"context"
	"database/sql"
	"slices"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/pages"
)

// SaveSessions writes records in one transaction. Each replaces that of its agent
// unless that is newer. A record of the same session changes only forward: a closed
// session stays closed, and reported and relayed stay true. Agents that are unknown or have
// another incarnation are skipped, as they were deregistered meanwhile.
//
// before has the epoch and replica of the other agents' records when the transaction
// began, ordered by agent; 0 if there was none. They are read on the server that takes
// writes.
func (s *Store) SaveSessions(ctx context.Context, records []agent.SessionRecord) (before []agent.SessionRecord, err error) {
	if len(records) == 0 {
		return nil, nil
	}
	records = inOrder(records, func(a, b agent.SessionRecord) int { return compareIDs(a.Agent, b.Agent) }, newerSession)
	rows, err := toRows(records, func(r *agent.SessionRecord) ([]any, error) {
		return []any{s.dialect.id(r.Agent), r.Epoch, s.dialect.id(r.Replica), r.Open, r.Reported, r.Relayed, r.Incarnation}, nil
	})
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, "save sessions", func(tx *sql.Tx) (err error) {
		if before, err = s.sessionsOf(ctx, tx, records); err != nil {
			return err
		}
		return s.skipOrphans(s.dialect.exec(ctx, tx, s.dialect.queries.upsertSession, rows))
	})
	if err != nil {
		return nil, err
	}
	return before, nil
}

// sessionsOf returns the stored sessions of the agents of records, which are ordered by
// agent.
func (s *Store) sessionsOf(ctx context.Context, tx *sql.Tx, records []agent.SessionRecord) (stored []agent.SessionRecord, err error) {
	for part := range slices.Chunk(records, idChunk) {
		ids := make([]agent.ID, len(part))
		for i := range part {
			ids[i] = part[i].Agent
		}
		condition, args := s.dialect.among(ids)
		err := query(ctx, tx, `SELECT a.id, a.registered, s.epoch, s.replica_id
FROM agents AS a LEFT JOIN sessions AS s ON s.agent_id = a.id WHERE a.id `+condition+` ORDER BY a.id`, args, func(rows *sql.Rows) error {
			var r agent.SessionRecord
			var epoch sql.NullInt64
			if err := rows.Scan(&r.Agent, &r.Incarnation, &epoch, &r.Replica); err != nil {
				if err := s.skip(ctx, rows, kindSessions, idKey(r.Agent), err); err != nil || r.Agent == (agent.ID{}) {
					return err
				}
				// No replica can know of that session.
				epoch, r.Replica = sql.NullInt64{}, agent.ID{}
			}
			i, _ := slices.BinarySearchFunc(part, r.Agent, func(p agent.SessionRecord, id agent.ID) int { return compareIDs(p.Agent, id) })
			if is := part[i].Incarnation; is == 0 || is == r.Incarnation {
				stored = append(stored, agent.SessionRecord{Agent: r.Agent, Epoch: epoch.Int64, Replica: r.Replica})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return stored, nil
}

// newerSession returns what is stored after a, then b was written.
func newerSession(a, b agent.SessionRecord) agent.SessionRecord {
	switch cmp.Or(cmp.Compare(b.Epoch, a.Epoch), compareIDs(b.Replica, a.Replica)) {
	case -1:
		return a
	case 0:
		b.Open = b.Open && a.Open
		b.Reported = b.Reported || a.Reported
		b.Relayed = b.Relayed || a.Relayed
	}
	return b
}

// Sessions returns the newest session of each agent that had one, ordered by agent. If
// since is not 0, it returns at least those that were written after the call that
// returned since as next. On SQLite, which one process has, it always returns all, and
// next is 0. Agents whose registration cannot be decoded are left out.
func (s *Store) Sessions(ctx context.Context, since int64) (records []agent.SessionRecord, next int64, err error) {
	err = s.view(ctx, "read sessions", func(tx *sql.Tx) (err error) {
		records = nil
		next, err = s.eachSession(ctx, tx, since, func(page []agent.SessionRecord) error {
			records = append(records, page...)
			return nil
		})
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return records, next, nil
}

// EachSession calls page with some of all sessions at a time, and returns next, as
// Sessions does. Sessions come again if the read began again. A page is valid until page
// returns, whose error ends the read.
func (s *Store) EachSession(ctx context.Context, page func([]agent.SessionRecord) error) (next int64, err error) {
	err = s.view(ctx, "read sessions", func(tx *sql.Tx) (err error) {
		next, err = s.eachSession(ctx, tx, 0, page)
		return err
	})
	if err != nil {
		return 0, err
	}
	return next, nil
}

func (s *Store) eachSession(ctx context.Context, tx *sql.Tx, since int64, page func([]agent.SessionRecord) error) (next int64, err error) {
	err = pages.Each(pageOfSessions.rows, func(add func() *agent.SessionRecord) (err error) {
		next, err = s.readSince(ctx, tx, pageOfSessions, `
SELECT agent_id, epoch, replica_id, open, reported, relayed FROM sessions`, since, ` ORDER BY agent_id`, func(rows *sql.Rows) error {
			var r agent.SessionRecord
			err := rows.Scan(&r.Agent, &r.Epoch, &r.Replica, &r.Open, &r.Reported, &r.Relayed)
			if err != nil || s.undecodable.Agent(r.Agent) {
				return s.skip(ctx, rows, kindSessions, idKey(r.Agent), err)
			}
			record := add()
			if record == nil {
				return pages.ErrStopped
			}
			*record = r
			return nil
		})
		return err
	}, page)
	return next, err
}
