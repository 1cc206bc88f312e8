package explain

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/refusals"
)

// findAgents finds the registered agents that the selector means.
func (s *search) findAgents(ctx context.Context) error {
	looked := 0
	for reg := range s.Fleet.All {
		if looked++; looked%1000 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		ident := reg.Identity()
		switch n := s.query.matchesAgent(&ident); {
		case n == len(identityLabels):
			if s.matched++; len(s.agents) < maxAgents {
				s.agents = append(s.agents, reg.Clone())
			}
		case n > s.closest:
			s.closest, s.closestAgents = n, 1
		case n == s.closest:
			s.closestAgents++
		}
	}
	if s.matched > len(s.agents) && s.family != "" {
		s.addRefusedAgents()
	}
	return nil
}

// addRefusedAgents puts agents first that were refused the family lately: of very many
// agents they have the reason.
func (s *search) addRefusedAgents() {
	var first []*agent.Registration
	for _, last := range s.Refusals.Newest(maxAgents) {
		if s.refusalIn(&last) == nil {
			continue
		}
		if reg := s.Fleet.Registration(last.Agent); reg != nil {
			if ident := reg.Identity(); s.query.matchesAgent(&ident) == len(identityLabels) {
				first = append(first, reg)
			}
		}
	}
	isFirst := func(reg *agent.Registration) bool {
		return slices.ContainsFunc(first, func(f *agent.Registration) bool { return f.ID == reg.ID })
	}
	all := slices.Concat(first, slices.DeleteFunc(s.agents, isFirst))
	s.agents = all[:min(len(all), maxAgents)]
}

// subject is an agent with what is known of it here.
type subject struct {
	reg   *agent.Registration
	ident agent.Identity
	info  fleet.Info
	// inMemory is false if it has no session here, and no series.
	inMemory bool
	in       aggregator.Inspection
	// series of the family that match, and others.
	series, others []aggregator.InspectedSeries
	refused        refusals.Last
}

// name returns what the agent is called in a text.
func (a *subject) name() string { return "agent " + nameOf(&a.ident) }

// explainAgents explains what each agent has, or why it has nothing. isUnknown is true if
// no agent has the family: then agents that just do not send it say nothing.
func (s *search) explainAgents(ctx context.Context, isUnknown bool) {
	if s.matched == 0 {
		s.explainAbsent()
		return
	}
	for _, reg := range s.agents {
		if ctx.Err() != nil {
			return
		}
		a, registered := s.subject(reg)
		if !registered {
			continue // it was removed meanwhile
		}
		var f *Finding
		switch {
		case isStates(s.family):
			f = s.explainState(a)
		case len(a.series) > 0:
			f = s.explainSeries(a)
		default:
			f = s.explainMissing(a)
		}
		switch {
		case f == nil:
		case f.Cause == NoReport && isUnknown && !a.in.First.IsZero():
		case s.matched > fewAgents && s.scan.count > 0 && !tellsOfMany(f.Cause):
		default:
			f.Agent = reg.ID
			s.add(*f)
		}
	}
}

// tellsOfMany reports whether a cause is told of one agent of very many, of which others
// are served: what is wrong with it, but not that it is off, or elsewhere.
func tellsOfMany(c Cause) bool {
	switch c {
	case Refused, OverLimit, TypeConflict, HiddenByPushed, HiddenByNewer, Doubled:
		return true
	}
	return false
}

func (s *search) subject(reg *agent.Registration) (a *subject, registered bool) {
	info, err := s.Fleet.Agent(reg.ID)
	if err != nil {
		return nil, false
	}
	a = &subject{reg: info.Registration, ident: info.Registration.Identity(), info: info}
	a.refused, _ = s.Refusals.Of(reg.ID)
	a.in, a.inMemory = s.Series.Inspect(reg.ID, s.family)
	for _, one := range a.in.Series {
		if s.query.matchesText(one.Text) {
			a.series = append(a.series, one)
		} else {
			a.others = append(a.others, one)
		}
	}
	return a, true
}

// explainAbsent explains that no registered agent matches.
func (s *search) explainAbsent() {
	for _, d := range slices.Backward(s.Fleet.Departed()) {
		if s.query.matchesAgent(&d.Identity) < len(identityLabels) {
			continue
		}
		if by := s.successor(d.WorkspaceID, &d.Identity); by != nil {
			s.addSuperseded(d.ID, &d.Identity, d.At, by)
			return
		}
		s.add(Finding{
			Cause: NotRegistered, Text: fmt.Sprintf("agent %s was deregistered at %s", nameOf(&d.Identity), s.moment(d.At)),
			Remedy: "If its workspace runs, coderd, or the bridge, has to register it.", Agent: d.ID,
		})
		return
	}
	text := fmt.Sprintf("no registered agent matches {%s}", s.query.identityUpTo(len(identityLabels)))
	if of := s.query.identityUpTo(s.closest); of != "" {
		text += fmt.Sprintf("; {%s} matches %s", of, countOf(s.closestAgents, "agent", "agents"))
	}
	s.add(Finding{Cause: NotRegistered, Text: text, Remedy: "Compare the labels with agentstatsd agents; an agent of a workspace that runs is registered by coderd, or the bridge."})
}

// successor returns an agent of a workspace that was made after another one, of that name
// if there is one; nil: there is none.
func (s *search) successor(workspace agent.ID, of *agent.Identity) (by *agent.Registration) {
	for reg := range s.Fleet.All {
		if reg.Workspace.ID == workspace && reg.CreatedAt.After(of.CreatedAt) && (by == nil || reg.Name == of.AgentName) {
			by = reg.Clone()
		}
	}
	return by
}

// addSuperseded adds that an agent gave way to one that was made later.
func (s *search) addSuperseded(id agent.ID, ident *agent.Identity, at time.Time, by *agent.Registration) {
	to := by.Identity()
	remedy := "Look for the series of that agent."
	if sameLabels(ident, &to) {
		remedy = "Its series begin with its first report."
	}
	s.add(Finding{
		Cause: Superseded,
		Text: fmt.Sprintf("agent %s, made at %s, was superseded at %s by a rebuild of its workspace, whose agent is %s, made at %s",
			nameOf(ident), ident.CreatedAt.UTC().Format(time.RFC3339), s.moment(at), nameOf(&to), to.CreatedAt.UTC().Format(time.RFC3339)),
		Remedy: remedy, Agent: id,
	})
}
