package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/reportbatch"
)

// subscriptionRow is a subscription as it is stored.
type subscriptionRow struct {
	agent.Subscription
	number     int64
	nonce      int64 // of the batch with the number
	owner      agent.ID
	ownerUntil int64
}

const subscriptionColumns = `SELECT id, name, incarnation, since, number, nonce, owner, owner_until FROM report_subscriptions `

func scanSubscription(rows *sql.Rows) (r subscriptionRow, err error) {
	var since sql.NullInt64
	err = rows.Scan(&r.ID, &r.Name, &r.Incarnation, &since, &r.number, &r.nonce, &r.owner, &r.ownerUntil)
	r.Since = fromNanos(since)
	return r, err
}

// Subscriptions returns all subscriptions, ordered by id.
func (s *Store) Subscriptions(ctx context.Context) ([]agent.Subscription, error) {
	var all []agent.Subscription
	err := s.read(ctx, "read subscriptions", func(q querier) error {
		all = nil
		return query(ctx, q, subscriptionColumns+`ORDER BY id`, nil, func(rows *sql.Rows) error {
			r, err := scanSubscription(rows)
			all = append(all, r.Subscription)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// subscription returns one, locked until the transaction ends; found is false if
// there is none.
func (s *Store) subscription(ctx context.Context, tx *sql.Tx, condition string, arg any) (r subscriptionRow, found bool, err error) {
	err = query(ctx, tx, subscriptionColumns+`WHERE `+condition+s.dialect.forUpdate, []any{arg}, func(rows *sql.Rows) (err error) {
		found = true
		r, err = scanSubscription(rows)
		return err
	})
	return r, found, err
}

// ConfirmSubscriptions records that a replica adds to subscriptions from now on.
// Removed ones are skipped.
func (s *Store) ConfirmSubscriptions(ctx context.Context, writer agent.ID, ids []int64) error {
	return s.change(ctx, "confirm subscriptions", func(tx *sql.Tx) error {
		for _, id := range ids {
			_, err := tx.ExecContext(ctx, `
INSERT INTO report_confirmations (subscription_id, replica_id)
SELECT id, $1 FROM report_subscriptions WHERE id = $2 ON CONFLICT DO NOTHING`, s.dialect.id(writer), id)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// StartSubscription starts a subscription if all replicas have confirmed it: self, and
// those with a heartbeat within that time. With force it starts in any case. since is
// the time from which all reports count, by the database's clock; zero: it has not
// started. The error of a removed subscription wraps agent.ErrSuperseded.
func (s *Store) StartSubscription(ctx context.Context, id int64, self agent.ID, within time.Duration, force bool) (since time.Time, err error) {
	err = s.change(ctx, "start subscription", func(tx *sql.Tx) error {
		since = time.Time{}
		r, found, err := s.subscription(ctx, tx, "id = $1", id)
		switch {
		case err != nil:
			return err
		case !found:
			return fmt.Errorf("subscription %d: %w", id, agent.ErrSuperseded)
		case !r.Since.IsZero():
			since = r.Since
			return nil
		}
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		missing := 0
		err = query(ctx, tx, `
SELECT count(*) FROM report_writers AS w WHERE (w.replica_id = $1 OR w.seen_at > $2) AND NOT EXISTS (
    SELECT 1 FROM report_confirmations AS c WHERE c.subscription_id = $3 AND c.replica_id = w.replica_id)`,
			[]any{s.dialect.id(self), now - int64(within), id}, func(rows *sql.Rows) error { return rows.Scan(&missing) })
		if err != nil || missing > 0 && !force {
			return err
		}
		since = time.Unix(0, now).UTC()
		_, err = tx.ExecContext(ctx, `UPDATE report_subscriptions SET since = $1 WHERE id = $2`, now, id)
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	return since, nil
}

// OpenSubscription makes a stream the owner of a subscription, which it makes if there
// is none. The stream that owned it is superseded. The error of a subscription beyond
// the limit wraps agent.ErrTooMany.
func (s *Store) OpenSubscription(ctx context.Context, o agent.SubscriptionOpening) (opened agent.OpenedSubscription, err error) {
	err = s.change(ctx, "open subscription", func(tx *sql.Tx) error {
		opened = agent.OpenedSubscription{}
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		r, found, err := s.subscription(ctx, tx, "name = $1", o.Name)
		switch {
		case err != nil:
			return err
		case !found:
			opened, err = s.createSubscription(ctx, tx, o, now)
			return err
		case o.StandBy && r.owner != (agent.ID{}) && r.owner != o.Stream && r.ownerUntil > now:
			opened.Owned = true
			return nil
		}
		opened.Number, opened.Nonce = r.number, r.nonce
		upTo := int64(0)
		switch p := o.Position; {
		case p.Number == r.number && p.Nonce == r.nonce, p.Incarnation == r.Incarnation && p.Number < r.number:
			upTo = p.Number
		case p.Incarnation == r.Incarnation:
			// Numbers are assigned again: the watcher may have processed other batches.
			opened.Restored, r.Incarnation = true, o.Incarnation
		}
		opened.Subscription = r.Subscription
		_, err = tx.ExecContext(ctx, `
UPDATE report_subscriptions SET incarnation = $1, owner = $2, owner_until = $3 WHERE id = $4`,
			r.Incarnation, s.dialect.id(o.Stream), now+int64(o.Lease), r.ID)
		if err != nil {
			return err
		}
		if err := deleteBatches(ctx, tx, r.ID, upTo); err != nil {
			return err
		}
		opened.Unacked, err = s.readBatch(ctx, tx, &r)
		return err
	})
	if err != nil {
		return agent.OpenedSubscription{}, err
	}
	return opened, nil
}

func (s *Store) createSubscription(ctx context.Context, tx *sql.Tx, o agent.SubscriptionOpening, now int64) (opened agent.OpenedSubscription, err error) {
	if s.dialect.lockSubscriptions != "" {
		if _, err := tx.ExecContext(ctx, s.dialect.lockSubscriptions); err != nil {
			return opened, err
		}
	}
	n := 0
	err = query(ctx, tx, `SELECT count(*) FROM report_subscriptions`, nil, func(rows *sql.Rows) error { return rows.Scan(&n) })
	if err == nil && n >= o.Max {
		err = fmt.Errorf("%w subscriptions: want at most %d (--max-report-subscriptions)", agent.ErrTooMany, o.Max)
	}
	if err != nil {
		return opened, err
	}
	opened.Subscription, opened.Created = agent.Subscription{Name: o.Name, Incarnation: o.Incarnation}, true
	err = query(ctx, tx, `
INSERT INTO report_subscriptions (name, incarnation, number, owner, owner_until) VALUES ($1, $2, 0, $3, $4)
ON CONFLICT DO NOTHING RETURNING id`, []any{o.Name, o.Incarnation, s.dialect.id(o.Stream), now + int64(o.Lease)}, func(rows *sql.Rows) error {
		return rows.Scan(&opened.ID)
	})
	if err == nil && opened.ID == 0 {
		err = errAgain // another stream made it at the same time
	}
	return opened, err
}

// DeliverReports makes a step of a stream. It returns the next batch; nil if none was
// requested, or there are no sums. The error wraps agent.ErrSuperseded if the stream is
// not the owner any more.
func (s *Store) DeliverReports(ctx context.Context, d agent.Delivery) (batch *agent.ReportBatch, err error) {
	stream := s.dialect.id(d.Stream)
	err = s.change(ctx, "deliver reports", func(tx *sql.Tx) error {
		batch = nil
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		n, err := affected(tx.ExecContext(ctx, `
UPDATE report_subscriptions SET owner_until = $1
WHERE id = $2 AND incarnation = $3 AND owner = $4 AND number = $5 AND nonce = $6`,
			now+int64(d.Lease), d.Subscription, d.Incarnation, stream, d.Number, d.Nonce))
		if err != nil {
			return err
		}
		if n == 0 {
			batch, err = s.deliveredBefore(ctx, tx, d)
			return err
		}
		if err := deleteBatches(ctx, tx, d.Subscription, min(d.Acked, d.Number)); err != nil {
			return err
		}
		if d.Limit == 0 || d.Acked < d.Number {
			return nil
		}
		sums, more, err := s.takeSums(ctx, tx, &d)
		if err != nil || len(sums) == 0 {
			return err
		}
		batch = &agent.ReportBatch{Number: d.Number + 1, Nonce: d.NextNonce, Sums: sums, More: more}
		_, err = tx.ExecContext(ctx, `INSERT INTO report_batches (subscription_id, number, data) VALUES ($1, $2, $3)`,
			d.Subscription, batch.Number, reportbatch.Encode(sums))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE report_subscriptions SET number = $1, nonce = $2 WHERE id = $3`, batch.Number, batch.Nonce, d.Subscription)
		return err
	})
	if err != nil {
		return nil, err
	}
	return batch, nil
}

// deliveredBefore returns the batch of an earlier attempt whose answer was lost.
func (s *Store) deliveredBefore(ctx context.Context, tx *sql.Tx, d agent.Delivery) (*agent.ReportBatch, error) {
	r, found, err := s.subscription(ctx, tx, "id = $1", d.Subscription)
	if err != nil {
		return nil, err
	}
	if !found || r.Incarnation != d.Incarnation || r.owner != d.Stream || r.number != d.Number+1 {
		return nil, fmt.Errorf("subscription %d: %w", d.Subscription, agent.ErrSuperseded)
	}
	return s.readBatch(ctx, tx, &r)
}

func deleteBatches(ctx context.Context, tx *sql.Tx, subscription, upTo int64) error {
	if upTo == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM report_batches WHERE subscription_id = $1 AND number <= $2`, subscription, upTo)
	return err
}

// readBatch returns the newest batch of a subscription; nil if it is acked.
func (s *Store) readBatch(ctx context.Context, tx *sql.Tx, r *subscriptionRow) (batch *agent.ReportBatch, err error) {
	err = query(ctx, tx, `SELECT data FROM report_batches WHERE subscription_id = $1 AND number = $2`, []any{r.ID, r.number}, func(rows *sql.Rows) error {
		var data []byte
		if err := rows.Scan(&data); err != nil {
			return err
		}
		sums, err := reportbatch.Decode(data)
		batch = &agent.ReportBatch{Number: r.number, Nonce: r.nonce, Sums: sums}
		if err != nil {
			// What can be read is delivered, or the watcher could never go on.
			s.undecodable.Report(ctx, kindBatches, fmt.Sprint(r.ID, " ", r.number), err, time.Now())
		}
		return nil
	})
	return batch, err
}

// ReleaseSubscription ends a stream's ownership, so that another stream that stands by
// gets the name.
func (s *Store) ReleaseSubscription(ctx context.Context, id int64, stream agent.ID) error {
	return s.change(ctx, "release subscription", func(tx *sql.Tx) error {
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE report_subscriptions SET owner = $1, owner_until = $2 WHERE id = $3 AND owner = $4`,
			s.dialect.id(agent.ID{}), now, id, s.dialect.id(stream))
		return err
	})
}

// writersKept is how long the row of a replica without heartbeats is kept. Without the
// row a repeated write would be added twice.
const writersKept = 30 * 24 * time.Hour

// RemoveReportWriter makes the last heartbeat older by writerGone, so that no
// subscription waits for the replica.
const writerGone = 24 * time.Hour

// An expired subscription's sums are removed in transactions of orphansPage rows, at
// most orphansPages of them in a call. So other transactions do not wait for long.
const (
	orphansPage  = 5000
	orphansPages = 20
)

// ExpireSubscriptions removes the subscriptions that had no stream for retention, with
// their sums and batches. It also removes what is known of instances without a report for
// as long and for a day, and rows of replicas that are gone. It returns the removed
// subscriptions, also beside an error. A call removes at most 100,000 sums. The next call
// goes on.
func (s *Store) ExpireSubscriptions(ctx context.Context, retention time.Duration) (expired []agent.ExpiredSubscription, err error) {
	err = s.change(ctx, "expire subscriptions", func(tx *sql.Tx) (err error) {
		expired, err = s.expire(ctx, tx, retention)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.removeOrphans(ctx); err != nil {
		return expired, err
	}
	// In a transaction of its own: writers lock their row before the subscriptions.
	return expired, s.change(ctx, "forget writers of reports", func(tx *sql.Tx) error {
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		if err := s.forgetInstances(ctx, tx, now-int64(max(retention, writtenKept))); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM report_writers WHERE seen_at < $1`, now-int64(writersKept))
		return err
	})
}

// expire removes subscriptions and their batches, but not their sums.
func (s *Store) expire(ctx context.Context, tx *sql.Tx, retention time.Duration) (expired []agent.ExpiredSubscription, err error) {
	now, err := s.dialect.clock(ctx, tx)
	if err != nil {
		return nil, err
	}
	var ids []int64
	// A writer that adds to one waits, and then finds that it was removed.
	err = query(ctx, tx, `SELECT id, name FROM report_subscriptions WHERE owner_until < $1 ORDER BY id`+s.dialect.forDelete,
		[]any{now - int64(retention)}, func(rows *sql.Rows) error {
			var id int64
			var e agent.ExpiredSubscription
			err := rows.Scan(&id, &e.Name)
			ids, expired = append(ids, id), append(expired, e)
			return err
		})
	if err != nil {
		return nil, err
	}
	for i, id := range ids {
		err := query(ctx, tx, `SELECT count(*) FROM report_sums WHERE subscription_id = $1 AND pending`, []any{id}, func(rows *sql.Rows) error {
			return rows.Scan(&expired[i].Agents)
		})
		if err != nil {
			return nil, err
		}
		if expired[i].Batches, err = affected(tx.ExecContext(ctx, `DELETE FROM report_batches WHERE subscription_id = $1`, id)); err != nil {
			return nil, err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM report_subscriptions WHERE id = $1`, id); err != nil {
			return nil, err
		}
	}
	return expired, nil
}

// removeOrphans removes sums of removed subscriptions, to which nobody adds.
func (s *Store) removeOrphans(ctx context.Context) error {
	pages := 0
	for last := int64(0); pages < orphansPages; {
		next, gone, err := s.nextWithSums(ctx, last)
		if err != nil || next == 0 {
			return err
		}
		last = next
		for n := int64(orphansPage); gone && n == orphansPage && pages < orphansPages; pages++ {
			err := s.change(ctx, "remove sums of reports", func(tx *sql.Tx) (err error) {
				n, err = affected(tx.ExecContext(ctx, `
DELETE FROM report_sums WHERE subscription_id = $1 AND agent_id IN (
    SELECT agent_id FROM report_sums WHERE subscription_id = $1 ORDER BY agent_id LIMIT $2)`, next, orphansPage))
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// nextWithSums returns the id of the first subscription above last that has sums, and
// whether it was removed; 0: there is none.
func (s *Store) nextWithSums(ctx context.Context, last int64) (id int64, gone bool, err error) {
	err = s.read(ctx, "look for sums of reports", func(q querier) error {
		id, gone = 0, false
		return query(ctx, q, `
SELECT m.id, NOT EXISTS (SELECT 1 FROM report_subscriptions AS r WHERE r.id = m.id)
FROM (SELECT min(subscription_id) AS id FROM report_sums WHERE subscription_id > $1) AS m WHERE m.id IS NOT NULL`,
			[]any{last}, func(rows *sql.Rows) error { return rows.Scan(&id, &gone) })
	})
	return id, gone, err
}
