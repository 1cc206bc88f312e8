package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// rewriteWindow is how long a commit may still be under way in PostgreSQL after its
// caller gave up. Statements are ended there after 10 s by default. A pooler or a dead
// route may delay them for a while before.
const rewriteWindow = time.Minute

// UpsertMetadata writes rows in one transaction, and returns the agent of each row that
// changed something. Such a row is newer than what is stored under its key, and says
// something else: another epoch, value or error. Or it was collected at least
// Options.TouchInterval later. What is the same again is not written. Of several rows
// of one key the newest counts. If the database refuses one of the rows (its agent is
// unknown), none is written and the error wraps agent.ErrRejected. A row of another
// incarnation of its agent than the registered one is left out. It was said before the
// agent was removed, and comes late. A row of a lower epoch that the session did not
// know of stays, by agent.Order: what was stored first stays. A late row leaves what was
// collected later, as what is the same again does.
//
// newer has the keys of rows that lost, ordered by agent and key. Each has the epoch
// that it lost against: a higher one, or a lower one that was stored first. It is 0 if
// it lost against another incarnation.
//
// Within one epoch rows must come in their order, over all calls. A row that is not
// written because its value is stored already does not leave its order. So an older one
// with another value could follow it. Rows of different epochs, which several replicas
// may write, come in any order, if none has a Basis.
func (s *Store) UpsertMetadata(ctx context.Context, rows []agent.Metadata) (changed []agent.ID, newer []agent.StoredEpoch, err error) {
	if len(rows) == 0 {
		return nil, nil, nil
	}
	rows = inOrder(rows, compareKeys, newerMetadata)
	err = s.attempt(ctx, "upsert metadata", func() error {
		args, err := toRows(rows, s.metadataArgs())
		if err != nil {
			return err
		}
		err = s.transact(ctx, s.writer, nil, func(tx *sql.Tx) (err error) {
			found, err := s.dialect.execIDs(ctx, tx, s.dialect.queries.upsertMetadata, args)
			if err != nil {
				return err
			}
			changed, newer = nil, nil // of an attempt before
			for _, id := range found {
				if id != (agent.ID{}) {
					changed = append(changed, id)
				}
			}
			if len(found) < len(rows) {
				newer, err = s.newerMetadataEpochs(ctx, tx, rows, changed)
			}
			return err
		})
		if err != nil {
			s.doubtMetadata(err)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return changed, newer, nil
}

// newerMetadataEpochs looks for what rows, which are in order, lost against. Some
// that are not written say nothing new.
func (s *Store) newerMetadataEpochs(ctx context.Context, tx *sql.Tx, rows []agent.Metadata, changed []agent.ID) ([]agent.StoredEpoch, error) {
	unwritten := make(map[agent.ID]int)
	for i := range rows {
		unwritten[rows[i].Agent]++
	}
	for _, id := range changed {
		unwritten[id]--
	}
	var of []attempted
	for i := range rows {
		if r := &rows[i]; unwritten[r.Agent] > 0 {
			row := attempted{agent: r.Agent, name: r.Key, epoch: r.Order.Epoch, incarnation: r.Incarnation}
			if r.Late {
				row.lateFrom = r.CollectedAt.UnixNano()
			}
			of = append(of, row)
		}
	}
	return s.newerEpochs(ctx, tx, of, `SELECT a.id, a.registered, m.key, m.epoch, m.collected_at
FROM agents AS a LEFT JOIN metadata AS m ON m.agent_id = a.id WHERE a.id `)
}

// doubtMetadata notes an attempt at writing metadata that failed. On PostgreSQL rows
// that are the same as the stored ones are left out by reading them, without a lock. If
// a commit is still under way then, they are about to be replaced. A value that was
// reported since, and is that of before, would be left out and the older one stay. So
// while that may be, all rows are written; then they wait for the commit.
func (s *Store) doubtMetadata(err error) {
	if !s.dialect.faultOf(err).answered {
		s.rewriteUntil.Store(time.Now().Add(rewriteWindow).UnixNano())
	}
}

// metadataArgs returns what makes a row's arguments now.
func (s *Store) metadataArgs() func(*agent.Metadata) ([]any, error) {
	touch := s.touchInterval
	if time.Now().UnixNano() < s.rewriteUntil.Load() {
		touch = 0
	}
	return func(m *agent.Metadata) ([]any, error) {
		collected, err := nanos(m.CollectedAt)
		if err != nil {
			return nil, err
		}
		basis, previous := knownBefore(m.Order)
		if m.Late {
			basis = -basis
		}
		return []any{
			s.dialect.id(m.Agent), m.Key, m.Value, m.Error, collected, m.Order.Epoch, m.Order.Sequence,
			touchUpTo(collected, touch), m.Incarnation, basis, previous,
		}, nil
	}
}

// touchUpTo is the newest time of a stored value that is replaced by the same
// one that was collected then.
func touchUpTo(collected sql.NullInt64, touch time.Duration) sql.NullInt64 {
	switch {
	case touch == 0:
		return sql.NullInt64{Int64: math.MaxInt64, Valid: true}
	case collected.Int64 < math.MinInt64+int64(touch):
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: collected.Int64 - int64(touch), Valid: collected.Valid}
}

func compareKeys(a, b agent.Metadata) int {
	return cmp.Or(compareIDs(a.Agent, b.Agent), strings.Compare(a.Key, b.Key))
}

func newerMetadata(a, b agent.Metadata) agent.Metadata {
	if b.Order.Compare(a.Order) > 0 {
		return b
	}
	return a
}

// idChunk is how many ids one query names. SQLite takes 32,766 arguments, but
// the text is parsed each time.
const idChunk = 1000

// fewAgents are read by one statement: a transaction with pages takes four more
// round trips. With all the keys that an agent may have it returns some MB.
const fewAgents = 32

// errFull ends a read that has as much as it may have.
var errFull = errors.New("as much is read as may be")

// MetadataWithin returns the stored values of at most 1,000 agents, ordered by agent
// and key. Agents without any, and unknown ones, are left out. It stops before the
// agent with whose values they would take more than limit bytes, unless that is the
// first one that has any. left are the agents that were not read, in order.
func (s *Store) MetadataWithin(ctx context.Context, ids []agent.ID, limit int) (found []agent.Metadata, left []agent.ID, err error) {
	ids = inOrderIDs(ids)
	if len(ids) > idChunk {
		return nil, nil, fmt.Errorf("read metadata: want at most %d agents, got %d", idChunk, len(ids))
	}
	if len(ids) == 0 {
		return nil, nil, nil
	}
	return s.metadataOf(ctx, ids, limit)
}

// metadataOf reads the values of at most idChunk agents, in order, within a limit of
// bytes.
func (s *Store) metadataOf(ctx context.Context, ids []agent.ID, limit int) (found []agent.Metadata, left []agent.ID, err error) {
	const doing = "read metadata"
	condition, args := s.dialect.among(ids)
	text := `
SELECT agent_id, key, value, error, collected_at, epoch, sequence
FROM metadata WHERE agent_id ` + condition + ` ORDER BY agent_id, key`
	size, first := 0, 0 // of found; the index of the first value of the last agent in it
	begin := func() { found, left, size, first = nil, nil, 0, 0 }
	scan := func(rows *sql.Rows) error {
		var m agent.Metadata
		var collected sql.NullInt64
		err := rows.Scan(&m.Agent, &m.Key, &m.Value, &m.Error, &collected, &m.Order.Epoch, &m.Order.Sequence)
		if err != nil {
			return s.skip(ctx, rows, kindMetadata, idKey(m.Agent, m.Key), err)
		}
		if len(found) > 0 && found[first].Agent != m.Agent {
			first = len(found)
		}
		if size += m.Bytes(); size > limit && first > 0 {
			n, _ := slices.BinarySearchFunc(ids, m.Agent, compareIDs)
			found, left = found[:first], ids[n:]
			return errFull
		}
		m.CollectedAt = fromNanos(collected)
		found = append(found, m)
		return nil
	}
	ended := func(err error) error {
		if errors.Is(err, errFull) {
			return nil
		}
		return err
	}
	if len(ids) <= fewAgents {
		err = s.read(ctx, doing, func(q querier) error {
			begin()
			return ended(query(ctx, q, text, args, scan))
		})
	} else {
		err = s.view(ctx, doing, func(tx *sql.Tx) error {
			begin()
			return ended(s.stream(ctx, tx, pageOfMetadata, text, args, scan))
		})
	}
	if err != nil {
		return nil, nil, err
	}
	return found, left, nil
}

// MetadataKeys calls each with the keys that have a stored value, in order, of each agent
// whose registration declares none. Agents come again if the read began again. An error
// of each ends the read.
func (s *Store) MetadataKeys(ctx context.Context, each func(agent.ID, []string) error) error {
	return s.view(ctx, "read metadata keys", func(tx *sql.Tx) error {
		var of agent.ID
		var keys []string
		done := func() error {
			if len(keys) == 0 {
				return nil
			}
			return each(of, keys)
		}
		err := s.stream(ctx, tx, pageOfKeys, `
SELECT m.agent_id, m.key FROM agents AS a JOIN metadata AS m ON m.agent_id = a.id
WHERE a.metadata_keys = '[]' ORDER BY m.agent_id, m.key`, nil, func(rows *sql.Rows) error {
			var id agent.ID
			var key string
			if err := rows.Scan(&id, &key); err != nil {
				return s.skip(ctx, rows, kindMetadata, idKey(id, key), err)
			}
			if id != of {
				if err := done(); err != nil {
					return err
				}
				of, keys = id, nil
			}
			keys = append(keys, key)
			return nil
		})
		if err != nil {
			return err
		}
		return done()
	})
}
