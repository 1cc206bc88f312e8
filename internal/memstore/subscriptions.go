package memstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Subscriptions is as in store.Store.
func (s *Store) Subscriptions(ctx context.Context) (all []agent.Subscription, err error) {
	err = s.run(ctx, transaction{doing: "read subscriptions", prepare: func(t *tables) error {
		all = nil
		for _, id := range slices.Sorted(maps.Keys(t.reports.subscriptions)) {
			all = append(all, t.reports.subscriptions[id].Subscription)
		}
		return nil
	}})
	return all, err
}

// ConfirmSubscriptions is as in store.Store.
func (s *Store) ConfirmSubscriptions(ctx context.Context, writer agent.ID, ids []int64) error {
	ids = slices.Clone(ids)
	return s.run(ctx, transaction{doing: "confirm subscriptions", apply: func(t *tables, _ int64) error {
		for _, id := range ids {
			if _, known := t.reports.subscriptions[id]; known {
				t.reports.confirmed[confirmation{id, writer}] = struct{}{}
			}
		}
		return nil
	}})
}

// StartSubscription is as in store.Store.
func (s *Store) StartSubscription(ctx context.Context, id int64, self agent.ID, within time.Duration, force bool) (since time.Time, err error) {
	err = s.runEach(ctx, func() (transaction, func()) {
		var row subscriptionRow
		return transaction{doing: "start subscription", apply: func(t *tables, _ int64) error {
			var found bool
			if row, found = t.reports.subscriptions[id]; !found {
				return fmt.Errorf("subscription %d: %w", id, agent.ErrSuperseded)
			}
			if !row.Since.IsZero() {
				return nil
			}
			now := time.Now()
			for writer, w := range t.reports.writers {
				_, confirmed := t.reports.confirmed[confirmation{id, writer}]
				if (writer == self || w.seenAt.After(now.Add(-within))) && !confirmed && !force {
					return nil
				}
			}
			row.Since, _ = stored(now)
			t.reports.subscriptions[id] = row
			return nil
		}}, func() { since = row.Since }
	})
	return since, err
}

// OpenSubscription is as in store.Store.
func (s *Store) OpenSubscription(ctx context.Context, o agent.SubscriptionOpening) (opened agent.OpenedSubscription, err error) {
	err = s.runEach(ctx, func() (transaction, func()) {
		var result agent.OpenedSubscription
		return transaction{doing: "open subscription", apply: func(t *tables, _ int64) (err error) {
			result, err = t.reports.open(&o, time.Now())
			return err
		}}, func() { opened = result }
	})
	return opened, err
}

func (t *reportTables) open(o *agent.SubscriptionOpening, now time.Time) (opened agent.OpenedSubscription, err error) {
	var row subscriptionRow
	for _, r := range t.subscriptions {
		if r.Name == o.Name {
			row = r
		}
	}
	switch p := o.Position; {
	case row.ID == 0 && len(t.subscriptions) >= o.Max:
		return opened, fmt.Errorf("%w subscriptions: want at most %d", agent.ErrTooMany, o.Max)
	case row.ID == 0:
		t.lastSubscription++
		row.Subscription = agent.Subscription{ID: t.lastSubscription, Name: o.Name, Incarnation: o.Incarnation}
		opened.Created = true
	case o.StandBy && row.owner != (agent.ID{}) && row.owner != o.Stream && row.ownerUntil.After(now):
		opened.Owned = true
		return opened, nil
	case p.Number == row.number && p.Nonce == row.nonce, p.Incarnation == row.Incarnation && p.Number < row.number:
		t.ack(row.ID, p.Number)
	case p.Incarnation == row.Incarnation:
		opened.Restored, row.Incarnation = true, o.Incarnation
	}
	row.owner, row.ownerUntil = o.Stream, now.Add(o.Lease)
	t.subscriptions[row.ID] = row
	opened.Subscription, opened.Number, opened.Nonce = row.Subscription, row.number, row.nonce
	opened.Unacked = t.batch(&row)
	return opened, nil
}

func (t *reportTables) ack(subscription, upTo int64) {
	maps.DeleteFunc(t.batches, func(k batchKey, _ []agent.ReportSum) bool {
		return k.subscription == subscription && k.number <= upTo
	})
}

func (t *reportTables) batch(row *subscriptionRow) *agent.ReportBatch {
	sums, has := t.batches[batchKey{row.ID, row.number}]
	if !has {
		return nil
	}
	return &agent.ReportBatch{Number: row.number, Nonce: row.nonce, Sums: slices.Clone(sums)}
}

// DeliverReports is as in store.Store.
func (s *Store) DeliverReports(ctx context.Context, d agent.Delivery) (batch *agent.ReportBatch, err error) {
	err = s.runEach(ctx, func() (transaction, func()) {
		var result *agent.ReportBatch
		return transaction{doing: "deliver reports", apply: func(t *tables, _ int64) (err error) {
			result, err = t.reports.deliver(&d, time.Now())
			return err
		}}, func() { batch = result }
	})
	return batch, err
}

func (t *reportTables) deliver(d *agent.Delivery, now time.Time) (*agent.ReportBatch, error) {
	row, found := t.subscriptions[d.Subscription]
	current := row.number == d.Number && row.nonce == d.Nonce
	if !found || row.Incarnation != d.Incarnation || row.owner != d.Stream || !current && row.number != d.Number+1 {
		return nil, fmt.Errorf("subscription %d: %w", d.Subscription, agent.ErrSuperseded)
	}
	if !current {
		return t.batch(&row), nil
	}
	row.ownerUntil = now.Add(d.Lease)
	defer func() { t.subscriptions[row.ID] = row }()
	t.ack(row.ID, min(d.Acked, d.Number))
	if d.Limit == 0 || d.Acked < d.Number {
		return nil, nil
	}
	var agents []agent.ID
	for key, sum := range t.sums {
		if key.subscription == row.ID && sum.pending {
			agents = append(agents, key.agent)
		}
	}
	slices.SortFunc(agents, compareIDs)
	var sums []agent.ReportSum
	size := 0
	for _, id := range agents[:min(len(agents), d.Limit)] {
		key := sumKey{row.ID, id}
		sum := t.sums[key]
		if size += len(sum.Data); size > d.Bytes && d.Bytes > 0 && len(sums) > 0 {
			break
		}
		sums = append(sums, sum.ReportSum)
		sum.pending, sum.Data = false, nil
		t.sums[key] = sum
	}
	if len(sums) == 0 {
		return nil, nil
	}
	row.number, row.nonce = row.number+1, d.NextNonce
	t.batches[batchKey{row.ID, row.number}] = sums
	batch := t.batch(&row)
	batch.More = len(sums) < len(agents)
	return batch, nil
}

// ReleaseSubscription is as in store.Store.
func (s *Store) ReleaseSubscription(ctx context.Context, id int64, stream agent.ID) error {
	return s.run(ctx, transaction{doing: "release subscription", apply: func(t *tables, _ int64) error {
		if row, found := t.reports.subscriptions[id]; found && row.owner == stream {
			row.owner, row.ownerUntil = agent.ID{}, time.Now()
			t.reports.subscriptions[id] = row
		}
		return nil
	}})
}

// How long a writer is remembered, and how much older the last heartbeat of one that
// left is made: those of store.Store.
const (
	writersKept = 30 * 24 * time.Hour
	writerGone  = 24 * time.Hour
)

// ExpireSubscriptions is as in store.Store.
func (s *Store) ExpireSubscriptions(ctx context.Context, retention time.Duration) (expired []agent.ExpiredSubscription, err error) {
	err = s.runEach(ctx, func() (transaction, func()) {
		var gone []agent.ExpiredSubscription
		return transaction{doing: "expire subscriptions", apply: func(t *tables, _ int64) error {
			now := time.Now()
			for _, id := range slices.Sorted(maps.Keys(t.reports.subscriptions)) {
				if row := t.reports.subscriptions[id]; row.ownerUntil.Before(now.Add(-retention)) {
					gone = append(gone, t.reports.remove(row))
				}
			}
			t.reports.forget(now.Add(-max(retention, writtenKept)))
			maps.DeleteFunc(t.reports.writers, func(_ agent.ID, w writerRow) bool { return w.seenAt.Before(now.Add(-writersKept)) })
			return nil
		}}, func() { expired = gone }
	})
	return expired, err
}

// forget forgets what was added of whoever has reported nothing since a time.
func (t *reportTables) forget(before time.Time) {
	for key, sum := range t.sums {
		if !sum.pending && sum.ReceivedAt.Before(before) {
			delete(t.sums, key)
			continue
		}
		sum.before = slices.DeleteFunc(slices.Clone(sum.before), func(w writtenRow) bool { return w.at.Before(before) })
		t.sums[key] = sum
	}
}

func (t *reportTables) remove(row subscriptionRow) agent.ExpiredSubscription {
	e := agent.ExpiredSubscription{Name: row.Name}
	delete(t.subscriptions, row.ID)
	maps.DeleteFunc(t.sums, func(k sumKey, sum sumRow) bool {
		if k.subscription == row.ID && sum.pending {
			e.Agents++
		}
		return k.subscription == row.ID
	})
	maps.DeleteFunc(t.batches, func(k batchKey, _ []agent.ReportSum) bool {
		if k.subscription != row.ID {
			return false
		}
		e.Batches++
		return true
	})
	maps.DeleteFunc(t.confirmed, func(c confirmation, _ struct{}) bool { return c.subscription == row.ID })
	return e
}
