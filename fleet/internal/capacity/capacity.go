// Package capacity bounds how many registrations a replica takes in, and their memory.
package capacity

import (
	"errors"
	"fmt"
)

// Errors of what would exceed a limit.
var (
	ErrTooMany  = errors.New("too many registrations")
	ErrTooLarge = errors.New("too large registrations")
)

// Reasons of limits: values of labels.
const (
	ReasonMaxAgents = "max_agents"
	ReasonMaxBytes  = "max_bytes"
)

// Limits are the most that is taken in. All are above 0.
type Limits struct {
	Agents int   // and likewise workspaces
	Bytes  int64 // of memory
}

// Use is what the registrations of a replica take.
type Use struct {
	Agents, Workspaces int
	// KeptBytes estimates the memory of what is kept of them.
	KeptBytes int64
	// AgentBytes and WorkspaceBytes are what each takes beside that.
	AgentBytes, WorkspaceBytes int64
}

// Bytes estimates the memory of all.
func (u Use) Bytes() int64 {
	return u.KeptBytes + int64(u.Agents)*u.AgentBytes + int64(u.Workspaces)*u.WorkspaceBytes
}

// Check refuses a use above a limit, in the place of the present one. A use above a lowered
// limit passes if it does not grow. Errors: ErrTooMany, ErrTooLarge.
func (u Use) Check(now Use, l Limits) error {
	switch {
	case u.Agents > l.Agents && u.Agents > now.Agents:
		return fmt.Errorf("%w: want at most %d agents (--max-agents), got %d", ErrTooMany, l.Agents, u.Agents)
	case u.Workspaces > l.Agents && u.Workspaces > now.Workspaces:
		return fmt.Errorf("%w: want at most %d workspaces (--max-agents), got %d", ErrTooMany, l.Agents, u.Workspaces)
	case u.Bytes() > l.Bytes && u.Bytes() > now.Bytes():
		return fmt.Errorf("%w: want at most %d bytes in memory of all (--max-registrations-bytes), got %d", ErrTooLarge, l.Bytes, u.Bytes())
	}
	return nil
}

// Excess is a limit that the registrations exceed; zero: none.
type Excess struct {
	Reason      string
	Limit, Used int64
}

// Excess returns the limit that is exceeded.
func (u Use) Excess(l Limits) Excess {
	switch {
	case u.Agents > l.Agents:
		return Excess{ReasonMaxAgents, int64(l.Agents), int64(u.Agents)}
	case u.Workspaces > l.Agents:
		return Excess{ReasonMaxAgents, int64(l.Agents), int64(u.Workspaces)}
	case u.Bytes() > l.Bytes:
		return Excess{ReasonMaxBytes, l.Bytes, u.Bytes()}
	}
	return Excess{}
}
