package memstore

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// RecordHeartbeat is as in store.Store.
func (s *Store) RecordHeartbeat(ctx context.Context, me agent.Replica, takeover int64) (replicas []agent.Replica, lease agent.Lease, err error) {
	err = s.runEach(ctx, func() (transaction, func()) {
		var all []agent.Replica
		var current agent.Lease
		return transaction{doing: "record heartbeat", apply: func(t *tables, _ int64) error {
			t.replicas[me.ID] = agent.Replica{ID: me.ID, Name: me.Name, Heartbeats: t.replicas[me.ID].Heartbeats + 1, Load: me.Load, Config: me.Config, Phase: me.Phase}
			if t.lease.Holder == me.ID || t.lease.Holder == (agent.ID{}) || t.lease.Heartbeats == takeover {
				t.lease.Holder = me.ID
				t.lease.Heartbeats++
			}
			current = t.lease
			for _, id := range sortedKeys(t.replicas) {
				all = append(all, t.replicas[id])
			}
			return nil
		}}, func() { replicas, lease = all, current }
	})
	if err != nil {
		return nil, agent.Lease{}, err
	}
	return replicas, lease, nil
}

// Clock is as in store.Store. It takes no time, and has no faults.
func (s *Store) Clock(ctx context.Context) (time.Time, error) { return time.Now(), ctx.Err() }

// savedStatus is what a replica said, and when.
type savedStatus struct {
	at   time.Time
	text []byte
}

// ExchangeStatus is as in store.Store.
func (s *Store) ExchangeStatus(ctx context.Context, self agent.ID, status []byte, most, mostBytes int) (others []agent.SavedStatus, stored bool, err error) {
	status = bytes.Clone(status)
	err = s.runEach(ctx, func() (transaction, func()) {
		var found []agent.SavedStatus
		var known bool
		return transaction{doing: "exchange status", apply: func(t *tables, _ int64) error {
			now := time.Now()
			if _, known = t.replicas[self]; known {
				t.statuses[self] = savedStatus{now, status}
			}
			found = nil
			for id, s := range t.statuses {
				if id == self {
					continue
				}
				o := agent.SavedStatus{Replica: id, Age: now.Sub(s.at)}
				if len(s.text) <= mostBytes {
					o.Status = bytes.Clone(s.text)
				}
				found = append(found, o)
			}
			slices.SortFunc(found, func(a, b agent.SavedStatus) int {
				return cmp.Or(cmp.Compare(a.Age, b.Age), bytes.Compare(a.Replica[:], b.Replica[:]))
			})
			found = found[:min(len(found), most)]
			return nil
		}}, func() { others, stored = found, known }
	})
	if err != nil {
		return nil, false, err
	}
	return others, stored, nil
}

// Lease is as in store.Store.
func (s *Store) Lease(ctx context.Context) (agent.Lease, error) {
	var lease agent.Lease
	err := s.run(ctx, transaction{doing: "read lease", prepare: func(t *tables) error {
		lease = t.lease
		return nil
	}})
	if err != nil {
		return agent.Lease{}, err
	}
	return lease, nil
}

// SaveIntervalFactor is as in store.Store.
func (s *Store) SaveIntervalFactor(ctx context.Context, holder agent.ID, factor float64) error {
	return s.run(ctx, transaction{doing: "save interval factor", apply: func(t *tables, _ int64) error {
		if t.lease.Holder != holder {
			return fmt.Errorf("replica %s has not the lease: %w", holder, agent.ErrOutdated)
		}
		t.lease.IntervalFactor = factor
		return nil
	}})
}

// NoteGone is as in store.Store.
func (s *Store) NoteGone(ctx context.Context, replicas []agent.Replica) error {
	replicas = slices.Clone(replicas)
	return s.run(ctx, transaction{doing: "note gone replicas", apply: func(t *tables, _ int64) error {
		for _, r := range replicas {
			if known, ok := t.replicas[r.ID]; ok && known.Heartbeats == r.Heartbeats {
				known.Phase = agent.ReplicaGone
				t.replicas[r.ID] = known
			}
		}
		return nil
	}})
}

// RemoveReplicas is as in store.Store.
func (s *Store) RemoveReplicas(ctx context.Context, ids []agent.ID) error {
	if len(ids) == 0 {
		return nil
	}
	ids = slices.Clone(ids)
	return s.run(ctx, transaction{doing: "remove replicas", apply: func(t *tables, _ int64) error {
		for _, id := range ids {
			delete(t.replicas, id)
			delete(t.statuses, id)
			if t.lease.Holder == id {
				t.lease.Holder = agent.ID{}
			}
		}
		return nil
	}})
}

// SavePush is as in store.Store.
func (s *Store) SavePush(ctx context.Context, row agent.PushRow) error {
	return s.writePushes(ctx, "save push", []agent.PushRow{row}, nil)
}

// FoldPushes is as in store.Store.
func (s *Store) FoldPushes(ctx context.Context, rows, removed []agent.PushRow) error {
	return s.writePushes(ctx, "fold pushes", rows, removed)
}

func (s *Store) writePushes(ctx context.Context, doing string, rows, removed []agent.PushRow) error {
	rows, removed = slices.Clone(rows), slices.Clone(removed)
	for i := range rows {
		var err error
		if rows[i].UpdatedAt, err = stored(rows[i].UpdatedAt); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		rows[i].Data = append([]byte(nil), rows[i].Data...)
	}
	return s.run(ctx, transaction{doing: doing, apply: func(t *tables, _ int64) error {
		for _, list := range [][]agent.PushRow{rows, removed} {
			for _, row := range list {
				if t.pushes[row.Instance].Version != row.Version {
					return fmt.Errorf("instance %x: %w", row.Instance, agent.ErrOutdated)
				}
			}
		}
		for _, row := range removed {
			delete(t.pushes, row.Instance)
		}
		for _, row := range rows {
			row.Version++
			t.pushes[row.Instance] = row
		}
		return nil
	}})
}

// Pushes is as in store.Store.
func (s *Store) Pushes(ctx context.Context, instances []agent.Instance) ([]agent.PushRow, error) {
	var found []agent.PushRow
	err := s.run(ctx, transaction{doing: "read pushes", prepare: func(t *tables) error {
		found = nil
		for _, id := range slices.SortedFunc(maps.Keys(t.pushes), compareInstances) {
			if instances == nil || slices.Contains(instances, id) {
				found = append(found, t.pushes[id])
			}
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func compareInstances(a, b agent.Instance) int { return bytes.Compare(a[:], b[:]) }

// PushVersions is as in store.Store.
func (s *Store) PushVersions(ctx context.Context) (map[agent.Instance]int64, error) {
	var versions map[agent.Instance]int64
	err := s.run(ctx, transaction{doing: "read versions of pushes", prepare: func(t *tables) error {
		versions = make(map[agent.Instance]int64, len(t.pushes))
		for id, row := range t.pushes {
			versions[id] = row.Version
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	return versions, nil
}
