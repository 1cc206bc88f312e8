package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// explainSeries explains what is not as expected of an agent's series; nil: nothing.
func (s *search) explainSeries(a *subject) *Finding {
	one := slices.MinFunc(a.series, func(a, b seriesOf) int { return a.Last.Compare(b.Last) }) // of which the most is said
	name, _, _ := strings.Cut(one.Text, "{")
	switch {
	case a.in.HiddenBy != agent.ID{}:
		return s.hiddenByNewer(a, a.in.HiddenBy)
	case s.passed[name]:
		return s.hiddenByPushed(a, name)
	case one.Group != "" && !slices.ContainsFunc(a.series, func(s2 seriesOf) bool { return s.query.matchesText(s2.Group) }):
		return &Finding{
			Cause: Grouped,
			Text: fmt.Sprintf("%s contributes to %s, as series keep only the labels %s (--prometheus-aggregate-agent-stats-by)",
				a.name(), one.Group, strings.Join(s.Series.Options().GroupBy, ", ")),
			Remedy: "Select that series, or group by more labels.",
		}
	}
	if f := s.doubled(a); f != nil {
		return f
	}
	return s.stale(a, one)
}

// hiddenByNewer explains that another agent is served in place of one.
func (s *search) hiddenByNewer(a *subject, id agent.ID) *Finding {
	f := &Finding{Cause: HiddenByNewer, Text: fmt.Sprintf("%s (%s) is hidden by agent %s, which has the same labels and is newer", a.name(), a.reg.ID, id)}
	if by := s.Fleet.Registration(id); by != nil {
		f.Text += fmt.Sprintf(": it is of workspace %s and was made at %s, that one of workspace %s at %s", by.Workspace.ID,
			by.CreatedAt.UTC().Format(time.RFC3339), a.reg.Workspace.ID, a.reg.CreatedAt.UTC().Format(time.RFC3339))
	}
	f.Remedy = "Rename one of the workspaces, or remove the one that is not used."
	return f
}

// hiddenByPushed explains that a family is served from pushes alone.
func (s *search) hiddenByPushed(a *subject, family string) *Finding {
	pushers, _ := s.Pushed.Pushers(family)
	for _, p := range pushers {
		if p.Live && p.PassThrough && p.Series > 0 {
			return &Finding{
				Cause: HiddenByPushed,
				Text: fmt.Sprintf("family %s of %s is served as %s (instance %x) passes it through from coderd, in place of what agents send",
					family, a.name(), p.Replica, p.Instance),
				Remedy: "Have agents report to the service or through a bridge, or coderd pass them through, not both.",
			}
		}
	}
	return &Finding{
		Cause: HiddenByPushed, Text: fmt.Sprintf("family %s of %s is served from what coderd passes through, in place of what agents send", family, a.name()),
		Remedy: "Have agents report to the service or through a bridge, or coderd pass them through, not both.",
	}
}

// doubled explains that another replica serves the series, too; nil: none does.
func (s *search) doubled(a *subject) *Finding {
	remote := a
	for _, reg := range s.agents {
		if ident := reg.Identity(); remote.serves() || !sameLabels(&ident, &a.ident) || reg.ID == a.reg.ID {
			continue
		}
		if other, registered := s.subject(reg); registered {
			remote = other
		}
	}
	if !remote.serves() {
		return nil
	}
	replica, page := s.Place(remote.info.Session.Replica, remote.reg.ID)
	f := &Finding{Cause: Doubled, Page: page}
	f.Text = fmt.Sprintf("%s (%s) is served here, and agent %s with the same labels by replica %s", a.name(), a.reg.ID, remote.reg.ID, replica)
	f.Remedy = "Rename one of the workspaces, or remove the one that is not used."
	if remote == a {
		f.Text = fmt.Sprintf("%s is served here, and by replica %s, which has its session", a.name(), replica)
		f.Remedy = "It ends within seconds, unless the replicas do not reach each other: look at their status."
	}
	return f
}

// serves reports whether another replica serves the series of the agent.
func (a *subject) serves() bool { return a.info.Remote && a.info.Session.Reported }

// stale explains that Prometheus does not have the newest value, or that there is none;
// nil: it has it, as far as is known.
func (s *search) stale(a *subject, one seriesOf) *Finding {
	ttl := s.Series.Options().SeriesTTL
	f := &Finding{Cause: Stale}
	switch {
	case s.scraped.IsZero():
		f.Text = "no scrape was served since the process began"
		f.Remedy = "Look at the target in Prometheus."
	case a.in.First.After(s.scraped):
		f.Text = fmt.Sprintf("%s first reported at %s, after the last scrape at %s", a.name(), s.moment(a.in.First), s.moment(s.scraped))
		f.Remedy = "The next scrape has it."
	case s.now.Sub(s.scraped) > lookback:
		f.Text = fmt.Sprintf("the last scrape was at %s, and Prometheus shows nothing older than %s", s.moment(s.scraped), lookback)
		f.Remedy = "Look at the target in Prometheus."
	case one.Last.Before(a.in.Last) && !one.Last.After(s.scraped):
		f.Text = fmt.Sprintf("%s reported the series last at %s, before the last scrape at %s, and its later reports do not have it; it expires at %s",
			a.name(), s.moment(one.Last), s.moment(s.scraped), s.moment(one.Last.Add(ttl)))
		f.Remedy = "Look at why the agent does not send it any more."
	case s.now.Sub(a.in.Last) > ttl/2 && !a.in.Last.After(s.scraped):
		f.Text = fmt.Sprintf("%s reported last at %s, before the last scrape at %s; its series expire at %s",
			a.name(), s.moment(a.in.Last), s.moment(s.scraped), s.moment(a.in.Last.Add(ttl)))
		f.Remedy = "Look at whether the agent runs and reaches the service."
	default:
		return nil
	}
	return f
}

// explainState explains why a family that is computed of states has no such series of an
// agent; nil: it has, or it is not known.
func (s *search) explainState(a *subject) *Finding {
	switch {
	case s.passed[s.family]:
		return s.hiddenByPushed(a, s.family)
	case a.info.Remote:
		return s.otherReplica(a)
	}
	for _, reg := range s.agents {
		same := reg.Workspace.OwnerUsername == a.ident.Username && reg.Workspace.Name == a.ident.WorkspaceName && reg.Workspace.ID != a.reg.Workspace.ID
		if same && cmp.Or(reg.Workspace.Build.CreatedAt.Compare(a.reg.Workspace.Build.CreatedAt), reg.CreatedAt.Compare(a.reg.CreatedAt)) > 0 {
			return s.hiddenByNewer(a, reg.ID)
		}
	}
	switch {
	case s.scan.count > 0:
		return nil
	case !a.info.Connected && !a.info.Published:
		return &Finding{
			Cause: OtherReplica, Text: fmt.Sprintf("%s has no session; replicas share the states of such agents, and another one serves this one", a.name()),
			Remedy: "Ask all replicas.",
		}
	case s.scan.lines > 0:
		f := s.scan.otherLabels()
		return &f
	}
	return &Finding{
		Cause: NoReport, Text: fmt.Sprintf("%s is %s, and has nothing that the family would have", a.name(), a.info.Status),
		Remedy: "Apps come from its registration, latencies from what it says while it is connected.",
	}
}
