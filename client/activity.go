package client

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// WorkspaceUse is that a workspace was used.
type WorkspaceUse struct {
	WorkspaceID uuid.UUID
	// At is when an agent of it last reported a connection or a session.
	At time.Time
}

// Activity derives from reports which workspaces are in use: at most one use for each
// workspace and interval. Its methods may be called at any time by any goroutine.
type Activity struct {
	interval time.Duration

	mu sync.Mutex
	// Guarded by mu: the workspaces that were used within the interval, or whose
	// last use is pending.
	used map[uuid.UUID]*workspaceUse
}

// workspaceUse is the use of one workspace.
type workspaceUse struct {
	at      time.Time
	due     time.Time // of the next use that is returned
	pending bool
}

// NewActivity returns an Activity without any use. It is for one watch.
func NewActivity(interval time.Duration) *Activity {
	return &Activity{interval: interval, used: make(map[uuid.UUID]*workspaceUse)}
}

// Add adds the entries of a batch, and returns the uses that are due now, ordered by
// workspace. A use within an interval of the one before is pending until a later call,
// which may have no entries. So a session that ended within an interval is returned,
// too. Workspaces that were not used for the interval are removed.
func (a *Activity) Add(now time.Time, agents []*agentstatsv1.AgentStats) (due []WorkspaceUse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, entry := range agents {
		id, err := uuid.FromBytes(entry.GetWorkspaceId())
		if entry.GetLastUsedAt() == nil || err != nil {
			continue
		}
		u := a.used[id]
		if u == nil {
			u = &workspaceUse{due: now}
			a.used[id] = u
		}
		if at := entry.GetLastUsedAt().AsTime(); at.After(u.at) {
			u.at, u.pending = at, true
		}
	}
	for id, u := range a.used {
		switch {
		case u.due.After(now):
		case u.pending:
			due = append(due, WorkspaceUse{WorkspaceID: id, At: u.at})
			u.pending, u.due = false, now.Add(a.interval)
		default:
			delete(a.used, id)
		}
	}
	slices.SortFunc(due, func(a, b WorkspaceUse) int { return bytes.Compare(a.WorkspaceID[:], b.WorkspaceID[:]) })
	return due
}
