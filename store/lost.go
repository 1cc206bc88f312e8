package store

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"strings"

	"github.com/coder/agentstatsd/agent"
)

// attempted is a row that was to be written.
type attempted struct {
	agent agent.ID
	// name is the key of metadata, or the part of a state.
	name               string
	epoch, incarnation int64
	// lateFrom is when a late row was collected, in nanoseconds since 1970; 0: it is not
	// late.
	lateFrom int64
}

func compareAttempted(a, b attempted) int {
	return cmp.Or(compareIDs(a.agent, b.agent), strings.Compare(a.name, b.name))
}

// newerEpochs returns what of rows lost, in their order: that of (agent, name), each
// of which is there once. text selects the id of agents, their incarnation, and the
// name, epoch and time of each stored row; a condition on ids follows it. A late row does
// not lose against a stored one that was collected later: it is not to be written.
//
// It is called after the write, in its transaction: what another replica had under
// way then is committed. Who is removed between the two is reported as lost, which
// is true a moment later.
func (s *Store) newerEpochs(ctx context.Context, tx *sql.Tx, rows []attempted, text string) ([]agent.StoredEpoch, error) {
	var ids []agent.ID
	for _, r := range rows {
		if n := len(ids); n == 0 || ids[n-1] != r.agent {
			ids = append(ids, r.agent)
		}
	}
	registered := make(map[agent.ID]int64, len(ids))
	stored := make([]int64, len(rows))
	for part := range slices.Chunk(ids, idChunk) {
		condition, args := s.dialect.among(part)
		err := query(ctx, tx, text+condition, args, func(found *sql.Rows) error {
			var id agent.ID
			var incarnation int64
			var name sql.NullString
			var epoch, at sql.NullInt64
			if err := found.Scan(&id, &incarnation, &name, &epoch, &at); err != nil {
				return err
			}
			registered[id] = incarnation
			if i, is := slices.BinarySearchFunc(rows, attempted{agent: id, name: name.String}, compareAttempted); is {
				stored[i] = epoch.Int64
				if from := rows[i].lateFrom; from != 0 && at.Int64 > from {
					stored[i] = rows[i].epoch
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var newer []agent.StoredEpoch
	for i, r := range rows {
		switch {
		case r.incarnation != 0 && registered[r.agent] != r.incarnation:
			newer = append(newer, agent.StoredEpoch{Agent: r.agent, Key: r.name})
		case stored[i] > r.epoch, stored[i] < r.epoch && stored[i] != 0: // 0: there is none
			newer = append(newer, agent.StoredEpoch{Agent: r.agent, Key: r.name, Epoch: stored[i], First: stored[i] < r.epoch})
		}
	}
	return newer, nil
}
