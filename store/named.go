package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/coder/agentstatsd/agent"
)

// noteNamed notes who was named again without a change. A row a change, rather
// than one an agent, makes naming 10,000 agents one insert.
func (s *Store) noteNamed(ctx context.Context, tx *sql.Tx, c *agent.Change, revision int64) error {
	if len(c.NamedAgents)+len(c.NamedWorkspaces) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO named (revision, agents, workspaces) VALUES ($1, $2, $3)`,
		revision, joinIDs(c.NamedAgents), joinIDs(c.NamedWorkspaces))
	if err != nil {
		return err
	}
	var forgotten sql.NullInt64
	err = tx.QueryRowContext(ctx, `
SELECT max(revision) FROM (
    SELECT revision, sum(length(agents) + length(workspaces)) OVER (ORDER BY revision DESC) AS bytes FROM named
) AS n WHERE bytes > $1`, s.namedKept*len(agent.ID{})).Scan(&forgotten)
	if err != nil || !forgotten.Valid {
		return err
	}
	if _, err = tx.ExecContext(ctx, `DELETE FROM named WHERE revision <= $1`, forgotten.Int64); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE registrations SET named_after = $1`, forgotten.Int64)
	return err
}

// readNamed adds to the registrations who was named again since a revision and is not in
// it. It returns false if a row cannot be decoded: nobody knows who else was.
func (s *Store) readNamed(ctx context.Context, tx *sql.Tx, since int64, registrations *agent.Registrations) (all bool, err error) {
	seenAgents := make(map[agent.ID]struct{}, len(registrations.Agents))
	for i := range registrations.Agents {
		seenAgents[registrations.Agents[i].ID] = struct{}{}
	}
	seenWorkspaces := make(map[agent.ID]struct{}, len(registrations.Workspaces))
	for i := range registrations.Workspaces {
		seenWorkspaces[registrations.Workspaces[i].ID] = struct{}{}
	}
	add := func(ids []agent.ID, seen map[agent.ID]struct{}, joined []byte) ([]agent.ID, error) {
		if len(joined)%len(agent.ID{}) != 0 {
			return ids, fmt.Errorf("ids of %d bytes", len(joined))
		}
		for ; len(joined) > 0; joined = joined[len(agent.ID{}):] {
			id := agent.ID(joined[:len(agent.ID{})])
			if _, twice := seen[id]; !twice {
				seen[id] = struct{}{}
				ids = append(ids, id)
			}
		}
		return ids, nil
	}
	all = true
	err = s.stream(ctx, tx, pageOfNamed, `SELECT revision, agents, workspaces FROM named WHERE revision > $1 ORDER BY revision`, []any{since}, func(rows *sql.Rows) error {
		var revision int64
		var agents, workspaces []byte
		err := rows.Scan(&revision, &agents, &workspaces)
		if err == nil {
			registrations.NamedAgents, err = add(registrations.NamedAgents, seenAgents, agents)
		}
		if err == nil {
			registrations.NamedWorkspaces, err = add(registrations.NamedWorkspaces, seenWorkspaces, workspaces)
		}
		all = all && err == nil
		return s.skip(ctx, rows, kindNamed, fmt.Sprintf("revision %d", revision), err)
	})
	return all, err
}

func joinIDs(ids []agent.ID) []byte {
	joined := make([]byte, 0, len(ids)*len(agent.ID{}))
	for _, id := range ids {
		joined = append(joined, id[:]...)
	}
	return joined
}
