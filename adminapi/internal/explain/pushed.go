package explain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/util/strutil"

	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed"
)

// explainPushed explains why a family that coderd pushes is not served.
func (s *search) explainPushed() {
	pushers, serves := s.Pushed.Pushers(s.family)
	if len(pushers) == 0 {
		if metrics.IsCoderds(s.family) {
			s.add(Finding{
				Cause: NoReport, Text: fmt.Sprintf("family %s is coderd's, and no instance of coderd, nor a bridge, has pushed it", s.family),
				Remedy: "Have coderd push, or a bridge scrape it; agentstatsd status has the certificates and tokens that it takes.",
			})
		}
		return
	}
	has := func(p pushed.Pusher) bool { return p.Series > 0 }
	newest := pushers[0]
	switch {
	case s.scan.lines > 0: // with other labels
	case !slices.ContainsFunc(pushers, has):
		r := newest.Refused[0]
		s.add(Finding{
			Cause: Refused, Text: fmt.Sprintf("%s (instance %x) was refused family %s at %s by rule %s: %s", newest.Replica, newest.Instance, s.family,
				s.moment(newest.PushedAt), r.Reason, r.Message),
			Remedy: "docs/metrics.md has the rules for what coderd pushes.",
		})
	case !serves:
		s.add(Finding{
			Cause: OtherReplica, Text: fmt.Sprintf("family %s is pushed, and the replica that leads serves what is pushed, which this one is not", s.family),
			Remedy: "Ask all replicas: agentstatsd status says which one leads.",
		})
	case !newest.Live && !newest.Lasting:
		s.add(Finding{
			Cause: Expired, Text: fmt.Sprintf("family %s was pushed last by %s (instance %x) at %s, and its gauges went at %s", s.family, newest.Replica, newest.Instance,
				s.moment(newest.PushedAt), s.moment(newest.ExpiresAt)),
			Remedy: "Look at whether coderd, or the bridge, runs and reaches the service.",
		})
	}
}

const (
	// similarity of a name that is suggested, from 0 to 1.
	similarity = 0.9
	// maxSuggested names are suggested.
	maxSuggested = 3
)

// unknownFamily explains that there is no family of the name, and suggests others.
func (s *search) unknownFamily() Finding {
	if s.query.name == "" {
		return Finding{Cause: UnknownFamily, Text: "no family has a series that matches, nor is known otherwise", Remedy: "Select by the name of a family."}
	}
	f := Finding{
		Cause: UnknownFamily, Text: fmt.Sprintf("no family is called %s: no agent here sends it or was refused it, coderd does not push it, and it is not documented", s.family),
		Remedy: "If an agent on another replica has it, ask that one; a new family is there from the first report that has it.",
	}
	if names := s.similarNames(); len(names) > 0 {
		f.Text += "; similar: " + strings.Join(names, ", ")
	}
	return f
}

// similarNames returns the known names that are the most similar to that of the family.
func (s *search) similarNames() []string {
	type scored struct {
		name  string
		score float64
	}
	var all []scored
	matcher := strutil.NewJaroWinklerMatcher(s.family)
	suggest := func(name string) {
		if score := matcher.Score(name); score >= similarity && !slices.ContainsFunc(all, func(o scored) bool { return o.name == name }) {
			all = append(all, scored{name, score})
		}
	}
	for _, f := range metrics.Catalogue() {
		suggest(f.Name)
	}
	for _, name := range s.Series.FamilyNames() {
		suggest(name)
	}
	families, _ := s.Pushed.Served()
	for _, f := range families {
		suggest(f.Name)
	}
	for _, name := range slices.Collect(maps.Keys(s.own)) {
		suggest(name)
	}
	slices.SortFunc(all, func(a, b scored) int { return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.name, b.name)) })
	var names []string
	for _, one := range all[:min(len(all), maxSuggested)] {
		names = append(names, one.name)
	}
	return names
}
