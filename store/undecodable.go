package store

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Kinds of rows that can be undecodable: their tables.
const (
	kindWorkspaces = "workspaces"
	kindAgents     = "agents"
	kindNamed      = "named"
	kindStates     = "agent_states"
	kindSessions   = "sessions"
	kindMetadata   = "metadata"
	kindPushes     = "pushes"
	kindBatches    = "report_batches"
)

var kinds = [...]string{kindWorkspaces, kindAgents, kindNamed, kindStates, kindSessions, kindMetadata, kindPushes, kindBatches}

// skip reports the row that rows is at, if why is not nil: it cannot be decoded. It
// returns an error, why, only if the read has ended: then nothing is known of the row.
func (s *Store) skip(ctx context.Context, rows *sql.Rows, kind, key string, why error) error {
	if why == nil {
		return nil
	}
	if _, ended := rows.Columns(); ended != nil {
		return why
	}
	s.undecodable.Report(ctx, kind, key, why, time.Now())
	return nil
}

// idKey names a row by its id, and by what else may be in its key.
func idKey(id agent.ID, more ...string) string {
	if id == (agent.ID{}) {
		return ""
	}
	return strings.Join(append([]string{id.String()}, more...), " ")
}
