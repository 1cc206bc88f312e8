package adminapi

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
)

// maxCandidates of agents that may be meant are named.
const maxCandidates = 10

// findAgent returns the agent that a text means: its UUID, OWNER/WORKSPACE or
// OWNER/WORKSPACE.AGENT. Its error is a status.
func (s *Service) findAgent(text string) (fleet.Info, error) {
	if err := s.Fleet.Ready(); err != nil {
		return fleet.Info{}, grpcserver.ErrNotLoaded
	}
	id, isID := parseID(text)
	if !isID {
		if !strings.Contains(text, "/") {
			return fleet.Info{}, grpcserver.Invalid("agent", "want a UUID, OWNER/WORKSPACE or OWNER/WORKSPACE.AGENT, got %.200q", text)
		}
		var err error
		if id, err = s.findByName(text); err != nil {
			return fleet.Info{}, err
		}
	}
	info, err := s.Fleet.Agent(id)
	switch {
	case errors.Is(err, fleet.ErrUnknownAgent):
		return fleet.Info{}, notFound(text)
	case err != nil:
		return fleet.Info{}, grpcserver.ErrNotLoaded
	}
	return info, nil
}

func notFound(text string) error {
	return status.Errorf(codes.NotFound, "agent: none is registered as %.200q", text)
}

// findByName returns the agent of the name.
func (s *Service) findByName(text string) (agent.ID, error) {
	found := firstAgents{limit: maxCandidates}
	n := 0
	for reg := range s.Fleet.All {
		if isNamed(reg, text) {
			n++
			found.add(reg)
		}
	}
	candidates := found.sorted()
	switch n {
	case 0:
		return agent.ID{}, notFound(text)
	case 1:
		return candidates[0].ID, nil
	}
	var list strings.Builder
	for i, reg := range candidates {
		if i > 0 {
			list.WriteString(", ")
		}
		fmt.Fprintf(&list, "%s (%s)", appendName(nil, reg), reg.ID)
	}
	if more := n - len(candidates); more > 0 {
		fmt.Fprintf(&list, " and %d more", more)
	}
	return agent.ID{}, status.Errorf(codes.FailedPrecondition, "agent: %.200q may be each of %d: %s", text, n, &list)
}

// isNamed returns whether a text is OWNER/WORKSPACE or OWNER/WORKSPACE.AGENT of an agent.
// Names may have points themselves.
func isNamed(reg *agent.Registration, text string) bool {
	rest, ok := strings.CutPrefix(text, reg.Workspace.OwnerUsername)
	if !ok || !strings.HasPrefix(rest, "/") {
		return false
	}
	rest, ok = strings.CutPrefix(rest[1:], reg.Workspace.Name)
	return ok && (rest == "" || rest[0] == '.' && rest[1:] == reg.Name)
}
