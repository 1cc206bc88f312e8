// Package undecodable knows the rows that reads of a database skip.
package undecodable

import (
	"context"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

const (
	// maxKnown is how many rows are known as reported. 100,000 are 3 MB.
	// What is beyond it is skipped, but not counted.
	maxKnown = 100_000
	// maxLogged rows an hour are named in the log.
	maxLogged = 100
	period    = time.Hour
)

// Rows reports rows that are skipped as they cannot be decoded: somebody
// wrote them by hand, or a disk did. Each is counted and logged once in the life of
// the process, however often it is read.
type Rows struct {
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

// New returns a Rows that counts in rows, by kind.
func New(rows *prometheus.CounterVec, log *slog.Logger) *Rows {
	return &Rows{
		log:    log,
		rows:   rows,
		seed:   maphash.MakeSeed(),
		known:  make(map[uint64]struct{}),
		agents: make(map[agent.ID]struct{}),
	}
}

// Report counts and logs a row, unless it did before. key names the row within its
// table; empty: that cannot be decoded either. why is how decoding it ended.
func (u *Rows) Report(ctx context.Context, kind, key string, why error, now time.Time) {
	row := kind + "\x00" + key
	if key == "" {
		row += "\x00" + why.Error()
		key = "unknown"
	}
	hash := maphash.String(u.seed, row)
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, known := u.known[hash]; known || len(u.known) == maxKnown {
		return
	}
	u.known[hash] = struct{}{}
	u.rows.WithLabelValues(kind).Inc()
	if now.Sub(u.began) >= period {
		u.began, u.logged = now, 0
	}
	switch u.logged++; {
	case u.logged <= maxLogged:
		u.log.ErrorContext(ctx, "a row of the database cannot be decoded and is skipped", "kind", kind, "row", key, "error", why)
	case u.logged == maxLogged+1:
		u.log.ErrorContext(ctx, "more rows of the database cannot be decoded: for an hour they are counted only")
	}
}

// SetAgent notes whether an agent's registration is one that cannot be decoded.
func (u *Rows) SetAgent(id agent.ID, is bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if is {
		u.agents[id] = struct{}{}
	} else {
		delete(u.agents, id)
	}
}

// Agent reports whether an agent's registration cannot be decoded.
func (u *Rows) Agent(id agent.ID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, is := u.agents[id]
	return is
}

// Replaced returns the agents that a change removes, with those that it registers anew
// while their registration cannot be decoded. Whoever made the change did not know
// them, so their incarnation must be a new one.
func (u *Rows) Replaced(c agent.Change) []agent.ID {
	removed := slices.Clone(c.RemovedAgents)
	for i := range c.Agents {
		if u.Agent(c.Agents[i].ID) {
			removed = append(removed, c.Agents[i].ID)
		}
	}
	return removed
}

// Mended notes a change that is committed: its agents can be decoded, or are gone.
func (u *Rows) Mended(c agent.Change) {
	for i := range c.Agents {
		u.SetAgent(c.Agents[i].ID, false)
	}
	for _, id := range c.RemovedAgents {
		u.SetAgent(id, false)
	}
}
