// Package observations decides when what coderd saw of an agent's state is served: while the
// agent has no session, and had none since. A lifecycle is served also later that was said
// to coderd and not to the service. It has no state of its own.
package observations

import (
	"cmp"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/families"
	"github.com/coder/agentstatsd/fleet/internal/kept"
)

// maxAge is for how long it counts: whoever looks does so each few minutes.
const maxAge = time.Hour

// Keep returns the observation that a registration with the next one leaves its agent with.
// That is the known one while nothing has changed: the database is not written each few
// minutes. While the agent has a session, only another lifecycle is a change. endedAt is
// when the agent's last session ended; zero: it had none.
func Keep(known, next *agent.Observation, said *agent.State, hasSession bool, endedAt time.Time) agent.Observation {
	switch {
	case !next.At.After(known.At), hasSession && !known.At.IsZero() && lifecycle(said, next) == lifecycle(said, known):
		return *known
	case next.SameState(known) && known.At.After(endedAt) && next.At.Sub(known.At) < maxAge/2:
		return *known
	}
	return *next
}

// Counts reports whether what was observed at some time counts, of an agent without a
// session.
func Counts(at, endedAt, now time.Time) bool {
	return at.After(endedAt) && now.Sub(at) < maxAge
}

// Status returns the status of an agent. online: it has a session; seen: it had one.
// counts: its observation does.
func Status(reg *kept.Registration, online, seen, counts bool, now time.Time) agent.Status {
	status, _ := reg.ObservedStatus()
	switch o := (agent.Observation{Status: status}); {
	case !counts:
		return families.Status(reg.CreatedAt(), reg.ConnectionTimeout(), online, seen || o.WasConnected(), now)
	case status == agent.StatusConnecting: // it times out meanwhile
		return families.Status(reg.CreatedAt(), reg.ConnectionTimeout(), false, false, now)
	default:
		return status
	}
}

// State returns the state that is served: the observation if that counts, else what the
// agent said. The lifecycle is the observed one also if that is the later one.
func State(said *agent.State, o *agent.Observation, counts bool) *agent.State {
	later := isLater(said, o)
	if !counts && !later {
		return said
	}
	shown := *said
	if later || o.Lifecycle.State != "" {
		shown.Lifecycle = o.Lifecycle
	}
	if counts {
		// The registered health of apps is of the same moment.
		shown.AppHealth, shown.AppHealthOrder, shown.Network = nil, nil, o.Network
	}
	return &shown
}

// lifecycle returns the lifecycle that is served while the agent has a session.
func lifecycle(said *agent.State, o *agent.Observation) agent.LifecycleState {
	if isLater(said, o) {
		return o.Lifecycle.State
	}
	return said.Lifecycle.State
}

// isLater reports whether the agent reached the observed lifecycle after the one that it
// said here. It says each once, and the relay of that moment may have ended. What was said
// after the look is later. Of most states coderd knows since when, too.
func isLater(said *agent.State, o *agent.Observation) bool {
	switch known := said.Lifecycle; {
	case o.Lifecycle.State == "", o.Lifecycle.State == known.State:
		return false
	case known.State == "":
		return true
	case o.Lifecycle.State == agent.LifecycleCreated, o.At.UnixNano() <= cmp.Or(said.LifecycleOrder.Said, said.LifecycleOrder.Epoch):
		return false
	default:
		return o.Lifecycle.ChangedAt.IsZero() || o.Lifecycle.ChangedAt.After(known.ChangedAt)
	}
}

// Startup returns how the newest start of the agent went: as it said, or else as coderd
// saw. A start that ended long before the look is none. When a service begins to be used,
// the builds of all workspaces would count at once.
func Startup(said *agent.State, o *agent.Observation) agent.Startup {
	s, l := said.Startup, o.Lifecycle
	switch l.State {
	case agent.LifecycleReady, agent.LifecycleStartTimeout, agent.LifecycleStartError:
		if s.ReadyAt.IsZero() && l.ChangedAt.After(s.StartedAt) && o.At.Sub(l.ChangedAt) < maxAge {
			s.ReadyAt, s.Result = l.ChangedAt, l.State
		}
	}
	return s
}
