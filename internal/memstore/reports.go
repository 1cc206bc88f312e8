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
	sums             map[sumKey]sumRow
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
	sequence         int64
	refused, removed int64 // of the write with the sequence
	found            int64
	seenAt           time.Time
}

type confirmation struct {
	subscription int64
	writer       agent.ID
}

type sumKey struct {
	subscription int64
	agent        agent.ID
}

// sumRow is a sum, and the record of which reports were added to it.
type sumRow struct {
	agent.ReportSum
	pending bool // no batch has the sum
	// newest is of the instance whose reports were added last; before are those of others,
	// the oldest first. They are not changed, but replaced.
	newest writtenRow
	before []writtenRow
}

type writtenRow struct {
	instance agent.Instance
	sequence int64
	at       time.Time
}

// For how long, and of how many instances beside the newest, it is known what was added:
// those of store.Store.
const (
	writtenKept   = 24 * time.Hour
	instancesKept = 64
)

// add adds a report, unless it was added.
func (row *sumRow) add(sum agent.ReportSum) (added bool) {
	w := writtenRow{sum.Instance, sum.Order.Sequence, time.Now()}
	at := slices.IndexFunc(row.before, func(b writtenRow) bool { return b.instance == w.instance })
	switch {
	case w.instance == row.newest.instance:
		if w.sequence <= row.newest.sequence {
			return false
		}
		row.newest = w
	case at >= 0:
		if w.sequence <= row.before[at].sequence {
			return false
		}
		row.before = append(slices.Delete(slices.Clone(row.before), at, at+1), w)
	case w.sequence <= 0:
		return false
	default:
		row.newest.at = w.at
		row.before = append(slices.Clone(row.before), row.newest)
		row.before = row.before[max(0, len(row.before)-instancesKept):]
		row.newest = w
	}
	sum.Instance, sum.Tracker = agent.Instance{}, nil
	if row.pending {
		row.Add(&sum)
	} else {
		row.ReportSum, row.pending = sum, true
	}
	return true
}

type batchKey struct{ subscription, number int64 }

func newReportTables() reportTables {
	return reportTables{
		subscriptions: make(map[int64]subscriptionRow),
		writers:       make(map[agent.ID]writerRow),
		confirmed:     make(map[confirmation]struct{}),
		sums:          make(map[sumKey]sumRow),
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
	for _, row := range d.tables.reports.sums {
		if row.pending {
			sums = append(sums, row.ReportSum)
		}
	}
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
					result.Refused, result.Removed, result.Found = row.refused, row.removed, row.found
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
			row.sequence, row.refused, row.removed, row.found = w.Sequence, result.Refused, result.Removed, result.Found
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
		row, has := t.sums[key]
		switch {
		case !known:
			result.Removed = agent.SaturatingAdd(result.Removed, sum.Reports)
		case target.Full && !row.pending:
			result.Refused = agent.SaturatingAdd(result.Refused, sum.Reports)
		case !has:
			row.newest = writtenRow{instance: sum.Instance, sequence: sum.Order.Sequence - 1}
			fallthrough
		default:
			if !row.add(sum) && has {
				result.Found = agent.SaturatingAdd(result.Found, sum.Reports)
			}
			t.sums[key] = row
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
		for key, row := range t.reports.sums {
			if n := counts[key.subscription]; row.pending {
				counts[key.subscription] = agent.ReportCount{Agents: n.Agents + 1, Bytes: n.Bytes + int64(len(row.Data))}
			}
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
