package aggregator

import (
	"bytes"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// naive is what the aggregator promises, computed without any of its means: maps
// of strings, and everything from scratch for each scrape.
type naive struct {
	opts   Options
	keep   []string
	agents map[agent.ID]*naiveAgent
	// sums has what counters of a group grew by.
	sums map[string]*naiveSum
	// states has what each key has, in the order in which it came.
	states []naiveState
	claims map[string]metrics.Type
}

type naiveState struct {
	key    agent.ID
	series string
	value  float64
}

type naiveAgent struct {
	id       agent.ID
	ident    agent.Identity
	epoch    int64
	open     bool
	instance agent.Instance
	fresh    bool
	reported time.Time
	series   map[string]*naiveSeries
	stats    map[string]float64
	moved    []naiveMoved
}

type naiveSeries struct {
	name   string
	labels map[string]string
	typ    agent.SampleType
	value  float64
	seen   time.Time
	// last is what a counter was counted up to; NaN: unknown.
	last float64
}

type naiveMoved struct {
	at     time.Time
	rx, tx int64
}

type naiveSum struct {
	name  string
	sum   float64
	empty time.Time // zero: it has members
}

func newNaive(opts Options) *naive {
	m := &naive{opts: opts.withDefaults(), agents: make(map[agent.ID]*naiveAgent), sums: make(map[string]*naiveSum)}
	m.keep = slices.Compact(slices.Sorted(slices.Values(opts.GroupBy)))
	if len(m.keep) == 0 {
		m.keep = []string{"agent_name", "template_name", "username", "workspace_name"}
	}
	return m
}

func (m *naive) grouped() bool { return len(m.keep) < 4 }

func (m *naive) open(id agent.ID, ident agent.Identity, s agent.Session) {
	a := m.agents[id]
	if a != nil && s.Epoch < a.epoch {
		return
	}
	if a == nil {
		a = &naiveAgent{
			id: id, instance: s.Instance, fresh: s.First,
			series: make(map[string]*naiveSeries), stats: make(map[string]float64),
		}
		m.agents[id] = a
	}
	if a.instance != s.Instance {
		a.instance, a.fresh = s.Instance, s.First
		for _, s := range a.series {
			s.last = a.firstCount()
		}
	}
	a.epoch, a.open, a.ident = s.Epoch, true, ident
}

func (a *naiveAgent) firstCount() float64 {
	if a.fresh {
		return 0
	}
	return math.NaN()
}

func (a *naiveAgent) empty() bool { return len(a.series) == 0 && len(a.stats) == 0 }

func (m *naive) close(id agent.ID, epoch int64, goodbye bool) {
	a := m.agents[id]
	if a == nil || a.epoch != epoch {
		return
	}
	a.open = false
	if goodbye || a.empty() {
		delete(m.agents, id)
	}
}

func (m *naive) relabel(id agent.ID, ident agent.Identity) {
	if a := m.agents[id]; a != nil {
		a.ident = ident
	}
}

func (m *naive) remove(id agent.ID) { delete(m.agents, id) }

func (m *naive) served(a *naiveAgent) bool {
	for _, o := range m.agents {
		same := o.ident.Username == a.ident.Username && o.ident.WorkspaceName == a.ident.WorkspaceName &&
			o.ident.AgentName == a.ident.AgentName
		if !same || o == a {
			continue
		}
		if c := o.ident.CreatedAt.Compare(a.ident.CreatedAt); c > 0 || c == 0 && bytes.Compare(o.id[:], a.id[:]) > 0 {
			return false
		}
	}
	return true
}

var (
	nameRE  = regexp.MustCompile(`\A[a-zA-Z_:][a-zA-Z0-9_:]*\z`)
	labelRE = regexp.MustCompile(`\A[a-zA-Z_][a-zA-Z0-9_]*\z`)
	ownedRE = regexp.MustCompile(`\A(coderd_|coder_|go_|process_|promhttp_|grpc_|agentstatsd_|scrape_|up\z|ALERTS\z|ALERTS_FOR_STATE\z)`)
	idenRE  = regexp.MustCompile(`\A(__.*|username|workspace_name|agent_name|template_name|le|quantile)\z`)

	forwardedTypes = map[string]agent.SampleType{
		"agent_scripts_executed_total":                agent.Counter,
		"coderd_agentstats_startup_script_seconds":    agent.Gauge,
		"coderd_agentstats_currently_reachable_peers": agent.Gauge,
	}
)

// accept returns a sample's labels; false if the sample is to be refused.
func (m *naive) accept(s agent.Sample) (map[string]string, bool) {
	want, documented := forwardedTypes[s.Name]
	switch {
	case s.Type > 2, len(s.Name) > 200, !nameRE.MatchString(s.Name), len(s.Labels) > 32:
		return nil, false
	case documented && s.Type != want, !documented && ownedRE.MatchString(s.Name):
		return nil, false
	case s.Type == agent.Counter && (math.IsNaN(s.Value) || math.IsInf(s.Value, 0) || s.Value < 0):
		return nil, false
	}
	out := make(map[string]string)
	size := 0
	for _, l := range s.Labels {
		if l.Value == "" {
			continue
		}
		size += len(l.Name) + len(l.Value)
		_, twice := out[l.Name]
		if twice || len(l.Name) > 128 || len(l.Value) > 1024 || !labelRE.MatchString(l.Name) ||
			idenRE.MatchString(l.Name) || !utf8.ValidString(l.Value) {
			return nil, false
		}
		out[l.Name] = l.Value
	}
	return out, size <= 4096
}

// report returns how much of the report is refused.
func (m *naive) report(id agent.ID, epoch int64, now time.Time, r *report) int {
	a := m.agents[id]
	if a == nil || !a.open || a.epoch != epoch {
		return 0
	}
	if now.Before(a.reported) {
		now = a.reported
	}
	a.reported = now
	refused := m.reportStats(a, now, r.stats)
	served := m.served(a)
	had := make(map[string]bool)
	for _, s := range r.samples {
		extra, ok := m.accept(s)
		key := s.Name + labels.FromMap(extra).String()
		held := a.series[key]
		if !ok || had[key] || held == nil && len(a.series) >= m.opts.MaxSeriesPerAgent {
			refused++
			continue
		}
		had[key] = true
		if held == nil {
			held = &naiveSeries{name: s.Name, labels: extra, typ: s.Type, last: a.firstCount()}
			a.series[key] = held
		}
		if held.typ != s.Type {
			held.typ, held.last = s.Type, math.NaN()
		}
		held.value, held.seen = s.Value, now
		if s.Type != agent.Counter {
			continue
		}
		if served && m.grouped() {
			sum := m.sum(a, held)
			switch {
			case math.IsNaN(held.last):
			case s.Value >= held.last:
				sum.sum += s.Value - held.last
			default:
				sum.sum += s.Value
			}
		}
		held.last = s.Value
	}
	return refused
}

func (m *naive) reportStats(a *naiveAgent, now time.Time, s agent.Stats) (refused int) {
	a.stats = make(map[string]float64)
	checked := func(v, limit int64) (int64, bool) {
		if v < 0 || v > limit {
			refused++
			return 0, false
		}
		return v, true
	}
	set := func(name string, v int64) {
		if v, ok := checked(v, 1<<30); ok {
			a.stats["coderd_agentstats_"+name] = float64(v)
		}
	}
	rx, _ := checked(s.RxBytes, 1<<50)
	tx, _ := checked(s.TxBytes, 1<<50)
	a.moved = append(a.moved, naiveMoved{now, rx, tx})
	var rxSum, txSum int64
	for _, b := range a.moved {
		if b.at.After(now.Add(-max(time.Minute, m.opts.ReportInterval))) {
			rxSum, txSum = rxSum+b.rx, txSum+b.tx
		}
	}
	a.stats["coderd_agentstats_rx_bytes"], a.stats["coderd_agentstats_tx_bytes"] = float64(rxSum), float64(txSum)
	set("connection_count", s.ConnectionCount)
	set("session_count_vscode", s.Sessions.VSCode)
	set("session_count_jetbrains", s.Sessions.JetBrains)
	set("session_count_reconnecting_pty", s.Sessions.ReconnectingPTY)
	set("session_count_ssh", s.Sessions.SSH)
	switch l := s.MedianLatencyMS; {
	case math.IsNaN(l) || math.IsInf(l, 1):
		refused++
	case l > 0:
		a.stats["coderd_agentstats_connection_median_latency_seconds"] = l / 1000
	}
	return refused
}

// seriesLabels are those with which a series is served.
func (m *naive) seriesLabels(a *naiveAgent, name string, extra map[string]string) labels.Labels {
	out := map[string]string{model.MetricNameLabel: name}
	identity := map[string]string{
		"agent_name": a.ident.AgentName, "template_name": a.ident.TemplateName,
		"username": a.ident.Username, "workspace_name": a.ident.WorkspaceName,
	}
	for _, l := range m.keep {
		if identity[l] != "" && (l != "template_name" || !strings.HasPrefix(name, "coderd_agentstats_") || forwardedTypes[name] != 0) {
			out[l] = identity[l]
		}
	}
	for n, v := range extra {
		out[n] = v
	}
	return labels.FromMap(out)
}

func (m *naive) sum(a *naiveAgent, s *naiveSeries) *naiveSum {
	key := m.seriesLabels(a, s.name, s.labels).String()
	if m.sums[key] == nil {
		m.sums[key] = &naiveSum{name: s.name}
	}
	return m.sums[key]
}

// setState keeps the place of what the key has already.
func (m *naive) setState(key agent.ID, series []agent.Series) {
	had := m.states
	m.states = nil
	var added []naiveState
	value := make(map[string]float64)
	for _, s := range series {
		if !strings.HasPrefix(s.Family, "coderd_agents_") {
			continue
		}
		set := map[string]string{model.MetricNameLabel: s.Family}
		for _, l := range s.Labels {
			if l.Value != "" {
				set[l.Name] = strings.ToValidUTF8(l.Value, "\uFFFD")
			}
		}
		name := labels.FromMap(set).String()
		if _, twice := value[name]; !twice {
			value[name] = s.Value
			added = append(added, naiveState{key, name, s.Value})
		}
	}
	for _, s := range had {
		v, stays := value[s.series]
		switch {
		case s.key != key:
			m.states = append(m.states, s)
		case stays:
			m.states = append(m.states, naiveState{key, s.series, v})
			added = slices.DeleteFunc(added, func(o naiveState) bool { return o.series == s.series })
		}
	}
	m.states = append(m.states, added...)
}

// claimed reports whether a family of agents meets one that others serve.
func (m *naive) claimed(name string) bool {
	if !ownedRE.MatchString(name) || forwardedTypes[name] != 0 {
		for claim, t := range m.claims {
			long := t == metrics.Histogram || t == metrics.Summary
			if name == claim || long && (name == claim+"_count" || name == claim+"_sum" || name == claim+"_bucket") {
				return true
			}
		}
	}
	return false
}

// settle brings the sums up to date after an event at now.
func (m *naive) settle(now time.Time) {
	live := make(map[*naiveSum]bool)
	for _, a := range m.agents {
		if !m.grouped() || !m.served(a) {
			continue
		}
		for _, s := range a.series {
			if s.typ == agent.Counter {
				m.sum(a, s)
			}
			if sum := m.sums[m.seriesLabels(a, s.name, s.labels).String()]; sum != nil {
				live[sum] = true
			}
		}
	}
	for _, sum := range m.sums {
		switch {
		case live[sum]:
			sum.empty = time.Time{}
		case sum.empty.IsZero():
			sum.empty = now
		}
	}
}

func (m *naive) expire(now time.Time) {
	for id, a := range m.agents {
		over := func(seen time.Time) bool { return !seen.Add(m.opts.SeriesTTL).After(now) }
		if over(a.reported) {
			a.stats = make(map[string]float64)
		}
		for key, s := range a.series {
			if over(s.seen) {
				delete(a.series, key)
				a.fresh = a.fresh && s.typ != agent.Counter
			}
		}
		if !a.open && a.empty() {
			delete(m.agents, id)
		}
	}
	for key, sum := range m.sums {
		if !sum.empty.IsZero() && !sum.empty.Add(24*time.Hour).After(now) {
			delete(m.sums, key)
		}
	}
	m.settle(now)
}

// scrape returns what is to be served.
func (m *naive) scrape() scraped {
	out := newScraped()
	types := make(map[string]map[agent.SampleType]bool)
	members := make(map[string][]naiveMember)
	for _, a := range m.agents {
		if !m.served(a) {
			continue
		}
		for _, s := range a.series {
			if types[s.name] == nil {
				types[s.name] = make(map[agent.SampleType]bool)
			}
			types[s.name][s.typ] = true
			key := m.seriesLabels(a, s.name, s.labels).String()
			members[key] = append(members[key], naiveMember{family: s.name, value: s.value})
		}
		for name, v := range a.stats {
			key := m.seriesLabels(a, name, nil).String()
			members[key] = append(members[key], naiveMember{
				family: name, value: v, weight: a.stats["coderd_agentstats_connection_count"],
			})
		}
	}
	for _, s := range m.sums {
		if types[s.name] == nil {
			types[s.name] = map[agent.SampleType]bool{agent.Counter: true}
		}
	}
	for name, t := range types {
		out.types[name] = model.MetricTypeUnknown
		if len(t) == 1 && t[agent.Counter] {
			out.types[name] = model.MetricTypeCounter
		} else if len(t) == 1 && t[agent.Gauge] {
			out.types[name] = model.MetricTypeGauge
		}
	}
	for key, of := range members {
		if m.grouped() && out.types[of[0].family] == model.MetricTypeCounter {
			continue
		}
		out.values[key] = math.Float64bits(canonical(combine(of)))
	}
	for key, s := range m.sums {
		if out.types[s.name] == model.MetricTypeCounter {
			out.values[key] = math.Float64bits(canonical(s.sum))
		}
	}
	for name := range out.types {
		if m.claimed(name) {
			delete(out.types, name)
			maps.DeleteFunc(out.values, func(key string, _ uint64) bool { return strings.Contains(key, `__name__="`+name+`"`) })
		}
	}
	for _, s := range m.states {
		if _, taken := out.values[s.series]; !taken {
			out.values[s.series] = math.Float64bits(canonical(s.value))
		}
	}
	return out
}

type naiveMember struct {
	family        string
	value, weight float64
}

func combine(of []naiveMember) float64 {
	if len(of) == 1 {
		return of[0].value
	}
	how := metrics.GroupSum
	if d, ok := metrics.Documented(of[0].family); ok {
		how = d.Group
	}
	var sum, weighted, weights float64
	largest := math.NaN()
	for _, m := range of {
		sum += m.value
		weighted += m.value * m.weight
		weights += m.weight
		if math.IsNaN(largest) || m.value > largest {
			largest = m.value
		}
	}
	switch {
	case how == metrics.GroupMax:
		return largest
	case how == metrics.GroupWeightedMean && weights > 0:
		return weighted / weights
	case how == metrics.GroupWeightedMean:
		return sum / float64(len(of))
	}
	return sum
}
