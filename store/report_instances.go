package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Which reports of an agent's processes were added to a subscription. The sum's row has
// the instance whose reports were added last: of an agent whose process goes on, nothing
// else is read or written. Those before it have rows of their own, for as long as a
// replica may still have one of their reports.

const (
	// writtenKept is for how long it is known what was added of an instance.
	writtenKept = 24 * time.Hour
	// instancesKept bounds the instances of an agent that are known beside the newest:
	// a process that fails at its start each 5 s has them for 5 minutes.
	instancesKept = 64
)

// writtenInstance is the highest sequence that was added of an instance.
type writtenInstance struct {
	instance agent.Instance
	written  int64
}

// sumState is what a sum's row says of an agent.
type sumState struct {
	newest  writtenInstance
	pending bool
	// before are the instances before the newest, the oldest first.
	before []writtenInstance
}

// find returns the highest sequence that was added of an instance before the newest.
func (st *sumState) find(instance agent.Instance) (written int64, known bool) {
	for _, b := range st.before {
		if b.instance == instance {
			return b.written, true
		}
	}
	return 0, false
}

// addOtherSums adds, of what addSums left out, the reports that are not of the instance
// whose reports were added last, once each. The rest is counted in the outcome.
func (s *Store) addOtherSums(ctx context.Context, tx *sql.Tx, to agent.ReportTarget, sums []agent.ReportSum, written *agent.ReportWritten) error {
	states, err := s.sumStates(ctx, tx, to.Subscription, sums)
	if err != nil {
		return err
	}
	now, err := s.dialect.clock(ctx, tx)
	if err != nil {
		return err
	}
	var rows, instances, forgotten [][]any
	row := func(of agent.ID, instance agent.Instance, more ...any) []any {
		return append([]any{to.Subscription, s.dialect.id(of), s.dialect.id(agent.ID(instance))}, more...)
	}
	for i := range sums {
		sum := &sums[i]
		st, has := states[sum.Agent]
		if !has || to.Full && !st.pending {
			written.Refused = agent.SaturatingAdd(written.Refused, sum.Reports)
			continue
		}
		sequence, known := st.find(sum.Instance)
		if sum.Instance == st.newest.instance {
			sequence = st.newest.written
		}
		if sum.Order.Sequence <= sequence {
			written.Found = agent.SaturatingAdd(written.Found, sum.Reports)
			continue
		}
		newest, before := writtenInstance{sum.Instance, sum.Order.Sequence}, st.newest
		if known {
			newest, before = before, newest
		}
		if newest.instance != before.instance {
			instances = append(instances, row(sum.Agent, before.instance, before.written, now))
		}
		if !known && len(st.before) >= instancesKept {
			forgotten = append(forgotten, row(sum.Agent, st.before[0].instance))
		}
		args, err := s.sumArgs(sum, to, newest)
		if err != nil {
			return err
		}
		rows = append(rows, args)
	}
	for _, do := range []struct {
		text string
		rows [][]any
	}{
		{s.dialect.queries.upsertSum, rows}, {s.dialect.queries.deleteInstance, forgotten}, {s.dialect.queries.upsertInstance, instances},
	} {
		if _, err := s.dialect.exec(ctx, tx, do.text, do.rows); err != nil {
			return err
		}
	}
	return nil
}

// sumStates returns what a subscription has of the agents of sums. Their rows are locked
// by this transaction, but for those that have no sum to deliver, in a subscription
// that is full: one of these that another transaction has is left out.
func (s *Store) sumStates(ctx context.Context, tx *sql.Tx, subscription int64, sums []agent.ReportSum) (map[agent.ID]*sumState, error) {
	states := make(map[agent.ID]*sumState, len(sums))
	err := s.eachPart(sums, func(condition string, args []any) error {
		text := fmt.Sprintf(`SELECT agent_id, instance_id, written, pending FROM report_sums WHERE subscription_id = %d AND agent_id `, subscription)
		err := query(ctx, tx, text+condition+s.dialect.forUpdateUnlocked, args, func(rows *sql.Rows) error {
			st := new(sumState)
			var of, instance agent.ID
			err := rows.Scan(&of, &instance, &st.newest.written, &st.pending)
			st.newest.instance = agent.Instance(instance)
			states[of] = st
			return err
		})
		if err != nil {
			return err
		}
		text = fmt.Sprintf(`SELECT agent_id, instance_id, written FROM report_instances WHERE subscription_id = %d AND agent_id `, subscription)
		return query(ctx, tx, text+condition+` ORDER BY written_at, instance_id`, args, func(rows *sql.Rows) error {
			var of, instance agent.ID
			var b writtenInstance
			err := rows.Scan(&of, &instance, &b.written)
			b.instance = agent.Instance(instance)
			if st := states[of]; st != nil {
				st.before = append(st.before, b)
			}
			return err
		})
	})
	return states, err
}

// forgetInstances forgets what was added of agents that have not reported for long, and
// of their processes that ended: some rows of each kind. A subscription that is gone has
// no more rows after that time.
func (s *Store) forgetInstances(ctx context.Context, tx *sql.Tx, before int64) error {
	// The conditions are there twice, as a writer may have the row meanwhile.
	_, err := tx.ExecContext(ctx, `
DELETE FROM report_sums WHERE NOT pending AND received_at < $1 AND (subscription_id, agent_id) IN (
    SELECT subscription_id, agent_id FROM report_sums WHERE NOT pending AND received_at < $1 LIMIT $2)`, before, orphansPage)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `
DELETE FROM report_instances WHERE written_at < $1 AND (subscription_id, agent_id, instance_id) IN (
    SELECT subscription_id, agent_id, instance_id FROM report_instances WHERE written_at < $1 ORDER BY written_at LIMIT $2)`, before, orphansPage)
	return err
}
