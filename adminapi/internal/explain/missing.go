package explain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/refusals"
)

// seriesOf is a series of an agent.
type seriesOf = aggregator.InspectedSeries

// explainMissing explains why an agent has no series that matches.
func (s *search) explainMissing(a *subject) *Finding {
	if a.info.Remote {
		return s.otherReplica(a)
	}
	if r := s.refusalIn(&a.refused); r != nil && !r.At.Before(a.in.Last) {
		return s.refused(a, r)
	}
	if f := s.typeConflict(a); f != nil {
		return f
	}
	if a.in.First.IsZero() {
		return s.noSeries(a)
	}
	if len(a.others) > 0 && s.family != "" {
		return &Finding{
			Cause: OtherLabels, Text: fmt.Sprintf("%s has %s of the name, none with these labels, for example %s",
				a.name(), countOf(len(a.others), "series", "series"), a.others[0].Text),
			Remedy: "Compare the labels with those of the example.",
		}
	}
	for i := range a.refused.Refusals {
		r := &a.refused.Refusals[i]
		// Only the first few names are kept.
		if limit, ok := s.limitOf(a, r); ok && !r.At.Before(a.in.Last) {
			return s.overLimit(a, r, limit, "it may be one of those that are refused: ")
		}
	}
	f := &Finding{
		Cause: NoReport, Text: fmt.Sprintf("%s reports, the last time at %s, but its report does not have it", a.name(), s.moment(a.in.Last)),
		Remedy: fmt.Sprintf("Look at what the agent sends: agentstatsd watch %s.", nameOf(&a.ident)),
	}
	if r := s.refusalIn(&a.refused); r != nil {
		f.Text += fmt.Sprintf("; it was refused at %s: %s", s.moment(r.At), r.Problem)
	}
	return f
}

// otherReplica explains that another replica has the session.
func (s *search) otherReplica(a *subject) *Finding {
	session := &a.info.Session
	replica, page := s.Place(session.Replica, a.reg.ID)
	f := &Finding{Cause: OtherReplica, Page: page}
	f.Text = fmt.Sprintf("%s has its session on replica %s since %s, which serves its series", a.name(), replica, s.moment(time.Unix(0, session.Epoch)))
	if !session.Reported {
		f.Text += " from its first report on, which has not come yet"
	}
	f.Remedy = "Ask that replica, and have Prometheus scrape all of them."
	return f
}

// noSeries explains that an agent without a session elsewhere has no series at all.
func (s *search) noSeries(a *subject) *Finding {
	ttl := s.Series.Options().SeriesTTL
	expired := slices.IndexFunc(a.refused.Refusals, func(r refusals.Refusal) bool { return r.Reason == refusals.ReasonExpired })
	f := &Finding{Cause: Expired, Remedy: "Look at whether the agent runs and reaches the service."}
	switch {
	case !a.in.Last.IsZero():
		f.Text = fmt.Sprintf("series of %s expired at %s, as its last report came at %s and series have a TTL of %s (--series-ttl)",
			a.name(), s.moment(a.in.Last.Add(ttl)), s.moment(a.in.Last), ttl)
		return f
	case expired >= 0 && !a.info.Connected:
		f.Text = fmt.Sprintf("series of %s expired at %s, as it sent no report for their TTL of %s (--series-ttl)",
			a.name(), s.moment(a.refused.Refusals[expired].At), ttl)
		return f
	}
	if r := lastOfSession(a.refused.Refusals); r != nil {
		return s.refused(a, r)
	}
	f.Cause = NoReport
	switch {
	case a.info.Connected:
		f.Text = fmt.Sprintf("%s is connected since %s, and has not reported yet; it reports each %s", a.name(), s.moment(time.Unix(0, a.info.Session.Epoch)), s.Series.Options().ReportInterval)
		f.Remedy = "Wait for its first report; without --prometheus-collect-agent-stats none is taken in."
		s.explainRebuilt(a)
	case a.info.LastSeen.IsZero():
		f.Text = fmt.Sprintf("%s has not connected here; its status is %s", a.name(), a.info.Status)
		s.explainRebuilt(a)
	default:
		f.Text = fmt.Sprintf("%s has no session, was heard of last at %s, and has no series any more", a.name(), s.moment(a.info.LastSeen))
		if _, before := s.Fleet.Sessions(a.reg.ID); len(before) > 0 {
			f.Text += fmt.Sprintf("; its last session here ended by %s", before[0].End)
		}
	}
	return f
}

// explainRebuilt adds that the agent has taken the place of another one with its name.
func (s *search) explainRebuilt(a *subject) {
	if s.departed == nil {
		s.departed = s.Fleet.Departed()
	}
	for _, d := range slices.Backward(s.departed) {
		if d.WorkspaceID == a.reg.Workspace.ID && sameLabels(&d.Identity, &a.ident) && d.ID != a.reg.ID {
			s.addSuperseded(d.ID, &d.Identity, d.At, a.reg)
			return
		}
	}
}

// lastOfSession returns why the last stream of an agent was refused, or ended; nil: it is
// not known. Such a refusal has no names.
func lastOfSession(all []refusals.Refusal) *refusals.Refusal {
	if len(all) > 0 && len(all[0].Names) == 0 && all[0].Reason != refusals.ReasonExpired {
		return &all[0]
	}
	return nil
}

// refusalIn returns the newest refusal that names the family; nil: none does.
func (s *search) refusalIn(last *refusals.Last) *refusals.Refusal {
	if s.family == "" {
		return nil
	}
	for i := range last.Refusals {
		if slices.Contains(last.Refusals[i].Names, s.family) {
			return &last.Refusals[i]
		}
	}
	return nil
}

// refused explains a refusal, by its reason.
func (s *search) refused(a *subject, r *refusals.Refusal) *Finding {
	if limit, ok := s.limitOf(a, r); ok {
		return s.overLimit(a, r, limit, "")
	}
	switch metrics.Reason(r.Reason) {
	case aggregator.ReasonPushedFamily:
		return s.reserved(a)
	case aggregator.ReasonWrongType:
		if f := s.typeConflict(a); f != nil {
			return f
		}
		return s.wrongType(a, r)
	}
	return &Finding{
		Cause: Refused, Text: fmt.Sprintf("%s was refused family %s at %s by rule %s: %s", a.name(), s.family, s.moment(r.At), r.Reason, r.Problem),
		Remedy: "Change what the agent sends; docs/metrics.md has the rules.",
	}
}

// limitOf returns the limit that a refusal exceeds; false: it is no limit's.
func (s *search) limitOf(a *subject, r *refusals.Refusal) (aggregator.UsedLimit, bool) {
	return s.Series.LimitOf(metrics.Reason(r.Reason), a.in.Usage)
}

// overLimit explains whose share of a limit is used up.
func (s *search) overLimit(a *subject, r *refusals.Refusal, l aggregator.UsedLimit, maybe string) *Finding {
	whose := map[aggregator.Scope]string{
		aggregator.ScopeAgent: "its own share", aggregator.ScopeOwner: "the share of its owner " + a.ident.Username, aggregator.ScopeAll: "the limit of all agents",
	}[l.Scope]
	remedies := map[aggregator.Scope]string{
		aggregator.ScopeAgent: "Have the agent send less, or raise", aggregator.ScopeOwner: "Look at which of the owner's agents has the most (agentstatsd cardinality), or raise",
		aggregator.ScopeAll: "Look at who has the most (agentstatsd cardinality), or raise",
	}
	return &Finding{
		Cause: OverLimit,
		Text: fmt.Sprintf("%s is refused series, as %s is used up, %d of %d %s: %s%s (last at %s, %s in all)", a.name(), whose, l.Used, l.Limit, l.What,
			maybe, r.Problem, s.moment(r.At), countOf(int(r.Count), "sample", "samples")),
		Remedy: fmt.Sprintf("%s %s.", remedies[l.Scope], l.Flag),
	}
}

// typeConflict explains that an agent sends another type than the family has; nil: it does
// not.
func (s *search) typeConflict(a *subject) *Finding {
	types, known := s.Series.TypesOf(s.family)
	if !known || types.Documented || !a.in.Sent || a.in.Sends == types.Type {
		return nil
	}
	if types.Reserved {
		return s.reserved(a)
	}
	return &Finding{
		Cause: TypeConflict,
		Text: fmt.Sprintf("%s sends family %s as a %s, which %s, while it is served as a %s, which %s", a.name(), s.family,
			a.in.Sends, countOf(types.Agents[a.in.Sends], "agent does", "agents do"), types.Type, countOf(types.Agents[types.Type], "agent sends", "agents send")),
		Remedy: "Have all agents send one type; that of most agents is served.",
	}
}

// reserved explains that coderd pushes a family that has the name, or lines of that name.
func (s *search) reserved(a *subject) *Finding {
	f := &Finding{Cause: HiddenByPushed, Remedy: "Have the agent use another name, or the type that coderd pushes."}
	f.Text = fmt.Sprintf("%s sends family %s as a %s", a.name(), s.family, a.in.Sends)
	names := []string{s.family}
	for _, suffix := range lineSuffixes {
		if base, cut := strings.CutSuffix(s.family, suffix); cut {
			names = append(names, base)
		}
	}
	for _, name := range names {
		if pushers, _ := s.Pushed.Pushers(name); len(pushers) > 0 {
			p := pushers[0]
			f.Text += fmt.Sprintf(", but %s (instance %x) pushes %s as a %s, the last time at %s", p.Replica, p.Instance, name, p.Type, s.moment(p.PushedAt))
			return f
		}
	}
	f.Text += ", but coderd pushed one with lines of that name minutes ago"
	return f
}

// wrongType explains a refusal for a type where the agent has nothing of the family.
func (s *search) wrongType(a *subject, r *refusals.Refusal) *Finding {
	f := &Finding{Cause: TypeConflict, Remedy: "Have the agent send the type that the family has."}
	f.Text = fmt.Sprintf("%s was refused family %s at %s: %s", a.name(), s.family, s.moment(r.At), r.Problem)
	if doc, ok := metrics.Documented(s.family); ok {
		f.Text += fmt.Sprintf(", which is documented as a %s", doc.Type)
	}
	return f
}

// explainRefused explains that agents were refused a family that nobody has.
func (s *search) explainRefused() {
	for _, last := range s.Refusals.Newest(maxRefused) {
		if r := s.refusalIn(&last); r != nil {
			if reg := s.Fleet.Registration(last.Agent); reg != nil {
				if a, registered := s.subject(reg); registered {
					f := s.refused(a, r)
					f.Agent = reg.ID
					s.add(*f)
				}
			}
		}
	}
}

// maxRefused agents are looked at for what they were refused last.
const maxRefused = 1000
