package store

import (
	"context"
	"database/sql"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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

const (
	// maxKnownUndecodable is how many rows are known as reported. 100,000 are 3 MB.
	// What is beyond it is skipped, but not counted.
	maxKnownUndecodable = 100_000
	// maxUndecodableLogged rows an hour are named in the log.
	maxUndecodableLogged = 100
	undecodablePeriod    = time.Hour
)

// undecodable reports rows that are skipped as they cannot be decoded: somebody
// wrote them by hand, or a disk did. Each is counted and logged once in the life of
// the process, however often it is read.
type undecodable struct {
	log  *slog.Logger
	rows *prometheus.CounterVec
	seed maphash.Seed

	mu sync.Mutex
	// Guarded by mu.
	known map[uint64]struct{}
	// agents are those whose registration cannot be decoded. Nobody knows them, so
	// their states and sessions are left out, too. Whoever follows reads again what is
	// of agents that it does not know yet.
	agents map[agent.ID]struct{}
	began  time.Time // of the period
	logged int       // in the period
}

func newUndecodable(m *metrics, log *slog.Logger) *undecodable {
	return &undecodable{
		log:    log,
		rows:   m.UndecodableRows,
		seed:   maphash.MakeSeed(),
		known:  make(map[uint64]struct{}),
		agents: make(map[agent.ID]struct{}),
	}
}

// report counts and logs a row, unless it did before. key names the row within its
// table; empty: that cannot be decoded either. why is how decoding it ended.
func (u *undecodable) report(ctx context.Context, kind, key string, why error, now time.Time) {
	row := kind + "\x00" + key
	if key == "" {
		row += "\x00" + why.Error()
		key = "unknown"
	}
	hash := maphash.String(u.seed, row)
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, known := u.known[hash]; known || len(u.known) == maxKnownUndecodable {
		return
	}
	u.known[hash] = struct{}{}
	u.rows.WithLabelValues(kind).Inc()
	if now.Sub(u.began) >= undecodablePeriod {
		u.began, u.logged = now, 0
	}
	switch u.logged++; {
	case u.logged <= maxUndecodableLogged:
		u.log.ErrorContext(ctx, "a row of the database cannot be decoded and is skipped", "kind", kind, "row", key, "error", why)
	case u.logged == maxUndecodableLogged+1:
		u.log.ErrorContext(ctx, "more rows of the database cannot be decoded: for an hour they are counted only")
	}
}

// setAgent notes whether an agent's registration is one that cannot be decoded.
func (u *undecodable) setAgent(id agent.ID, is bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if is {
		u.agents[id] = struct{}{}
	} else {
		delete(u.agents, id)
	}
}

// agent reports whether an agent's registration cannot be decoded.
func (u *undecodable) agent(id agent.ID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, is := u.agents[id]
	return is
}

// replaced returns the agents that a change removes, with those that it registers anew
// while their registration cannot be decoded. Whoever made the change did not know
// them, so their incarnation must be a new one.
func (u *undecodable) replaced(c agent.Change) []agent.ID {
	removed := slices.Clone(c.RemovedAgents)
	for i := range c.Agents {
		if u.agent(c.Agents[i].ID) {
			removed = append(removed, c.Agents[i].ID)
		}
	}
	return removed
}

// mended notes a change that is committed: its agents can be decoded, or are gone.
func (u *undecodable) mended(c agent.Change) {
	for i := range c.Agents {
		u.setAgent(c.Agents[i].ID, false)
	}
	for _, id := range c.RemovedAgents {
		u.setAgent(id, false)
	}
}

// skip reports the row that rows is at, if why is not nil: it cannot be decoded. It
// returns an error, why, only if the read has ended: then nothing is known of the row.
func (s *Store) skip(ctx context.Context, rows *sql.Rows, kind, key string, why error) error {
	if why == nil {
		return nil
	}
	if _, ended := rows.Columns(); ended != nil {
		return why
	}
	s.undecodable.report(ctx, kind, key, why, time.Now())
	return nil
}

// idKey names a row by its id, and by what else may be in its key.
func idKey(id agent.ID, more ...string) string {
	if id == (agent.ID{}) {
		return ""
	}
	return strings.Join(append([]string{id.String()}, more...), " ")
}
