package memstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// reportTables are what subscriptions to reports have gathered.
type reportTables struct {
	lastSubscription int64
	subscriptions    map[int64]subscriptionRow
	writers          map[agent.ID]writerRow
	confirmed        map[confirmation]struct{}
	sums             map[sumKey]agent.ReportSum
	batches          map[batchKey][]agent.ReportSum
}

type subscriptionRow struct {
	agent.Subscription
	number     int64
	nonce      int64
	owner      agent.ID
	ownerUntil time.Time
}

type writerRow struct {
	sequence      int64
	refused, gone int64 // of the write with the sequence
	seenAt        time.Time
}

type confirmation struct {
	subscription int64
	writer       agent.ID
}

type sumKey struct {
	subscription int64
	agent        agent.ID
}

type batchKey struct{ subscription, number int64 }

func newReportTables() reportTables {
	return reportTables{
		subscriptions: make(map[int64]subscriptionRow),
		writers:       make(map[agent.ID]writerRow),
		confirmed:     make(map[confirmation]struct{}),
		sums:          make(map[sumKey]agent.ReportSum),
		batches:       make(map[batchKey][]agent.ReportSum),
	}
}

func (t reportTables) clone() reportTables {
	t.subscriptions = maps.Clone(t.subscriptions)
	t.writers = maps.Clone(t.writers)
	t.confirmed = maps.Clone(t.confirmed)
	t.sums = maps.Clone(t.sums)
	t.batches = maps.Clone(t.batches)
	return t
}

// Backup returns a function that puts back what is stored of reports now. What is
// under way then is lost.
func (d *Database) Backup() (restore func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	saved := d.tables.reports.clone()
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.tables.reports = saved.clone()
		clear(d.active)
	}
}

// ReportSums returns the sums of all subscriptions, and those of their batches.
func (d *Database) ReportSums() (sums []agent.ReportSum) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sums = slices.Collect(maps.Values(d.tables.reports.sums))
	for _, batch := range d.tables.reports.batches {
		sums = append(sums, batch...)
	}
	return sums
}

// RecordReportWriterHeartbeat is as in store.Store.
func (s *Store) RecordReportWriterHeartbeat(ctx context.Context, writer agent.ID) error {
	return s.run(ctx, transaction{doing: "record heartbeat of a report writer", apply: func(t *tables, _ int64) error {
		row := t.reports.writers[writer]
		row.seenAt = time.Now()
		t.reports.writers[writer] = row
		return nil
	}})
}

// RemoveReportWriter is as in store.Store.
func (s *Store) RemoveReportWriter(ctx context.Context, writer agent.ID) error {
	return s.run(ctx, transaction{doing: "remove writer of reports", apply: func(t *tables, _ int64) error {
		if row, known := t.reports.writers[writer]; known {
			row.seenAt = row.seenAt.Add(-writerGone)
			t.reports.writers[writer] = row
		}
		return nil
	}})
}

// AddReports is as in store.Store.
func (s *Store) AddReports(ctx context.Context, w agent.ReportWrite) (written agent.ReportWritten, err error) {
	const doing = "add reports"
	sums := slices.Clone(w.Sums)
	for i := range sums {
		if err := storedSum(&sums[i]); err != nil {
			return agent.ReportWritten{}, fmt.Errorf("%s: %w", doing, err)
		}
	}
	to := slices.Clone(w.To)
	err = s.runEach(ctx, func() (transaction, func()) {
		var result agent.ReportWritten
		return transaction{doing: doing, apply: func(t *tables, _ int64) error {
			row, known := t.reports.writers[w.Writer]
			if known && row.sequence >= w.Sequence {
				result = agent.ReportWritten{Repeated: true}
				if row.sequence == w.Sequence {
					result.Refused, result.Gone = row.refused, row.gone
				}
				return nil
			}
			if !known {
				return fmt.Errorf("%s: %w", w.Writer, agent.ErrUnknownWriter)
			}
			result = agent.ReportWritten{Lost: w.Sequence - 1 - row.sequence}
			for _, target := range to {
				t.reports.add(target, sums, &result)
			}
			row.sequence, row.refused, row.gone = w.Sequence, result.Refused, result.Gone
			t.reports.writers[w.Writer] = row
			return nil
		}}, func() { written = result }
	})
	return written, err
}

func (t *reportTables) add(target agent.ReportTarget, sums []agent.ReportSum, result *agent.ReportWritten) {
	_, known := t.subscriptions[target.Subscription]
	for _, sum := range sums {
		key := sumKey{target.Subscription, sum.Agent}
		old, has := t.sums[key]
		switch {
		case !known:
			result.Gone = agent.SaturatingAdd(result.Gone, sum.Reports)
		case has:
			old.Add(&sum)
			t.sums[key] = old
		case target.Full:
			result.Refused = agent.SaturatingAdd(result.Refused, sum.Reports)
		default:
			t.sums[key] = sum
		}
	}
}

func storedSum(sum *agent.ReportSum) error {
	for _, at := range []*time.Time{&sum.ReceivedAt, &sum.LastUsedAt} {
		var err error
		if *at, err = stored(*at); err != nil {
			return err
		}
	}
	sum.Data = append([]byte(nil), sum.Data...)
	return nil
}

// CountReportSums is as in store.Store.
func (s *Store) CountReportSums(ctx context.Context) (counts map[int64]agent.ReportCount, err error) {
	err = s.run(ctx, transaction{doing: "count sums of reports", prepare: func(t *tables) error {
		counts = make(map[int64]agent.ReportCount)
		for key, sum := range t.reports.sums {
			n := counts[key.subscription]
			counts[key.subscription] = agent.ReportCount{Agents: n.Agents + 1, Bytes: n.Bytes + int64(len(sum.Data))}
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	return counts, nil
}

// HasReportSums is as in store.Store.
func (s *Store) HasReportSums(ctx context.Context, subscription int64) (has bool, err error) {
	counts, err := s.CountReportSums(ctx)
	return counts[subscription].Agents > 0, err
}

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
	switch {
	case row.ID == 0 && len(t.subscriptions) >= o.Max:
		return opened, fmt.Errorf("%w subscriptions: want at most %d", agent.ErrTooMany, o.Max)
	case row.ID == 0:
		t.lastSubscription++
		row.Subscription = agent.Subscription{ID: t.lastSubscription, Name: o.Name, Incarnation: o.Incarnation}
		opened.Created = true
	case o.StandBy && row.owner != (agent.ID{}) && row.owner != o.Stream && row.ownerUntil.After(now):
		opened.Held = true
		return opened, nil
	case o.Position.Incarnation == row.Incarnation:
		upTo := o.Position.Number
		switch {
		case upTo > row.number:
			opened.Restored, row.Incarnation = true, o.Incarnation
		case upTo == row.number && o.Position.Nonce != row.nonce:
			opened.Restored, row.Incarnation, upTo = true, o.Incarnation, 0
		}
		t.ack(row.ID, upTo)
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
	for key := range t.sums {
		if key.subscription == row.ID {
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
		sums = append(sums, sum)
		delete(t.sums, key)
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
			maps.DeleteFunc(t.reports.writers, func(_ agent.ID, w writerRow) bool { return w.seenAt.Before(now.Add(-writersKept)) })
			return nil
		}}, func() { expired = gone }
	})
	return expired, err
}

func (t *reportTables) remove(row subscriptionRow) agent.ExpiredSubscription {
	e := agent.ExpiredSubscription{Name: row.Name}
	delete(t.subscriptions, row.ID)
	maps.DeleteFunc(t.sums, func(k sumKey, _ agent.ReportSum) bool {
		if k.subscription != row.ID {
			return false
		}
		e.Agents++
		return true
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
