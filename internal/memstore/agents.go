package memstore

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// maxIDs is how many agents MetadataWithin takes, as store.Store.
const maxIDs = 1000

// UpsertMetadata is as in store.Store: what says nothing new is left out by what
// is read when the transaction begins, as on PostgreSQL.
func (s *Store) UpsertMetadata(ctx context.Context, rows []agent.Metadata) (changed []agent.ID, newer []agent.StoredEpoch, err error) {
	if len(rows) == 0 {
		return nil, nil, nil
	}
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b agent.Metadata) int {
		return cmp.Or(compareIDs(a.Agent, b.Agent), strings.Compare(a.Key, b.Key), b.Order.Compare(a.Order))
	})
	// Of several rows of a key the newest counts.
	rows = slices.CompactFunc(rows, func(a, b agent.Metadata) bool { return a.Agent == b.Agent && a.Key == b.Key })
	for i := range rows {
		if rows[i].CollectedAt, err = stored(rows[i].CollectedAt); err != nil {
			return nil, nil, fmt.Errorf("upsert metadata: %w", err)
		}
	}
	err = s.runEach(ctx, func() (transaction, func()) {
		var fresh []agent.Metadata
		var written []agent.ID
		var lost []agent.StoredEpoch
		return transaction{
			doing: "upsert metadata",
			prepare: func(t *tables) error {
				touch := s.touchLocked()
				for i := range rows {
					if t.saysNew(&rows[i], touch) {
						fresh = append(fresh, rows[i])
					}
				}
				return nil
			},
			apply: func(t *tables, _ int64) error {
				for i := range rows {
					if err := s.check(t, &rows[i]); err != nil {
						return err
					}
				}
				for _, m := range fresh {
					if t.of(m.Agent, m.Incarnation) && t.put(m) {
						written = append(written, m.Agent)
					}
				}
				for i := range rows {
					m := &rows[i]
					if !t.of(m.Agent, m.Incarnation) {
						lost = append(lost, agent.StoredEpoch{Agent: m.Agent, Key: m.Key})
					} else if old := t.metadata[m.Agent][m.Key]; old.Order.Epoch != m.Order.Epoch && !isEarlier(m, &old) {
						stored := old.Order.Epoch
						lost = append(lost, agent.StoredEpoch{Agent: m.Agent, Key: m.Key, Epoch: stored, First: stored < m.Order.Epoch})
					}
				}
				return nil
			},
		}, func() { changed, newer = written, lost }
	})
	if err != nil {
		return nil, nil, err
	}
	return changed, newer, nil
}

// touchLocked is Options.TouchInterval, unless a write may still be under way.
func (s *Store) touchLocked() time.Duration {
	if time.Now().Before(s.rewriteUntil) {
		return 0
	}
	return s.opts.TouchInterval
}

// saysNew reports whether m is to be written.
func (t *tables) saysNew(m *agent.Metadata, touch time.Duration) bool {
	old, known := t.metadata[m.Agent][m.Key]
	switch {
	case !known:
		return true
	case m.Order.Compare(old.Order) <= 0:
		return false
	case touch == 0, m.Order.Epoch != old.Order.Epoch, m.Value != old.Value, m.Error != old.Error:
		return true
	case m.CollectedAt.IsZero():
		return false
	}
	return old.CollectedAt.IsZero() || m.CollectedAt.Sub(old.CollectedAt) >= touch
}

// of reports whether the agent is registered as that incarnation; 0: as any.
func (t *tables) of(id agent.ID, incarnation int64) bool {
	row, known := t.agents[id]
	return known && (incarnation == 0 || row.Incarnation == incarnation)
}

func (s *Store) check(t *tables, m *agent.Metadata) error {
	if _, known := t.agents[m.Agent]; !known {
		return fmt.Errorf("%w: agent %s is unknown", agent.ErrRejected, m.Agent)
	}
	if s.opts.Rejects != nil && s.opts.Rejects(m) {
		return fmt.Errorf("%w: index row size exceeds its maximum", agent.ErrRejected)
	}
	return nil
}

// asStored is an order as it is read back.
func asStored(o agent.Order) agent.Order {
	return agent.Order{Epoch: o.Epoch, Sequence: o.Sequence, Said: o.Said}
}

// isEarlier reports whether m, which is late, was collected before the stored value.
func isEarlier(m, old *agent.Metadata) bool {
	return m.Late && old.Order.Epoch != m.Order.Previous && old.CollectedAt.After(m.CollectedAt)
}

// put writes m if it follows what is stored.
func (t *tables) put(m agent.Metadata) bool {
	keys := t.metadata[m.Agent]
	if old, known := keys[m.Key]; known && (!m.Order.Follows(old.Order) || isEarlier(&m, &old)) {
		return false
	}
	if keys == nil {
		keys = make(map[string]agent.Metadata)
		t.metadata[m.Agent] = keys
	}
	m.Key, m.Value, m.Error = strings.Clone(m.Key), strings.Clone(m.Value), strings.Clone(m.Error)
	m.Incarnation, m.Order, m.Late = 0, asStored(m.Order), false
	keys[m.Key] = m
	return true
}

// MetadataWithin is as in store.Store.
func (s *Store) MetadataWithin(ctx context.Context, ids []agent.ID, limit int) (found []agent.Metadata, left []agent.ID, err error) {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, compareIDs)
	ids = slices.Compact(ids)
	if len(ids) > maxIDs {
		return nil, nil, fmt.Errorf("read metadata: want at most %d agents, got %d", maxIDs, len(ids))
	}
	err = s.run(ctx, transaction{doing: "read metadata", prepare: func(t *tables) error {
		found = nil
		for _, id := range ids {
			for _, key := range slices.Sorted(maps.Keys(t.metadata[id])) {
				found = append(found, t.metadata[id][key])
			}
		}
		return nil
	}})
	if err != nil {
		return nil, nil, err
	}
	size, first := 0, 0
	for i := range found {
		if found[i].Agent != found[first].Agent {
			first = i
		}
		if size += found[i].Bytes(); size > limit && first > 0 {
			n, _ := slices.BinarySearchFunc(ids, found[i].Agent, compareIDs)
			return found[:first], ids[n:], nil
		}
	}
	return found, nil, nil
}

// MetadataKeys is as in store.Store.
func (s *Store) MetadataKeys(ctx context.Context, each func(agent.ID, []string) error) error {
	var keys map[agent.ID][]string
	err := s.run(ctx, transaction{doing: "read metadata keys", prepare: func(t *tables) error {
		keys = make(map[agent.ID][]string)
		for id, rows := range t.metadata {
			if len(t.agents[id].MetadataKeys) == 0 && len(rows) > 0 {
				keys[id] = slices.Sorted(maps.Keys(rows))
			}
		}
		return nil
	}})
	if err != nil {
		return err
	}
	for _, id := range sortedKeys(keys) {
		if err := each(id, keys[id]); err != nil {
			return err
		}
	}
	return nil
}

// pageRows are those of one page.
const pageRows = 100

// inPages calls page with some of a list at a time.
func inPages[T any](list []T, page func([]T) error) error {
	for some := range slices.Chunk(list, pageRows) {
		if err := page(some); err != nil {
			return err
		}
	}
	return nil
}

// EachSession is as in store.Store.
func (s *Store) EachSession(ctx context.Context, page func([]agent.SessionRecord) error) (next int64, err error) {
	records, next, err := s.Sessions(ctx, 0)
	if err != nil {
		return 0, err
	}
	return next, inPages(records, page)
}

// SaveSessions is as in store.Store.
func (s *Store) SaveSessions(ctx context.Context, records []agent.SessionRecord) (before []agent.SessionRecord, err error) {
	if len(records) == 0 {
		return nil, nil
	}
	records = slices.Clone(records)
	slices.SortStableFunc(records, func(a, b agent.SessionRecord) int { return compareIDs(a.Agent, b.Agent) })
	err = s.runEach(ctx, func() (transaction, func()) {
		var found []agent.SessionRecord
		return transaction{
			doing: "save sessions",
			prepare: func(t *tables) error {
				for _, r := range records {
					if n := len(found); t.of(r.Agent, r.Incarnation) && (n == 0 || found[n-1].Agent != r.Agent) {
						old := t.sessions[r.Agent]
						found = append(found, agent.SessionRecord{Agent: r.Agent, Epoch: old.Epoch, Replica: old.Replica})
					}
				}
				return nil
			},
			apply: func(t *tables, number int64) error {
				for _, r := range records {
					if t.of(r.Agent, r.Incarnation) {
						r.Incarnation = 0
						t.putSession(r, number)
					}
				}
				return nil
			},
		}, func() { before = found }
	})
	if err != nil {
		return nil, err
	}
	return before, nil
}

func (t *tables) putSession(r agent.SessionRecord, number int64) {
	old, known := t.sessions[r.Agent]
	if known {
		switch r.Compare(&old.SessionRecord) {
		case -1:
			return
		case 0:
			r.Open, r.Reported, r.Relayed = r.Open && old.Open, r.Reported || old.Reported, r.Relayed || old.Relayed
		}
		if r == old.SessionRecord {
			return
		}
	}
	t.sessions[r.Agent] = sessionRow{r, number}
}

// Sessions is as in store.Store.
func (s *Store) Sessions(ctx context.Context, since int64) (records []agent.SessionRecord, next int64, err error) {
	err = s.run(ctx, transaction{doing: "read sessions", prepare: func(t *tables) error {
		next = s.db.cursorLocked(t)
		records = nil
		from := since
		if from > next {
			from = 0
		}
		for _, id := range sortedKeys(t.sessions) {
			if row := t.sessions[id]; row.number >= from {
				records = append(records, row.SessionRecord)
			}
		}
		return nil
	}})
	if err != nil {
		return nil, 0, err
	}
	return records, next, nil
}

// buildRetention is that of store.Store.
const buildRetention = 30 * 24 * time.Hour

// ObserveBuilds is as in store.Store.
func (s *Store) ObserveBuilds(ctx context.Context, builds []agent.ID, at time.Time) (fresh []agent.ID, err error) {
	if len(builds) == 0 {
		return nil, nil
	}
	builds = slices.Clone(builds)
	slices.SortFunc(builds, compareIDs)
	builds = slices.Compact(builds)
	err = s.runEach(ctx, func() (transaction, func()) {
		var found []agent.ID
		return transaction{doing: "record observed builds", apply: func(t *tables, _ int64) error {
			for _, id := range builds {
				if _, known := t.builds[id]; !known {
					t.builds[id] = at
					found = append(found, id)
				}
			}
			t.forgetBuilds(at)
			return nil
		}}, func() { fresh = found }
	})
	if err != nil {
		return nil, err
	}
	return fresh, nil
}

// forgetBuilds forgets those that are old and of no workspace.
func (t *tables) forgetBuilds(now time.Time) {
	current := make(map[agent.ID]struct{}, len(t.workspaces))
	for _, w := range t.workspaces {
		current[w.Build.ID] = struct{}{}
	}
	for id, observed := range t.builds {
		if _, stays := current[id]; !stays && now.Sub(observed) > buildRetention {
			delete(t.builds, id)
		}
	}
}
