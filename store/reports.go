package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/reportbatch"
)

// What agents report, added up per subscription. Rows are locked in one order by
// every transaction: the writer's, the subscriptions', then sums by subscription
// and agent.

// addedCounts are the columns of a sum that add up.
var addedCounts = []string{"reports", "rx_packets", "rx_bytes", "tx_packets", "tx_bytes"}

// newestColumns are those that the newest report has.
var newestColumns = []string{"workspace_id", "epoch", "sequence", "received_at", "data"}

// upsertSum adds the rows to the sums.
func upsertSum(rows rowsAs) string {
	text := `
INSERT INTO report_sums (agent_id, subscription_id, workspace_id, epoch, sequence,
    reports, rx_packets, rx_bytes, tx_packets, tx_bytes, received_at, last_used_at, data)
SELECT n.agent_id, n.subscription_id, n.workspace_id, n.epoch, n.sequence,
    n.reports, n.rx_packets, n.rx_bytes, n.tx_packets, n.tx_bytes, n.received_at, n.last_used_at, n.data
FROM ` + rows("agent_id uuid", "subscription_id bigint", "workspace_id uuid", "epoch bigint", "sequence bigint",
		"reports bigint", "rx_packets bigint", "rx_bytes bigint", "tx_packets bigint", "tx_bytes bigint",
		"received_at bigint", "last_used_at bigint", "data bytea", "known_only boolean") + ` AS n
WHERE NOT n.known_only OR EXISTS (
    SELECT 1 FROM report_sums AS m WHERE m.subscription_id = n.subscription_id AND m.agent_id = n.agent_id)
ORDER BY n.subscription_id, n.agent_id
ON CONFLICT (subscription_id, agent_id) DO UPDATE SET`
	for _, c := range addedCounts {
		text += fmt.Sprintf(`
    %[1]s = CASE WHEN report_sums.%[1]s > 9223372036854775807 - excluded.%[1]s THEN 9223372036854775807
        ELSE report_sums.%[1]s + excluded.%[1]s END,`, c)
	}
	for _, c := range newestColumns {
		text += fmt.Sprintf(`
    %[1]s = CASE WHEN (excluded.epoch, excluded.sequence) > (report_sums.epoch, report_sums.sequence)
        THEN excluded.%[1]s ELSE report_sums.%[1]s END,`, c)
	}
	return text + `
    last_used_at = CASE WHEN excluded.last_used_at > report_sums.last_used_at
        THEN excluded.last_used_at ELSE report_sums.last_used_at END`
}

// RecordReportWriterHeartbeat notes that a replica that adds to subscriptions is alive.
func (s *Store) RecordReportWriterHeartbeat(ctx context.Context, writer agent.ID) error {
	return s.change(ctx, "record heartbeat of a report writer", func(tx *sql.Tx) error {
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `
INSERT INTO report_writers (replica_id, sequence, seen_at) VALUES ($1, 0, $2)
ON CONFLICT (replica_id) DO UPDATE SET seen_at = excluded.seen_at`, s.dialect.id(writer), now)
		return err
	})
}

// RemoveReportWriter says that a replica adds nothing any more: no subscription waits
// for it. Its writes are remembered, as one of them may come late.
func (s *Store) RemoveReportWriter(ctx context.Context, writer agent.ID) error {
	return s.change(ctx, "remove writer of reports", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE report_writers SET seen_at = seen_at - $1 WHERE replica_id = $2`,
			int64(writerGone), s.dialect.id(writer))
		return err
	})
}

// AddReports adds sums to subscriptions, once, however often it is called with the
// same write. An attempt that may still be under way is waited for. The writes of
// a writer must be made in their order, each until it succeeds. A writer that the
// database does not know is an error that wraps agent.ErrUnknownWriter.
func (s *Store) AddReports(ctx context.Context, w agent.ReportWrite) (written agent.ReportWritten, err error) {
	sums := slices.Clone(w.Sums)
	slices.SortFunc(sums, func(a, b agent.ReportSum) int { return compareIDs(a.Agent, b.Agent) })
	to := slices.Clone(w.To)
	slices.SortFunc(to, func(a, b agent.ReportTarget) int { return int(min(max(a.Subscription-b.Subscription, -1), 1)) })
	err = s.change(ctx, "add reports", func(tx *sql.Tx) error {
		var err error
		written, err = s.nextWrite(ctx, tx, w.Writer, w.Sequence)
		if err != nil || written.Repeated {
			return err
		}
		known, err := s.lockSubscriptions(ctx, tx)
		if err != nil {
			return err
		}
		for _, target := range to {
			if _, ok := known[target.Subscription]; !ok {
				written.Gone = agent.SaturatingAdd(written.Gone, countReports(sums, nil))
				continue
			}
			rows, err := toRows(sums, func(sum *agent.ReportSum) ([]any, error) { return s.sumArgs(sum, target) })
			if err != nil {
				return err
			}
			ids, err := s.dialect.execIDs(ctx, tx, s.dialect.queries.upsertSum, rows)
			if err != nil {
				return err
			}
			if len(ids) < len(sums) {
				written.Refused = agent.SaturatingAdd(written.Refused, countReports(sums, ids))
			}
		}
		return s.keepOutcome(ctx, tx, w.Writer, &written)
	})
	if err != nil {
		return agent.ReportWritten{}, err
	}
	return written, nil
}

// nextWrite counts up the writes of a replica. What it finds is of a committed
// transaction: it waits for others that changed the row.
func (s *Store) nextWrite(ctx context.Context, tx *sql.Tx, writer agent.ID, sequence int64) (w agent.ReportWritten, err error) {
	id := s.dialect.id(writer)
	n, err := affected(tx.ExecContext(ctx, `
UPDATE report_writers SET sequence = $1, refused = 0, gone = 0 WHERE replica_id = $2 AND sequence = $3`, sequence, id, sequence-1))
	if err != nil || n == 1 {
		return w, err
	}
	stored, known := int64(0), false
	before := agent.ReportWritten{Repeated: true}
	err = query(ctx, tx, `SELECT sequence, refused, gone FROM report_writers WHERE replica_id = $1`+s.dialect.forUpdate, []any{id}, func(rows *sql.Rows) error {
		known = true
		return rows.Scan(&stored, &before.Refused, &before.Gone)
	})
	switch {
	case err != nil:
		return w, err
	case stored == sequence:
		return before, nil
	case stored > sequence:
		return agent.ReportWritten{Repeated: true}, nil // nobody waits for its outcome
	case known:
		_, err = tx.ExecContext(ctx, `UPDATE report_writers SET sequence = $1, refused = 0, gone = 0 WHERE replica_id = $2`, sequence, id)
		return agent.ReportWritten{Lost: sequence - 1 - stored}, err
	}
	// A removed writer writes nothing more, nor does an attempt that is late.
	return w, fmt.Errorf("%s: %w", writer, agent.ErrUnknownWriter)
}

// keepOutcome keeps which reports a write did not add, for the answer to its repetition.
func (s *Store) keepOutcome(ctx context.Context, tx *sql.Tx, writer agent.ID, written *agent.ReportWritten) error {
	if written.Refused == 0 && written.Gone == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `UPDATE report_writers SET refused = $1, gone = $2 WHERE replica_id = $3`,
		written.Refused, written.Gone, s.dialect.id(writer))
	return err
}

// lockSubscriptions returns the ids of all, which stay until the transaction ends.
func (s *Store) lockSubscriptions(ctx context.Context, tx *sql.Tx) (map[int64]struct{}, error) {
	known := make(map[int64]struct{})
	err := query(ctx, tx, `SELECT id FROM report_subscriptions ORDER BY id`+s.dialect.forKeyShare, nil, func(rows *sql.Rows) error {
		var id int64
		err := rows.Scan(&id)
		known[id] = struct{}{}
		return err
	})
	return known, err
}

func (s *Store) sumArgs(sum *agent.ReportSum, to agent.ReportTarget) ([]any, error) {
	received, err := nanos(sum.ReceivedAt)
	if err != nil {
		return nil, err
	}
	used, err := nanos(sum.LastUsedAt)
	if err != nil {
		return nil, err
	}
	data := sum.Data
	if data == nil {
		data = []byte{} // NULL otherwise
	}
	return []any{
		s.dialect.id(sum.Agent), to.Subscription, s.dialect.id(sum.Workspace), sum.Order.Epoch, sum.Order.Sequence,
		sum.Reports, sum.RxPackets, sum.RxBytes, sum.TxPackets, sum.TxBytes, received.Int64, used.Int64, data, to.Full,
	}, nil
}

// countReports returns the number of reports in sums, but for those of some agents,
// which are in the order of the sums.
func countReports(sums []agent.ReportSum, but []agent.ID) (n int64) {
	written := make(map[agent.ID]struct{}, len(but))
	for _, id := range but {
		written[id] = struct{}{}
	}
	for i := range sums {
		if _, ok := written[sums[i].Agent]; !ok {
			n = agent.SaturatingAdd(n, sums[i].Reports)
		}
	}
	return n
}

// CountReportSums returns what each subscription that has any sum has gathered.
func (s *Store) CountReportSums(ctx context.Context) (map[int64]agent.ReportCount, error) {
	var counts map[int64]agent.ReportCount
	err := s.read(ctx, "count sums of reports", func(q querier) error {
		counts = make(map[int64]agent.ReportCount)
		return query(ctx, q, `
SELECT subscription_id, count(*), CAST(sum(length(data)) AS bigint) FROM report_sums GROUP BY subscription_id`, nil, func(rows *sql.Rows) error {
			var id int64
			var n agent.ReportCount
			err := rows.Scan(&id, &n.Agents, &n.Bytes)
			counts[id] = n
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return counts, nil
}

// HasReportSums reports whether a subscription has any.
func (s *Store) HasReportSums(ctx context.Context, subscription int64) (has bool, err error) {
	err = s.read(ctx, "look for sums of reports", func(q querier) error {
		has = false
		return query(ctx, q, `SELECT 1 FROM report_sums WHERE subscription_id = $1 LIMIT 1`, []any{subscription}, func(*sql.Rows) error {
			has = true
			return nil
		})
	})
	return has, err
}

// takeSums removes up to d.Limit sums of a subscription, with up to d.Bytes, and
// returns them in the order of their agents. More is true if there are more.
func (s *Store) takeSums(ctx context.Context, tx *sql.Tx, d *agent.Delivery) (sums []agent.ReportSum, more bool, err error) {
	subscription, size := d.Subscription, 0
	// A writer that holds one of the rows is waited for; what it added is read.
	err = query(ctx, tx, `
SELECT agent_id, workspace_id, epoch, sequence, reports, rx_packets, rx_bytes, tx_packets, tx_bytes,
    received_at, last_used_at, data
FROM report_sums WHERE subscription_id = $1 ORDER BY agent_id LIMIT $2`+s.dialect.forUpdate, []any{subscription, d.Limit + 1}, func(rows *sql.Rows) error {
		if more = more || len(sums) == d.Limit; more {
			return nil
		}
		var sum agent.ReportSum
		var received, used int64
		err := rows.Scan(&sum.Agent, &sum.Workspace, &sum.Order.Epoch, &sum.Order.Sequence, &sum.Reports,
			&sum.RxPackets, &sum.RxBytes, &sum.TxPackets, &sum.TxBytes, &received, &used, &sum.Data)
		sum.ReceivedAt, sum.LastUsedAt = reportbatch.TimeOf(received), reportbatch.TimeOf(used)
		if len(sum.Data) == 0 {
			sum.Data = nil
		}
		size += len(sum.Data)
		if more = d.Bytes > 0 && size > d.Bytes && len(sums) > 0; !more {
			sums = append(sums, sum)
		}
		return err
	})
	if err != nil {
		return nil, false, err
	}
	// A statement of its own: it sees what the first one waited for.
	for part := range slices.Chunk(sums, idChunk) {
		ids := make([]agent.ID, len(part))
		for i := range part {
			ids[i] = part[i].Agent
		}
		condition, args := s.dialect.among(ids)
		// The number is in the text: the databases count arguments differently.
		text := fmt.Sprintf(`DELETE FROM report_sums WHERE subscription_id = %d AND agent_id `, subscription)
		if _, err := tx.ExecContext(ctx, text+condition, args...); err != nil {
			return nil, false, err
		}
	}
	return sums, more, nil
}

func affected(result sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}
