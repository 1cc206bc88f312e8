package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/reportbatch"
)

// What agents report, added up by subscription and agent. Every transaction locks rows
// in one order: the writer's, the subscriptions', then sums by subscription and agent.
// The row of a sum also has the sequence of the newest report that was added, and stays
// when the sum is delivered. So an agent whose process goes on needs no further lock.
// Rows of its earlier processes are changed under the lock of the sum.

// addedCounts are the columns of a sum that add up.
var addedCounts = []string{"reports", "rx_packets", "rx_bytes", "tx_packets", "tx_bytes"}

// newestColumns are the columns that the newest report sets.
var newestColumns = []string{"workspace_id", "epoch", "sequence", "received_at", "data"}

// upsertSum adds the rows to the sums, each agent once. Written is the highest sequence
// that is added of the instance then.
func upsertSum(rows rowsAs) string {
	text := `
INSERT INTO report_sums (agent_id, subscription_id, workspace_id, epoch, sequence,
    reports, rx_packets, rx_bytes, tx_packets, tx_bytes, received_at, last_used_at, data, instance_id, written)
SELECT n.agent_id, n.subscription_id, n.workspace_id, n.epoch, n.sequence,
    n.reports, n.rx_packets, n.rx_bytes, n.tx_packets, n.tx_bytes, n.received_at, n.last_used_at, n.data, n.instance_id, n.written
FROM ` + rows("agent_id uuid", "subscription_id bigint", "workspace_id uuid", "epoch bigint", "sequence bigint",
		"reports bigint", "rx_packets bigint", "rx_bytes bigint", "tx_packets bigint", "tx_bytes bigint",
		"received_at bigint", "last_used_at bigint", "data bytea", "instance_id uuid", "written bigint", "known_only boolean") + ` AS n
WHERE NOT n.known_only OR EXISTS (
    SELECT 1 FROM report_sums AS m WHERE m.subscription_id = n.subscription_id AND m.agent_id = n.agent_id AND m.pending)
ORDER BY n.subscription_id, n.agent_id
ON CONFLICT (subscription_id, agent_id) DO UPDATE SET`
	for _, c := range addedCounts {
		text += fmt.Sprintf(`
    %[1]s = CASE WHEN NOT report_sums.pending THEN excluded.%[1]s
        WHEN report_sums.%[1]s > 9223372036854775807 - excluded.%[1]s THEN 9223372036854775807
        ELSE report_sums.%[1]s + excluded.%[1]s END,`, c)
	}
	for _, c := range newestColumns {
		text += fmt.Sprintf(`
    %[1]s = CASE WHEN NOT report_sums.pending OR (excluded.epoch, excluded.sequence) > (report_sums.epoch, report_sums.sequence)
        THEN excluded.%[1]s ELSE report_sums.%[1]s END,`, c)
	}
	return text + `
    last_used_at = CASE WHEN NOT report_sums.pending OR excluded.last_used_at > report_sums.last_used_at
        THEN excluded.last_used_at ELSE report_sums.last_used_at END,
    pending = excluded.pending, instance_id = excluded.instance_id, written = excluded.written`
}

// newerOfInstance leaves out of upsertSum what the sum has, and whatever is not of the
// instance whose reports were added last.
const newerOfInstance = `
WHERE excluded.instance_id = report_sums.instance_id AND excluded.written > report_sums.written`

// RecordReportWriterHeartbeat records that a replica that adds to subscriptions is
// alive.
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

// RemoveReportWriter records that a replica adds nothing any more, so that no
// subscription waits for it. Its row stays, as one of its writes may still be under
// way.
func (s *Store) RemoveReportWriter(ctx context.Context, writer agent.ID) error {
	return s.change(ctx, "remove writer of reports", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE report_writers SET seen_at = seen_at - $1 WHERE replica_id = $2`,
			int64(writerGone), s.dialect.id(writer))
		return err
	})
}

// AddReports adds reports to subscriptions. Each report is added once, however often
// AddReports is called with the write, and whichever replicas write the report. It
// waits for an earlier attempt that is still under way. The writes of a writer must be
// made in their order, each until it succeeds. If the database does not know the
// writer, the error wraps agent.ErrUnknownWriter.
func (s *Store) AddReports(ctx context.Context, w agent.ReportWrite) (written agent.ReportWritten, err error) {
	rounds := roundsOf(w.Sums)
	to := slices.Clone(w.To)
	slices.SortFunc(to, func(a, b agent.ReportTarget) int { return cmp.Compare(a.Subscription, b.Subscription) })
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
				written.Removed = agent.SaturatingAdd(written.Removed, countReports(w.Sums))
				continue
			}
			for _, sums := range rounds {
				if err := s.addSums(ctx, tx, target, sums, &written); err != nil {
					return err
				}
			}
		}
		return s.keepOutcome(ctx, tx, w.Writer, &written)
	})
	if err != nil {
		return agent.ReportWritten{}, err
	}
	return written, nil
}

// roundsOf splits the sums into parts that have each agent at most once, ordered by
// agent. The first part has the first sum of each agent.
func roundsOf(sums []agent.ReportSum) (rounds [][]agent.ReportSum) {
	sums = slices.Clone(sums)
	slices.SortStableFunc(sums, func(a, b agent.ReportSum) int { return compareIDs(a.Agent, b.Agent) })
	round := 0
	for i := range sums {
		if round++; i == 0 || sums[i].Agent != sums[i-1].Agent {
			round = 0
		}
		if round == len(rounds) {
			rounds = append(rounds, nil)
		}
		rounds[round] = append(rounds[round], sums[i])
	}
	return rounds
}

// addSums adds sums to a subscription, and those that are left out to the outcome.
func (s *Store) addSums(ctx context.Context, tx *sql.Tx, to agent.ReportTarget, sums []agent.ReportSum, written *agent.ReportWritten) error {
	rows, err := toRows(sums, func(sum *agent.ReportSum) ([]any, error) {
		return s.sumArgs(sum, to, writtenInstance{sum.Instance, sum.Order.Sequence})
	})
	if err != nil {
		return err
	}
	ids, err := s.dialect.execIDs(ctx, tx, s.dialect.queries.upsertNewerSum, rows)
	if err != nil || len(ids) == len(sums) {
		return err
	}
	return s.addOtherSums(ctx, tx, to, leftOut(sums, ids), written)
}

// leftOut returns the sums but for those of some agents.
func leftOut(sums []agent.ReportSum, but []agent.ID) (left []agent.ReportSum) {
	added := make(map[agent.ID]struct{}, len(but))
	for _, id := range but {
		added[id] = struct{}{}
	}
	for i := range sums {
		if _, ok := added[sums[i].Agent]; !ok {
			left = append(left, sums[i])
		}
	}
	return left
}

// nextWrite counts up the writes of a replica. It waits for other transactions that
// changed the row, so it sees committed ones only.
func (s *Store) nextWrite(ctx context.Context, tx *sql.Tx, writer agent.ID, sequence int64) (w agent.ReportWritten, err error) {
	id := s.dialect.id(writer)
	n, err := affected(tx.ExecContext(ctx, `
UPDATE report_writers SET sequence = $1, refused = 0, gone = 0, found = 0 WHERE replica_id = $2 AND sequence = $3`, sequence, id, sequence-1))
	if err != nil || n == 1 {
		return w, err
	}
	stored, known := int64(0), false
	before := agent.ReportWritten{Repeated: true}
	err = query(ctx, tx, `SELECT sequence, refused, gone, found FROM report_writers WHERE replica_id = $1`+s.dialect.forUpdate, []any{id}, func(rows *sql.Rows) error {
		known = true
		return rows.Scan(&stored, &before.Refused, &before.Removed, &before.Found)
	})
	switch {
	case err != nil:
		return w, err
	case stored == sequence:
		return before, nil
	case stored > sequence:
		return agent.ReportWritten{Repeated: true}, nil // its outcome is not needed any more
	case known:
		_, err = tx.ExecContext(ctx, `UPDATE report_writers SET sequence = $1, refused = 0, gone = 0, found = 0 WHERE replica_id = $2`, sequence, id)
		return agent.ReportWritten{Lost: sequence - 1 - stored}, err
	}
	// A removed writer adds nothing, nor does a late attempt of it.
	return w, fmt.Errorf("%s: %w", writer, agent.ErrUnknownWriter)
}

// keepOutcome stores how many reports a write did not add, for the answer to its
// repetition.
func (s *Store) keepOutcome(ctx context.Context, tx *sql.Tx, writer agent.ID, written *agent.ReportWritten) error {
	if written.Refused|written.Removed|written.Found == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `UPDATE report_writers SET refused = $1, gone = $2, found = $3 WHERE replica_id = $4`,
		written.Refused, written.Removed, written.Found, s.dialect.id(writer))
	return err
}

// lockSubscriptions returns the ids of all subscriptions, which cannot be removed until
// the transaction ends.
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

// sumArgs returns the arguments of upsertSum. newest is what the sum's row says then of
// the instances.
func (s *Store) sumArgs(sum *agent.ReportSum, to agent.ReportTarget, newest writtenInstance) ([]any, error) {
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
		sum.Reports, sum.RxPackets, sum.RxBytes, sum.TxPackets, sum.TxBytes, received.Int64, used.Int64, data,
		s.dialect.id(agent.ID(newest.instance)), newest.written, to.Full,
	}, nil
}

// countReports returns the number of reports in sums.
func countReports(sums []agent.ReportSum) (n int64) {
	for i := range sums {
		n = agent.SaturatingAdd(n, sums[i].Reports)
	}
	return n
}

// CountReportSums returns the number and size of each subscription's sums. Those
// without any are absent.
func (s *Store) CountReportSums(ctx context.Context) (map[int64]agent.ReportCount, error) {
	var counts map[int64]agent.ReportCount
	err := s.read(ctx, "count sums of reports", func(q querier) error {
		counts = make(map[int64]agent.ReportCount)
		return query(ctx, q, `
SELECT subscription_id, count(*), CAST(sum(length(data)) AS bigint) FROM report_sums WHERE pending GROUP BY subscription_id`, nil, func(rows *sql.Rows) error {
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

// HasReportSums reports whether a subscription has any sums.
func (s *Store) HasReportSums(ctx context.Context, subscription int64) (has bool, err error) {
	err = s.read(ctx, "look for sums of reports", func(q querier) error {
		has = false
		return query(ctx, q, `SELECT 1 FROM report_sums WHERE subscription_id = $1 AND pending LIMIT 1`, []any{subscription}, func(*sql.Rows) error {
			has = true
			return nil
		})
	})
	return has, err
}

// takeSums returns up to d.Limit sums of a subscription, of up to d.Bytes, ordered by
// agent. It marks them as not pending. more is true if there are further ones.
func (s *Store) takeSums(ctx context.Context, tx *sql.Tx, d *agent.Delivery) (sums []agent.ReportSum, more bool, err error) {
	subscription, size := d.Subscription, 0
	// This waits for a writer that has locked one of the rows, and reads what it added.
	err = query(ctx, tx, `
SELECT agent_id, workspace_id, epoch, sequence, reports, rx_packets, rx_bytes, tx_packets, tx_bytes,
    received_at, last_used_at, data
FROM report_sums WHERE subscription_id = $1 AND pending ORDER BY agent_id LIMIT $2`+s.dialect.forUpdate, []any{subscription, d.Limit + 1}, func(rows *sql.Rows) error {
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
	// A second statement, as it sees what the first one waited for.
	err = s.eachPart(sums, func(condition string, args []any) error {
		text := fmt.Sprintf(`UPDATE report_sums SET pending = false, data = coalesce(substr(data, 1, 0), data) WHERE subscription_id = %d AND agent_id `, subscription)
		_, err := tx.ExecContext(ctx, text+condition, args...)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	return sums, more, nil
}

// eachPart calls f for parts of the sums, with a condition that selects their agents
// and its arguments. f must have no further arguments, as the databases number them
// differently.
func (s *Store) eachPart(sums []agent.ReportSum, f func(condition string, args []any) error) error {
	for part := range slices.Chunk(sums, idChunk) {
		ids := make([]agent.ID, len(part))
		for i := range part {
			ids[i] = part[i].Agent
		}
		if err := f(s.dialect.among(ids)); err != nil {
			return err
		}
	}
	return nil
}

func affected(result sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}
