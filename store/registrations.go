package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// app is an app in the column agents.apps.
type app struct {
	ID          agent.ID        `json:"id"`
	Slug        string          `json:"slug"`
	DisplayName string          `json:"display_name"`
	Health      agent.AppHealth `json:"health"`
}

// ApplyChange writes c in one transaction: first what is removed, with its
// metadata, state and epoch, then workspaces, then agents with their
// workspaces. An agent that is replaced keeps its metadata, state and epoch.
func (s *Store) ApplyChange(ctx context.Context, c agent.Change) error {
	q := &s.dialect.queries
	idArgs := func(id *agent.ID) ([]any, error) { return []any{id[:]}, nil }
	return s.change(ctx, "change registrations", func(tx *sql.Tx) error {
		if err := execEach(ctx, tx, q.deleteAgent, c.RemovedAgents, idArgs); err != nil {
			return err
		}
		if err := execEach(ctx, tx, q.deleteWorkspace, c.RemovedWorkspaces, idArgs); err != nil {
			return err
		}
		if err := execEach(ctx, tx, q.upsertWorkspace, c.Workspaces, workspaceArgs); err != nil {
			return err
		}
		err := execEach(ctx, tx, q.upsertWorkspace, c.Agents, func(r *agent.Registration) ([]any, error) {
			return workspaceArgs(&r.Workspace)
		})
		if err != nil {
			return err
		}
		return execEach(ctx, tx, q.upsertAgent, c.Agents, agentArgs)
	})
}

// execEach runs a statement once for each item.
func execEach[T any](ctx context.Context, tx *sql.Tx, text string, items []T, args func(*T) ([]any, error)) (err error) {
	if len(items) == 0 {
		return nil
	}
	stmt, err := tx.PrepareContext(ctx, text)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	// As in UpsertMetadata: the context is looked at between rows.
	stmtCtx := context.WithoutCancel(ctx)
	for i := range items {
		if err := ctx.Err(); err != nil {
			return err
		}
		values, err := args(&items[i])
		if err != nil {
			return err
		}
		if _, err := stmt.ExecContext(stmtCtx, values...); err != nil {
			return err
		}
	}
	return nil
}

func workspaceArgs(w *agent.Workspace) ([]any, error) {
	built, err := nanos(w.Build.CreatedAt)
	if err != nil {
		return nil, fmt.Errorf("build of workspace %s: %w", w.ID, err)
	}
	return []any{
		w.ID[:], w.Name, w.OwnerID[:], w.OwnerUsername,
		w.Template.ID[:], w.Template.Name, w.Template.Version, w.Organization,
		w.Build.ID[:], built, string(w.Build.Transition), w.Build.IsPrebuild,
	}, nil
}

func agentArgs(r *agent.Registration) ([]any, error) {
	created, err := nanos(r.CreatedAt)
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w", r.ID, err)
	}
	apps := make([]app, len(r.Apps))
	for i, a := range r.Apps {
		apps[i] = app(a)
	}
	appsJSON, err := json.Marshal(apps)
	if err != nil {
		return nil, fmt.Errorf("apps of agent %s: %w", r.ID, err)
	}
	keysJSON, err := json.Marshal(append([]string{}, r.MetadataKeys...))
	if err != nil {
		return nil, fmt.Errorf("metadata keys of agent %s: %w", r.ID, err)
	}
	return []any{
		r.ID[:], r.Workspace.ID[:], r.Parent[:], r.Name, created, int64(r.ConnectionTimeout),
		r.TokenHash[:], string(appsJSON), string(keysJSON),
	}, nil
}

// Registrations returns all agents, each with its workspace, and all
// workspaces, as of one moment, in the order of their ids.
func (s *Store) Registrations(ctx context.Context) ([]agent.Registration, []agent.Workspace, error) {
	tx, err := s.reader.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, nil, fmt.Errorf("read registrations: %w", err)
	}
	agents, workspaces, err := s.registrations(ctx, tx)
	if err := errors.Join(err, tx.Rollback()); err != nil {
		return nil, nil, fmt.Errorf("read registrations: %w", err)
	}
	return agents, workspaces, nil
}

func (s *Store) registrations(ctx context.Context, tx *sql.Tx) ([]agent.Registration, []agent.Workspace, error) {
	var workspaces []agent.Workspace
	byID := make(map[agent.ID]int)
	err := query(ctx, tx, s.dialect.queries.workspaces, nil, func(rows *sql.Rows) error {
		w, err := scanWorkspace(rows)
		byID[w.ID] = len(workspaces)
		workspaces = append(workspaces, w)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	var agents []agent.Registration
	err = query(ctx, tx, s.dialect.queries.agents, nil, func(rows *sql.Rows) error {
		r, err := scanAgent(rows)
		if err != nil {
			return err
		}
		// The foreign key holds, and both were read from one snapshot.
		r.Workspace = workspaces[byID[r.Workspace.ID]]
		agents = append(agents, r)
		return nil
	})
	return agents, workspaces, err
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

func scanAgent(rows *sql.Rows) (agent.Registration, error) {
	var r agent.Registration
	var created sql.NullInt64
	var timeout int64
	var token, appsJSON, keysJSON []byte
	err := rows.Scan(
		&r.ID, &r.Workspace.ID, &r.Parent, &r.Name, &created, &timeout,
		&token, &appsJSON, &keysJSON,
	)
	if err != nil {
		return r, err
	}
	r.CreatedAt = fromNanos(created)
	r.ConnectionTimeout = time.Duration(timeout)
	copy(r.TokenHash[:], token)
	var apps []app
	if err := json.Unmarshal(appsJSON, &apps); err != nil {
		return r, fmt.Errorf("apps of agent %s: %w", r.ID, err)
	}
	for _, a := range apps {
		r.Apps = append(r.Apps, agent.App(a))
	}
	if err := json.Unmarshal(keysJSON, &r.MetadataKeys); err != nil {
		return r, fmt.Errorf("metadata keys of agent %s: %w", r.ID, err)
	}
	if len(r.MetadataKeys) == 0 {
		r.MetadataKeys = nil
	}
	return r, nil
}
