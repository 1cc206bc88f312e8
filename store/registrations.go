package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/agentrows"
	"github.com/coder/agentstatsd/store/internal/pages"
	"github.com/coder/agentstatsd/store/internal/stateparts"
)

// ApplyChange writes c in one transaction, if the newest revision is still basis, and
// returns the new one. First goes what is removed, with its metadata, state and
// session. Then come workspaces, then agents with their workspaces. An agent that is
// replaced keeps its metadata, state and session, but not the health of apps that it
// does not have any more. If another change came since basis, nothing is written and
// the error wraps agent.ErrOutdated.
func (s *Store) ApplyChange(ctx context.Context, basis int64, c agent.Change) (revision int64, err error) {
	revision = basis + 1
	writes, err := s.registrationWrites(c, revision)
	if err != nil {
		return 0, fmt.Errorf("change registrations: %w", err)
	}
	var token int64
	err = s.change(ctx, "change registrations", func(tx *sql.Tx) error {
		// From here on all other changes wait for this one.
		result, err := tx.ExecContext(ctx, `UPDATE registrations SET revision = revision + 1 WHERE revision = $1`, basis)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("since revision %d: %w", basis, agent.ErrOutdated)
		}
		if token, err = s.noteRevision(ctx, tx, revision, len(c.RemovedAgents)+len(c.RemovedWorkspaces) > 0); err != nil {
			return err
		}
		for _, w := range writes {
			if _, err := s.dialect.exec(ctx, tx, w.text, w.rows); err != nil {
				return err
			}
		}
		if err := s.noteNamed(ctx, tx, &c, revision); err != nil {
			return err
		}
		if len(c.RemovedAgents)+len(c.RemovedWorkspaces) > 0 {
			return s.forgetRemovals(ctx, tx)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	s.history.Note(revision, token)
	s.undecodable.Mended(c)
	return revision, nil
}

// write is a statement and the rows for it.
type write struct {
	text string
	rows [][]any
}

// registrationWrites returns the writes of c in their order. Agents of removed
// workspaces are noted as removed, too.
func (s *Store) registrationWrites(c agent.Change, revision int64) ([]write, error) {
	workspaces := slices.Clone(c.Workspaces)
	for i := range c.Agents {
		workspaces = append(workspaces, c.Agents[i].Workspace)
	}
	workspaces = inOrder(workspaces, func(a, b agent.Workspace) int { return compareIDs(a.ID, b.ID) }, nil)
	workspaceRows, err := toRows(workspaces, func(w *agent.Workspace) ([]any, error) { return s.workspaceArgs(w, revision) })
	if err != nil {
		return nil, err
	}
	agents := inOrder(c.Agents, func(a, b agent.Registration) int { return compareIDs(a.ID, b.ID) }, nil)
	agentRows, err := toRows(agents, func(r *agent.Registration) ([]any, error) { return s.agentArgs(r, revision) })
	if err != nil {
		return nil, err
	}
	agentIDs := make([]agent.ID, len(agents))
	for i := range agents {
		agentIDs[i] = agents[i].ID
	}
	removedAgents, removedWorkspaces := inOrderIDs(s.undecodable.Replaced(c)), inOrderIDs(c.RemovedWorkspaces)
	q := &s.dialect.queries
	return []write{
		{q.noteAgents, s.idRows(removedAgents, revision)},
		{q.deleteAgents, s.idRows(removedAgents)},
		{q.noteAgentsOf, s.idRows(removedWorkspaces, revision)},
		{q.noteWorkspaces, s.idRows(removedWorkspaces, revision)},
		{q.deleteWorkspaces, s.idRows(removedWorkspaces)},
		{q.upsertWorkspace, workspaceRows},
		{q.upsertAgent, agentRows},
		{q.forgetApps, s.idRows(agentIDs)},
	}, nil
}

// forgetRemovals deletes the oldest removals, and remembers that they are gone.
func (s *Store) forgetRemovals(ctx context.Context, tx *sql.Tx) error {
	var last int64
	err := tx.QueryRowContext(ctx, `SELECT coalesce(max(number), 0) FROM removed`).Scan(&last)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `
UPDATE registrations SET removals_after = (SELECT max(revision) FROM removed WHERE number <= $1)
WHERE EXISTS (SELECT 1 FROM removed WHERE number <= $1)`, last-int64(s.removalsKept))
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM removed WHERE number <= $1`, last-int64(s.removalsKept))
	return err
}

func (s *Store) workspaceArgs(w *agent.Workspace, revision int64) ([]any, error) {
	built, err := nanos(w.Build.CreatedAt)
	if err != nil {
		return nil, fmt.Errorf("build of workspace %s: %w", w.ID, err)
	}
	id := s.dialect.id
	return []any{
		id(w.ID), w.Name, id(w.OwnerID), w.OwnerUsername,
		id(w.Template.ID), w.Template.Name, w.Template.Version, w.Organization,
		id(w.Build.ID), built, string(w.Build.Transition), w.Build.IsPrebuild, revision,
	}, nil
}

func (s *Store) agentArgs(r *agent.Registration, revision int64) ([]any, error) {
	created, err := nanos(r.CreatedAt)
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w", r.ID, err)
	}
	apps := make([]stateparts.App, len(r.Apps))
	for i, a := range r.Apps {
		apps[i] = stateparts.App(a)
	}
	appsJSON, err := json.Marshal(apps)
	if err != nil {
		return nil, fmt.Errorf("apps of agent %s: %w", r.ID, err)
	}
	keysJSON, err := json.Marshal(append([]string{}, r.MetadataKeys...))
	if err != nil {
		return nil, fmt.Errorf("metadata keys of agent %s: %w", r.ID, err)
	}
	observed, err := stateparts.EncodeObservation(&r.Observed)
	if err != nil {
		return nil, fmt.Errorf("what coderd saw of agent %s: %w", r.ID, err)
	}
	id := s.dialect.id
	return []any{
		id(r.ID), id(r.Workspace.ID), id(r.Parent), r.Name, created, int64(r.ConnectionTimeout),
		r.TokenHash[:], string(appsJSON), string(keysJSON), observed, revision, revision,
	}, nil
}

// Registrations returns what changed since a revision, from an earlier call, as of one
// moment; since 0 all. It is all, too, if it is not remembered any more what was
// removed or named since. So it is if since is not of this database, or was another
// revision when it was read: an older dump was restored meanwhile. If nothing changed
// it costs one small query. What was removed and made known again is not among the
// removed.
func (s *Store) Registrations(ctx context.Context, since int64) (agent.Registrations, error) {
	const doing = "read registrations"
	var registrations agent.Registrations
	var token int64
	err := s.read(ctx, doing, func(q querier) (err error) {
		registrations, token, err = s.revisionOf(ctx, q, since)
		return err
	})
	if err != nil {
		return agent.Registrations{}, err
	}
	if registrations.Revision == since && !registrations.Complete {
		return registrations, nil
	}
	err = s.view(ctx, doing, func(tx *sql.Tx) (err error) {
		registrations, token, err = s.readRegistrations(ctx, tx, since)
		return err
	})
	if err != nil {
		return agent.Registrations{}, err
	}
	s.history.Note(registrations.Revision, token)
	return registrations, nil
}

// revisionOf returns the revision and its token, and whether it takes all to know what
// changed since one.
func (s *Store) revisionOf(ctx context.Context, q querier, since int64) (registrations agent.Registrations, token int64, err error) {
	err = query(ctx, q, `
SELECT r.revision, r.removals_after, r.named_after,
    coalesce((SELECT n.token FROM revisions AS n WHERE n.revision = r.revision), 0),
    coalesce((SELECT n.token FROM revisions AS n WHERE n.revision = $1), 0)
FROM registrations AS r`, []any{since}, func(rows *sql.Rows) error {
		var removalsAfter, namedAfter, sinceToken int64
		err := rows.Scan(&registrations.Revision, &removalsAfter, &namedAfter, &token, &sinceToken)
		registrations.Complete = since < max(removalsAfter, namedAfter) || since > registrations.Revision ||
			s.history.Differs(since, sinceToken)
		return err
	})
	return registrations, token, err
}

func (s *Store) readRegistrations(ctx context.Context, tx *sql.Tx, since int64) (registrations agent.Registrations, token int64, err error) {
	registrations, token, err = s.revisionOf(ctx, tx, since)
	if err != nil {
		return registrations, token, err
	}
	if registrations.Complete {
		since = 0
	}
	byID := make(map[agent.ID]int)
	err = s.eachWorkspace(ctx, tx, since, func(workspaces []agent.Workspace) error {
		for i := range workspaces {
			byID[workspaces[i].ID] = len(registrations.Workspaces)
			registrations.Workspaces = append(registrations.Workspaces, workspaces[i])
		}
		return nil
	})
	if err != nil {
		return registrations, token, err
	}
	var bad []agent.ID
	isDecoded := func(id agent.ID) bool { _, is := byID[id]; return is }
	err = s.eachAgent(ctx, tx, since, isDecoded, func(p *agentsPage) error {
		bad = append(bad, p.skipped...)
		for i := range p.agents {
			p.agents[i].Workspace = registrations.Workspaces[byID[p.agents[i].Workspace.ID]]
		}
		registrations.Agents = append(registrations.Agents, p.agents...)
		return nil
	})
	if err != nil || registrations.Complete {
		return registrations, token, err
	}
	if registrations.RemovedAgents, err = s.readRemoved(ctx, tx, "agents", since); err != nil {
		return registrations, token, err
	}
	// Who cannot be decoded is not known any more, as in a read of all.
	registrations.RemovedAgents = inOrderIDs(append(registrations.RemovedAgents, bad...))
	if registrations.RemovedWorkspaces, err = s.readRemoved(ctx, tx, "workspaces", since); err != nil {
		return registrations, token, err
	}
	all, err := s.readNamed(ctx, tx, since, &registrations)
	if err == nil && !all {
		return s.readRegistrations(ctx, tx, 0) // who is in it counts as named
	}
	return registrations, token, err
}

// EachRegistration reads all registrations, as of the revision that it returns, and calls
// page with some at a time: with workspaces, then with agents, each in the order of their
// ids. The workspace of an agent has its id only: it was in an earlier page. The first
// page is Complete, and may be empty. If there is another one, the read began again, and
// what pages before it had is void. A page's lists are valid until page returns, whose
// error ends the read.
func (s *Store) EachRegistration(ctx context.Context, page func(agent.Registrations) error) (revision int64, err error) {
	var token int64
	err = s.view(ctx, "read registrations", func(tx *sql.Tx) error {
		begun, now, err := s.revisionOf(ctx, tx, 0)
		if err != nil {
			return err
		}
		revision, token = begun.Revision, now
		if err := page(agent.Registrations{Revision: revision, Complete: true}); err != nil {
			return err
		}
		workspaces := make(map[agent.ID]struct{})
		err = s.eachWorkspace(ctx, tx, 0, func(list []agent.Workspace) error {
			for i := range list {
				workspaces[list[i].ID] = struct{}{}
			}
			return page(agent.Registrations{Revision: revision, Workspaces: list})
		})
		if err != nil {
			return err
		}
		isDecoded := func(id agent.ID) bool { _, is := workspaces[id]; return is }
		return s.eachAgent(ctx, tx, 0, isDecoded, func(p *agentsPage) error {
			return page(agent.Registrations{Revision: revision, Agents: p.agents})
		})
	})
	if err != nil {
		return 0, err
	}
	s.history.Note(revision, token)
	return revision, nil
}

// eachWorkspace reads the workspaces since a revision by pages.
func (s *Store) eachWorkspace(ctx context.Context, tx *sql.Tx, since int64, page func([]agent.Workspace) error) error {
	return pages.Each(pageOfWorkspaces.rows, func(add func() *agent.Workspace) error {
		return s.stream(ctx, tx, pageOfWorkspaces, `
SELECT id, name, owner_id, owner_username, template_id, template_name,
    template_version, organization, build_id, build_created_at, build_transition, build_is_prebuild
FROM workspaces WHERE revision > $1 ORDER BY id`, []any{since}, func(rows *sql.Rows) error {
			w, err := scanWorkspace(rows)
			if err != nil {
				return s.skip(ctx, rows, kindWorkspaces, idKey(w.ID), err)
			}
			row := add()
			if row == nil {
				return pages.ErrStopped
			}
			*row = w
			return nil
		})
	}, page)
}

// agentsPage is a page of agents. skipped cannot be decoded, or their workspace is not: an
// agent is written together with it, so that has the same revision or a later one.
type agentsPage struct {
	agents  []agent.Registration
	skipped []agent.ID
}

// eachAgent reads the agents since a revision by pages, without their workspaces. While a
// page is handled, the next one is decoded and the one after it read.
func (s *Store) eachAgent(ctx context.Context, tx *sql.Tx, since int64, isDecoded func(workspace agent.ID) bool, handle func(*agentsPage) error) error {
	read := func(add func() *agentrows.Row) error {
		return s.stream(ctx, tx, pageOfAgents, `SELECT `+agentrows.Columns+` FROM agents WHERE revision > $1 ORDER BY id`, []any{since}, func(rows *sql.Rows) error {
			row := add()
			if row == nil {
				return pages.ErrStopped
			}
			if row.Err = row.Scan(rows); row.Err != nil {
				if _, ended := rows.Columns(); ended != nil {
					return row.Err
				}
			}
			return nil
		})
	}
	var decoder agentrows.Decoder
	decode := func(add func() *agentsPage) error {
		return pages.Each(pageOfAgents.rows, read, func(rows []agentrows.Row) error {
			p := add()
			if p == nil {
				return pages.ErrStopped
			}
			p.agents, p.skipped = p.agents[:0], p.skipped[:0]
			for i := range rows {
				r := &rows[i]
				decoder.Decode(r)
				if r.Err == nil && !isDecoded(r.Workspace.ID) {
					r.Err = agentrows.ErrNoWorkspace
				}
				s.undecodable.SetAgent(r.ID, r.Err != nil)
				if r.Err == nil {
					p.agents = append(p.agents, r.Registration)
					continue
				}
				s.undecodable.Report(ctx, kindAgents, idKey(r.ID), r.Err, time.Now())
				p.skipped = append(p.skipped, r.ID)
			}
			return nil
		})
	}
	return pages.Each(1, decode, func(list []agentsPage) error { return handle(&list[0]) })
}

// readRemoved returns the ids that a table does not have any more, in order.
func (s *Store) readRemoved(ctx context.Context, tx *sql.Tx, table string, since int64) (ids []agent.ID, err error) {
	err = s.stream(ctx, tx, pageOfRemoved, `
SELECT DISTINCT id FROM removed
WHERE kind = $1 AND revision > $2 AND NOT EXISTS (SELECT 1 FROM `+table+` AS t WHERE t.id = removed.id)
ORDER BY id`, []any{table, since}, func(rows *sql.Rows) error {
		var id agent.ID
		err := rows.Scan(&id)
		ids = append(ids, id)
		return err
	})
	return ids, err
}

func scanWorkspace(rows *sql.Rows) (agent.Workspace, error) {
	var w agent.Workspace
	var built sql.NullInt64
	err := rows.Scan(
		&w.ID, &w.Name, &w.OwnerID, &w.OwnerUsername,
		&w.Template.ID, &w.Template.Name, &w.Template.Version, &w.Organization,
		&w.Build.ID, &built, &w.Build.Transition, &w.Build.IsPrebuild,
	)
	w.Build.CreatedAt = fromNanos(built)
	return w, err
}
