package memstore

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// tables are what one server has. Rows are replaced, never changed in place.
type tables struct {
	// number of the newest transaction that writes.
	number int64

	// What is remembered of removals and namings is of after these revisions.
	revision, removalsAfter, namedAfter int64

	agents     map[agent.ID]agentRow
	workspaces map[agent.ID]workspaceRow
	removed    []removal
	named      []naming

	metadata map[agent.ID]map[string]agent.Metadata
	states   map[agent.ID]stateRow
	sessions map[agent.ID]sessionRow
	builds   map[agent.ID]time.Time

	pushes   map[agent.Instance]agent.PushRow
	replicas map[agent.ID]agent.Replica
	lease    agent.Lease
	reports  reportTables
	tasks    map[string]task
	statuses map[agent.ID]savedStatus
}

type agentRow struct {
	agent.Registration
	revision int64
}

type workspaceRow struct {
	agent.Workspace
	revision int64
}

// removal remembers that an agent or a workspace was removed.
type removal struct {
	workspace bool
	id        agent.ID
	revision  int64
	at        time.Time
}

// naming remembers who was named again without a change.
type naming struct {
	agents, workspaces []agent.ID
	revision           int64
}

type sessionRow struct {
	agent.SessionRecord
	number int64
}

// stateRow is the state of an agent, with the transaction that wrote each part.
type stateRow struct {
	agent.State
	// began and ended have the startup's parts, which State does not.
	began, ended                       agent.State
	lifecycle, started, ready, network int64
	appHealth                          map[agent.ID]int64
}

func newTables() *tables {
	return &tables{
		revision:   1,
		agents:     make(map[agent.ID]agentRow),
		workspaces: make(map[agent.ID]workspaceRow),
		metadata:   make(map[agent.ID]map[string]agent.Metadata),
		states:     make(map[agent.ID]stateRow),
		sessions:   make(map[agent.ID]sessionRow),
		builds:     make(map[agent.ID]time.Time),
		pushes:     make(map[agent.Instance]agent.PushRow),
		replicas:   make(map[agent.ID]agent.Replica),
		lease:      agent.Lease{IntervalFactor: 1},
		reports:    newReportTables(),
		tasks:      make(map[string]task),
		statuses:   make(map[agent.ID]savedStatus),
	}
}

func (t *tables) clone() *tables {
	c := *t
	c.agents = maps.Clone(t.agents)
	c.tasks = maps.Clone(t.tasks)
	c.statuses = maps.Clone(t.statuses)
	c.workspaces = maps.Clone(t.workspaces)
	c.removed = slices.Clone(t.removed)
	c.named = slices.Clone(t.named)
	c.metadata = make(map[agent.ID]map[string]agent.Metadata, len(t.metadata))
	for id, keys := range t.metadata {
		c.metadata[id] = maps.Clone(keys)
	}
	c.states = maps.Clone(t.states)
	c.sessions = maps.Clone(t.sessions)
	c.builds = maps.Clone(t.builds)
	c.pushes = maps.Clone(t.pushes)
	c.replicas = maps.Clone(t.replicas)
	c.reports = t.reports.clone()
	return &c
}

// The first and last moment that nanoseconds since 1970 can express.
var (
	minTime = time.Unix(0, math.MinInt64)
	maxTime = time.Unix(0, math.MaxInt64)
)

// stored is a time as it is read back; one that does not fit is rejected.
func stored(t time.Time) (time.Time, error) {
	switch {
	case t.IsZero():
		return time.Time{}, nil
	case t.Before(minTime), t.After(maxTime):
		return time.Time{}, fmt.Errorf("%w: time %v is out of range", agent.ErrRejected, t)
	}
	return time.Unix(0, t.UnixNano()).UTC(), nil
}
