package explain

import (
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/coder/agentstatsd/agent"
)

// Cause is why a series is missing, hidden, stale or doubled. Others rely on the words.
type Cause string

// The causes, the most telling first.
const (
	// Refused: the service refuses what the agent, or coderd, sends.
	Refused Cause = "refused"
	// OverLimit: the share of the agent, of its owner or of all agents is used up.
	OverLimit Cause = "over_limit"
	// TypeConflict: the agent sends a type that others, or the catalogue, do not.
	TypeConflict Cause = "type_conflict"
	// HiddenByPushed: a family that coderd pushes is served in place of the agents'.
	HiddenByPushed Cause = "hidden_by_pushed"
	// HiddenByNewer: a newer agent with equal labels is served in place of this one.
	HiddenByNewer Cause = "hidden_by_newer"
	// Superseded: a rebuild took the place of the agent.
	Superseded Cause = "superseded"
	// NotRegistered: no agent with these labels is registered.
	NotRegistered Cause = "not_registered"
	// OtherReplica: another replica serves it.
	OtherReplica Cause = "other_replica"
	// Grouped: series keep fewer labels than the selector asks for.
	Grouped Cause = "grouped"
	// Expired: no report came for the series' TTL.
	Expired Cause = "expired"
	// Doubled: two replicas serve the series.
	Doubled Cause = "doubled"
	// Stale: Prometheus does not have the newest of it yet, or there is nothing newer.
	Stale Cause = "stale"
	// NoReport: no report has had it.
	NoReport Cause = "no_report"
	// OtherLabels: series of the name are there, with other labels.
	OtherLabels Cause = "other_labels"
	// UnknownFamily: nobody has a family of the name.
	UnknownFamily Cause = "unknown_family"
)

// ranks are the causes in their order.
var ranks = []Cause{
	Refused, OverLimit, TypeConflict, HiddenByPushed, HiddenByNewer, Superseded, NotRegistered, OtherReplica, Grouped, Expired, Doubled, Stale,
	NoReport, OtherLabels, UnknownFamily,
}

// Finding is one reason.
type Finding struct {
	Cause Cause
	// Text is a sentence, and Remedy another one; empty: nothing has to be done.
	Text, Remedy string
	// Agent that it is about; zero: none.
	Agent agent.ID
	// Page is the URL of one that has more; empty: there is none.
	Page string
}

// add adds a finding, whose text is a clause yet. What is the same for several agents is
// one finding, and about none of them.
func (s *search) add(f Finding) {
	for i := range s.findings {
		old := &s.findings[i]
		if old.Cause != f.Cause || old.Text != f.Text || old.Remedy != f.Remedy {
			continue
		}
		if old.Agent != f.Agent {
			old.Agent, old.Page = agent.ID{}, ""
		}
		return
	}
	s.findings = append(s.findings, f)
}

// conclude returns the explanation.
func (s *search) conclude() *Explanation {
	slices.SortStableFunc(s.findings, func(a, b Finding) int { return slices.Index(ranks, a.Cause) - slices.Index(ranks, b.Cause) })
	x := &Explanation{Served: s.scan.served, Count: s.scan.count, Conclusion: s.conclusion()}
	x.Findings = s.findings[:min(len(s.findings), maxFindings)]
	for i := range x.Findings {
		x.Findings[i].Text = sentence(x.Findings[i].Text)
	}
	return x
}

func (s *search) conclusion() string {
	served := countOf(s.scan.count, "series matches and is served", "series match and are served")
	if len(s.findings) == 0 {
		return sentence(served)
	}
	text := s.findings[0].Text
	if more := len(s.findings) - 1; more > 0 {
		text += fmt.Sprintf(" (and %s)", countOf(more, "other finding", "other findings"))
	}
	if s.matched > len(s.agents) {
		text += fmt.Sprintf("; %d of %d agents that match were looked at", len(s.agents), s.matched)
	}
	if s.scan.count == 0 {
		return sentence("no series that matches is served: " + text)
	}
	return sentence(served + ", but " + text)
}

// sentence returns a clause as a sentence.
func sentence(clause string) string {
	first, size := utf8.DecodeRuneInString(clause)
	return string(unicode.ToUpper(first)) + clause[size:] + "."
}

// countOf returns a number with what it counts.
func countOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

// moment returns a time as people read it.
func (s *search) moment(at time.Time) string {
	age := s.now.Sub(at).Round(time.Second)
	if age < 0 {
		return at.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("%s (%s ago)", at.UTC().Format(time.RFC3339), age)
}

// sameLabels reports whether two agents have the labels that hide one of them.
func sameLabels(a, b *agent.Identity) bool {
	return a.Username == b.Username && a.WorkspaceName == b.WorkspaceName && a.AgentName == b.AgentName
}

// nameOf returns OWNER/WORKSPACE.AGENT.
func nameOf(i *agent.Identity) string {
	return i.Username + "/" + i.WorkspaceName + "." + i.AgentName
}
