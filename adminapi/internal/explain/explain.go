// Package explain finds out why a series is missing from a scrape, hidden, stale or
// doubled. It looks at what the components have in memory, from the registration of an
// agent to what is written for Prometheus.
package explain

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/refusals"
)

// Series has the series of agents. aggregator.Aggregator is one.
type Series interface {
	Options() aggregator.Options
	Inspect(id agent.ID, family string) (aggregator.Inspection, bool)
	TypesOf(family string) (aggregator.FamilyTypes, bool)
	// LimitOf returns false for a reason that is no limit's.
	LimitOf(reason metrics.Reason, u aggregator.Usage) (aggregator.UsedLimit, bool)
	FamilyNames() []string
	WriteFamilies(w io.Writer, p aggregator.Pushed, wants func(name string) bool) error
}

// Pushed has what coderd pushes. pushed.Families is one.
type Pushed interface {
	aggregator.Pushed
	Pushers(family string) (all []pushed.Pusher, serves bool)
}

// Refusals has what agents were refused. refusals.Refusals is one.
type Refusals interface {
	Of(id agent.ID) (refusals.Last, bool)
	Newest(limit int) []refusals.Last
}

// Explainer explains. Its fields are not changed while it does. Place returns the name of
// a replica and the URL of its page, as far as they are known.
type Explainer struct {
	Fleet    *fleet.Fleet
	Series   Series
	Pushed   Pushed
	Refusals Refusals
	Metrics  prometheus.Gatherer
	Place    func(replica, agent agent.ID) (name, page string)
}

// Explanation is why series are missing, hidden, stale or doubled.
type Explanation struct {
	// Findings are the most telling first, at most 20; none: the series are served.
	Findings []Finding
	// Served are the first series that match and are served, of Count.
	Served []string
	Count  int
	// Conclusion is one sentence.
	Conclusion string
}

const (
	maxFindings = 20
	// maxAgents are looked at. Each takes a few us, or 1 ms if it has very many series.
	maxAgents = 200
	// fewAgents are meant one by one. Of more, only what is wrong is told.
	fewAgents = 20
	// lookback is for how long Prometheus shows a series that it scraped last.
	lookback = 5 * time.Minute
)

// Families of the service itself that are read here.
const (
	lastScrapeFamily = "agentstatsd_last_scrape_timestamp_seconds"
	infoFamily       = "agentstatsd_workspace_info"
)

// search is one explanation in the making.
type search struct {
	*Explainer
	query *query
	now   time.Time
	scan  *scan
	// own are the service's own families that have series.
	own map[string]*dto.MetricFamily
	// family that the selector names; empty: none.
	family string
	// passed are the families that are served from pushes alone.
	passed map[string]bool
	// scraped is when the last scrape was; zero: there was none.
	scraped time.Time

	// matched is the number of agents that match, agents are the first of them.
	matched int
	agents  []*agent.Registration
	// closest is how many of identityLabels an agent matches that does not match all, one
	// after the other, and how many agents match as many.
	closest, closestAgents int
	// departed are the agents that were removed last; nil: they were not looked at yet.
	departed []fleet.Departed

	findings []Finding
}

// Explain explains why series that match a selector are not in a scrape, or not as
// expected. It takes as long as a scrape of the families, and a while for each agent. It
// returns the error of the context if that ends first. An error of the selector wraps
// ErrSelector.
func (e *Explainer) Explain(ctx context.Context, selector string) (*Explanation, error) {
	q, err := parse(selector)
	if err != nil {
		return nil, err
	}
	s := &search{Explainer: e, query: q, now: time.Now(), own: make(map[string]*dto.MetricFamily)}
	gathered, _ := e.Metrics.Gather() // what could be gathered is served, too
	for _, f := range gathered {
		s.own[f.GetName()] = f
	}
	_, s.passed = e.Pushed.Served()
	s.family = family(q.name, func(name string) bool { return s.owner(name) != "" })
	s.readOwn()
	if s.scan, err = e.scanned(ctx, q, s.own, s.passed); err != nil {
		return nil, err
	}
	if err := s.explain(ctx); err != nil {
		return nil, err
	}
	return s.conclude(), nil
}

// readOwn reads what the service's own metrics say.
func (s *search) readOwn() {
	for _, m := range s.own[lastScrapeFamily].GetMetric() {
		if at := m.GetGauge().GetValue(); at > 0 {
			s.scraped = time.UnixMicro(int64(at * 1e6))
		}
	}
}

// explain finds out whose the family is, and looks there.
func (s *search) explain(ctx context.Context) error {
	owner := s.owner(s.family)
	switch {
	case s.hasOtherLabels():
		return nil
	case s.family == infoFamily && owner == "":
		s.add(Finding{
			Cause: UnknownFamily, Text: fmt.Sprintf("family %s is served with --prometheus-workspace-info only, which is off", infoFamily),
			Remedy: "Start the service with it.",
		})
		return nil
	case owner == metrics.OwnerAgents, owner == "" && len(s.query.identity) > 0:
		if err := s.findAgents(ctx); err != nil {
			return err
		}
		s.explainAgents(ctx, owner == "" && s.family != "")
	case owner == "":
		s.explainRefused()
	}
	if s.scan.count > 0 || len(s.findings) > 0 {
		return ctx.Err()
	}
	if s.explainPushed(); len(s.findings) > 0 {
		return ctx.Err()
	}
	switch {
	case s.scan.lines > 0:
		s.add(s.scan.otherLabels())
	case owner != "":
		s.add(Finding{Cause: NoReport, Text: fmt.Sprintf("family %s is known, and has no series yet", s.family)})
	default:
		s.add(s.unknownFamily())
	}
	return ctx.Err()
}

// isStates reports whether a family is computed of the states of agents and workspaces.
func isStates(family string) bool {
	_, documented := metrics.Documented(family)
	return documented && strings.HasPrefix(family, "coderd_agents_") || family == infoFamily
}

// owner returns who gives the family its values: agents, also if the service computes it
// of them; empty: it is not known, or it is not one family.
func (s *search) owner(family string) metrics.Owner {
	if s.own[family] != nil {
		return metrics.OwnerService
	}
	if f, ok := metrics.Documented(family); ok {
		if isStates(family) || strings.HasPrefix(family, "coderd_agentstats_") {
			return metrics.OwnerAgents
		}
		return f.Owner
	}
	if f, ok := metrics.Newer(family); ok {
		return f.Owner
	}
	if _, ok := s.Series.TypesOf(family); ok {
		return metrics.OwnerAgents
	}
	if pushers, _ := s.Pushed.Pushers(family); len(pushers) > 0 {
		return metrics.OwnerCoderd
	}
	return ""
}

// hasOtherLabels adds that the service never gives the family labels that the selector
// asks for, and reports whether that is so.
func (s *search) hasOtherLabels() bool {
	f, ok := metrics.Documented(s.family)
	if !ok || f.Owner != metrics.OwnerService || s.scan.count > 0 {
		return false
	}
	for _, m := range s.query.matchers {
		// coderd_agents_up has template_version if an option says so.
		if m.Name == model.MetricNameLabel || m.Name == "le" || m.Name == "template_version" || slices.Contains(f.Labels, m.Name) || m.Matches("") {
			continue
		}
		s.add(Finding{
			Cause: OtherLabels, Text: fmt.Sprintf("family %s has no label %s, but %s", f.Name, m.Name, strings.Join(f.Labels, ", ")),
			Remedy: "Leave the label out of the selector.",
		})
		return true
	}
	return false
}
