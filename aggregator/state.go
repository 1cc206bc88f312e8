package aggregator

import (
	"fmt"
	"strings"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/aggregator/internal/states"
	"github.com/coder/agentstatsd/metrics"
)

// stateNames are the families that SetStates fills.
var stateNames = [...]string{
	"coderd_agents_apps",
	"coderd_agents_connection_latencies_seconds",
	"coderd_agents_connections",
	"coderd_agents_up",
}

// infoFamily is one of the service's own, which an option asks for.
var infoFamily = &metrics.Family{
	Name: "agentstatsd_workspace_info", Type: metrics.Gauge, Owner: metrics.OwnerService,
	Labels: []string{"organization_name", "template_name", "template_version", "username", "workspace_name"},
	Help:   "1 for each registered workspace, with its organization, its template and the version of that.",
}

// newStates returns the states, with their families added to fams.
func newStates(fams *families, info bool) *states.States {
	lines := make(map[string]*arena.Family, len(stateNames))
	for _, name := range stateNames {
		lines[name] = fams.addDocumented(name).lines
	}
	if info {
		f := fams.addDocumented(infoFamily.Name)
		f.documented = infoFamily
		lines[f.name] = f.lines
	}
	return states.New(&fams.agg.generations, lines)
}

// SetStates replaces the series of keys, agents or workspaces, one key after the other. A
// scrape shows all of the new series and none of the removed ones if it begins later, and
// the reverse if it began before. Series with the labels of an old one keep their line,
// which is cheap. Other calls wait meanwhile: callers split what is more than some 100 keys.
//
// The series are of the families coderd_agents_*, and with Options.WorkspaceInfo of
// agentstatsd_workspace_info. If one is not, the error names its
// family, and the others are taken. A series with the labels of an earlier one in the
// list is ignored. If several keys have a series with equal labels, the first key's
// value is served until that key has it no more. The series do not expire and are not
// grouped. They count as series, but none is refused: the caller bounds them. states
// is not kept.
func (a *Aggregator) SetStates(states []agent.KeySeries) error {
	added, unserved := a.states.Set(states)
	a.series.Add(int64(added))
	if unserved != "" {
		return fmt.Errorf("family %q is not one of %v", unserved, a.states.Families())
	}
	return nil
}

// familyOf returns the name of the family of a line that begins with prefix.
func familyOf(prefix string) string { return prefix[:strings.IndexAny(prefix, "{ ")] }
