package aggregator

import (
	"bytes"
	"maps"
	"math"
	"math/big"
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
	// types has what the families are that are not documented.
	types map[string]agent.SampleType
	// sums has what counters of a group grew by.
	sums map[string]*naiveSum
	// states has what each key has, in the order in which it came.
	states []naiveState
	// reserved are the types that coderd pushes; 3: none that agents can send.
	reserved map[string]agent.SampleType
	// pushed is what coderd pushes.
	pushed scraped
}

type naiveState struct {
	key    agent.SeriesKey
	series string
	labels map[string]string
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
	// order has the keys of the series that the last report had, in its order,
	// and absent those of the others, as they became so.
	order, absent []string
	families      map[string]*naiveFamily
	stats         map[string]float64
	apps          agent.AppCounts
	moved         []naiveMoved
}

// naiveFamily is what an agent says of a family.
type naiveFamily struct {
	typ             agent.SampleType
	contested, kept bool
}

type naiveSeries struct {
	name   string
	labels map[string]string
	typ    agent.SampleType
	value  float64
	seen   time.Time
	// last is what a counter was counted up to; NaN: unknown.
	last float64
	// dead is true once the family has another type.
	dead bool
}

type naiveMoved struct {
	at     time.Time
	rx, tx int64
}

type naiveSum struct {
	name  string
	sum   *big.Float
	empty time.Time // zero: it has contributors
}

func newNaive(opts Options) *naive {
	m := &naive{
		opts: opts.withDefaults(), agents: make(map[agent.ID]*naiveAgent),
		types: make(map[string]agent.SampleType), sums: make(map[string]*naiveSum),
	}
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
			series: make(map[string]*naiveSeries), families: make(map[string]*naiveFamily), stats: make(map[string]float64),
		}
		m.agents[id] = a
	}
	if s.Relayed {
		a.instance = s.Instance
	} else if a.instance != s.Instance {
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
	known := len(a.series)
	for _, key := range slices.Concat(a.absent, a.order) {
		if a.series[key].dead {
			a.drop(key)
		}
	}
	had := make(map[string]bool)
	var order []string
	var deferred []agent.Sample
	try := func(s agent.Sample) naiveOutcome {
		key, outcome := m.ingest(a, s, now, had, order)
		if outcome == naiveTaken {
			had[key] = true
			order = append(order, key)
		}
		return outcome
	}
	for _, s := range r.samples {
		switch outcome := try(s); {
		case outcome == naiveNoRoom && len(deferred) < known:
			deferred = append(deferred, s)
		case outcome != naiveTaken:
			refused++
		}
	}
	old := slices.Concat(a.absent, a.order)
	for _, s := range deferred {
		outcome := try(s)
		for outcome == naiveNoRoom {
			at := slices.IndexFunc(old, func(key string) bool { return !had[key] && a.series[key] != nil })
			if at < 0 {
				break
			}
			a.drop(old[at])
			a.tidy()
			m.chooseTypes()
			outcome = try(s)
		}
		if outcome != naiveTaken {
			refused++
		}
	}
	a.absent = slices.DeleteFunc(old, func(key string) bool { return had[key] || a.series[key] == nil })
	for _, key := range a.absent {
		if a.series[key].dead {
			a.drop(key)
		}
	}
	a.absent = slices.DeleteFunc(a.absent, func(key string) bool { return a.series[key] == nil })
	a.order = order
	for _, of := range a.families {
		of.kept, of.contested = of.contested, false
	}
	a.tidy()
	return refused
}

// naiveOutcome is what becomes of a sample.
type naiveOutcome int

const (
	naiveRefused naiveOutcome = iota
	naiveNoRoom
	naiveTaken
)

// ingest ingests a sample of a report that had some already.
func (m *naive) ingest(a *naiveAgent, s agent.Sample, now time.Time, had map[string]bool, order []string) (string, naiveOutcome) {
	extra, ok := m.accept(s)
	key := s.Name + labels.FromMap(extra).String()
	if !ok || had[key] {
		return key, naiveRefused
	}
	_, documented := forwardedTypes[s.Name]
	agree := func() bool {
		of := a.families[s.Name]
		switch {
		case of == nil && len(a.families) >= m.opts.MaxFamiliesPerAgent:
			return false
		case of == nil:
			a.families[s.Name] = &naiveFamily{typ: s.Type}
		case of.typ != s.Type && !of.contested:
			of.contested = true
			if !slices.ContainsFunc(order, func(key string) bool { return a.series[key].name == s.Name }) {
				of.typ = s.Type
			}
		}
		m.chooseTypes()
		return true
	}
	known := a.series[key]
	if known != nil && !known.dead && known.typ != s.Type {
		agree()
		if !known.dead {
			a.families[s.Name].contested = true
			return key, naiveRefused
		}
	}
	last := a.firstCount()
	if known != nil && known.dead {
		a.drop(key)
		known, last = nil, math.NaN()
	}
	if known == nil {
		if len(a.series) >= m.opts.MaxSeriesPerAgent || !agree() {
			return key, naiveNoRoom
		}
		if !documented && m.types[s.Name] != s.Type {
			a.families[s.Name].contested = true
			return key, naiveRefused
		}
		known = &naiveSeries{name: s.Name, labels: extra, typ: s.Type, last: last}
		a.series[key] = known
		if m.chooseTypes(); known.dead {
			delete(a.series, key)
			a.families[s.Name].contested = true
			return key, naiveRefused
		}
	}
	known.value, known.seen = s.Value, now
	if s.Type != agent.Counter || m.grouped() && s.Value > 1<<53 {
		return key, naiveTaken
	}
	if m.served(a) && m.grouped() && !math.IsNaN(known.last) {
		grown := s.Value - known.last
		if grown < 0 {
			grown = s.Value
		}
		sum := m.sum(a, known)
		sum.sum.Add(sum.sum, big.NewFloat(grown))
	}
	known.last = s.Value
	return key, naiveTaken
}

// drop forgets a series, whose counts are not known any more.
func (a *naiveAgent) drop(key string) {
	a.fresh = a.fresh && a.series[key].typ != agent.Counter
	delete(a.series, key)
}

// tidy forgets families of which the agent has nothing.
func (a *naiveAgent) tidy() {
	for name, of := range a.families {
		if !of.kept && !slices.ContainsFunc(slices.Collect(maps.Values(a.series)), func(s *naiveSeries) bool { return s.name == name }) {
			delete(a.families, name)
		}
	}
}

// chooseTypes gives each family the type that coderd pushes, or else that most agents say.
func (m *naive) chooseTypes() {
	said := make(map[string]*[4]int)
	for _, a := range m.agents {
		for name, of := range a.families {
			if _, documented := forwardedTypes[name]; documented {
				continue
			}
			if said[name] == nil {
				said[name] = new([4]int)
			}
			said[name][of.typ]++
		}
	}
	for name := range m.reserved {
		if said[name] == nil {
			said[name] = new([4]int)
		}
	}
	for name, agents := range said {
		was := m.types[name]
		if typ, reserved := m.reserved[name]; reserved {
			m.types[name] = typ
		} else {
			most := agents[was]
			if m.grouped() && m.hasOrphan(name) {
				most = max(most, 1)
			}
			for t, n := range agents {
				if n > most {
					most, m.types[name] = n, agent.SampleType(t)
				}
			}
		}
		if m.types[name] == was {
			continue
		}
		for _, a := range m.agents {
			for _, s := range a.series {
				s.dead = s.dead || s.name == name
			}
		}
		maps.DeleteFunc(m.sums, func(_ string, s *naiveSum) bool { return s.name == name })
	}
}

// hasOrphan reports whether a sum of the family has outlived its agents.
func (m *naive) hasOrphan(name string) bool {
	live := make(map[*naiveSum]bool)
	for _, a := range m.agents {
		for _, s := range a.series {
			if s.name == name && !s.dead && m.served(a) {
				live[m.sums[m.seriesLabels(a, s.name, s.labels).String()]] = true
			}
		}
	}
	for _, s := range m.sums {
		if s.name == name && !live[s] {
			return true
		}
	}
	return false
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
	for app, n := range s.Apps {
		if a.apps[app] = n; n < 0 || n > 1<<30 {
			a.apps[app] = 0
		}
	}
	rx, _ := checked(s.RxBytes, 1<<50)
	tx, _ := checked(s.TxBytes, 1<<50)
	a.moved = append(a.moved, naiveMoved{now, rx, tx})
	var rxSum, txSum int64
	for _, b := range a.moved {
		if b.at.After(now.Add(-max(time.Minute, m.opts.ReportInterval))) {
			rxSum, txSum = min(rxSum, math.MaxInt64-b.rx)+b.rx, min(txSum, math.MaxInt64-b.tx)+b.tx
		}
	}
	a.stats["coderd_agentstats_rx_bytes"], a.stats["coderd_agentstats_tx_bytes"] = float64(rxSum), float64(txSum)
	set("connection_count", s.ConnectionCount)
	set("session_count_vscode", s.Sessions.VSCode)
	set("session_count_jetbrains", s.Sessions.JetBrains)
	set("session_count_reconnecting_pty", s.Sessions.ReconnectingPTY)
	set("session_count_ssh", s.Sessions.SSH)
	switch l := s.MedianLatencyMS; {
	case math.IsNaN(l) || l > 24*60*60*1000:
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
		m.sums[key] = &naiveSum{name: s.name, sum: new(big.Float).SetPrec(2000)}
	}
	return m.sums[key]
}

// setState keeps the place of what the key has already.
func (m *naive) setState(key agent.SeriesKey, series []agent.Series) {
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
			added = append(added, naiveState{key, name, set, s.Value})
		}
	}
	for _, s := range had {
		v, stays := value[s.series]
		switch {
		case s.key != key:
			m.states = append(m.states, s)
		case stays:
			m.states = append(m.states, naiveState{key, s.series, s.labels, v})
			added = slices.DeleteFunc(added, func(o naiveState) bool { return o.series == s.series })
		}
	}
	m.states = append(m.states, added...)
}

// reserve has coderd push families.
func (m *naive) reserve(names map[string]metrics.Type, served scraped) {
	m.pushed, m.reserved = served, make(map[string]agent.SampleType)
	ofAgents := slices.ContainsFunc(m.keep, func(l string) bool { return l != "template_name" })
	for name, t := range names {
		if typ, ok := map[metrics.Type]agent.SampleType{
			metrics.Untyped: agent.Untyped, metrics.Counter: agent.Counter, metrics.Gauge: agent.Gauge,
		}[t]; ok && ofAgents {
			m.reserved[name] = typ
		} else {
			m.reserved[name] = 3
		}
	}
	for name, t := range names {
		if t == metrics.Histogram || t == metrics.Summary {
			m.reserved[name+"_count"], m.reserved[name+"_sum"], m.reserved[name+"_bucket"] = 3, 3, 3
		}
	}
}

// reconcile updates the types and the sums after an event at now.
func (m *naive) reconcile(now time.Time) {
	m.chooseTypes()
	live := make(map[*naiveSum]bool)
	for _, a := range m.agents {
		if !m.grouped() || !m.served(a) {
			continue
		}
		for _, s := range a.series {
			if s.dead {
				continue
			}
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
	for key, sum := range m.sums {
		if !sum.empty.IsZero() && !sum.empty.Add(24*time.Hour).After(now) {
			delete(m.sums, key)
		}
	}
	m.reconcile(now) // a type that only sums stood for goes before what expires with it
	ids := slices.SortedFunc(maps.Keys(m.agents), func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range ids {
		a := m.agents[id]
		over := func(seen time.Time) bool { return !seen.Add(m.opts.SeriesTTL).After(now) }
		if over(a.reported) {
			a.stats, a.apps = make(map[string]float64), agent.AppCounts{}
			for _, of := range a.families {
				of.kept = false
			}
		}
		for key, s := range a.series {
			if over(s.seen) {
				a.drop(key)
			}
		}
		gone := func(key string) bool { return a.series[key] == nil }
		a.order, a.absent = slices.DeleteFunc(a.order, gone), slices.DeleteFunc(a.absent, gone)
		a.tidy()
		m.reconcile(now)
	}
	for _, id := range ids {
		if a := m.agents[id]; !a.open && a.empty() {
			delete(m.agents, id)
		}
	}
	m.reconcile(now)
}

// scrape returns what is to be served.
func (m *naive) scrape() scraped {
	out := newScraped()
	contributors := make(map[string][]naiveMember)
	for _, a := range m.agents {
		if !m.served(a) {
			continue
		}
		for _, s := range a.series {
			if s.dead {
				continue
			}
			key := m.seriesLabels(a, s.name, s.labels).String()
			contributors[key] = append(contributors[key], naiveMember{family: s.name, typ: s.typ, value: s.value})
		}
		for app, n := range a.apps {
			if n > 0 {
				key := m.seriesLabels(a, sessionsFamily.Name, appLabels(app)).String()
				contributors[key] = append(contributors[key], naiveMember{family: sessionsFamily.Name, typ: agent.Gauge, value: float64(n)})
			}
		}
		for name, v := range a.stats {
			key := m.seriesLabels(a, name, nil).String()
			contributors[key] = append(contributors[key], naiveMember{
				family: name, typ: agent.Gauge, value: v, weight: a.stats["coderd_agentstats_connection_count"],
			})
		}
	}
	for key, of := range contributors {
		if m.grouped() && of[0].typ == agent.Counter {
			continue
		}
		if !m.grouped() {
			out.values[key] = math.Float64bits(metrics.CanonicalValue(of[0].value))
			out.types[of[0].family] = naiveType(of[0].typ)
			continue
		}
		of = slices.DeleteFunc(of, func(o naiveMember) bool { return !(math.Abs(o.value) <= 1<<53) })
		if len(of) > 0 {
			out.values[key] = math.Float64bits(metrics.CanonicalValue(combine(of)))
			out.types[of[0].family] = naiveType(of[0].typ)
		}
	}
	for key, s := range m.sums {
		// Modulo 2^53.
		rounds, _ := new(big.Float).Quo(s.sum, big.NewFloat(1<<53)).Int(nil)
		whole := new(big.Float).SetPrec(2000).SetInt(rounds)
		v, _ := new(big.Float).Sub(s.sum, whole.Mul(whole, big.NewFloat(1<<53))).Float64()
		out.types[s.name] = model.MetricTypeCounter
		out.values[key] = math.Float64bits(v)
	}
	maps.Copy(out.types, m.pushed.types)
	maps.Copy(out.values, m.pushed.values)
	for _, s := range m.states {
		if _, accepted := out.values[s.series]; !accepted {
			out.values[s.series] = math.Float64bits(metrics.CanonicalValue(s.value))
		}
	}
	return out
}

func appLabels(app int) map[string]string {
	return map[string]string{"app_name": agent.SessionApps[app].Name, "family": agent.SessionApps[app].Family}
}

func naiveType(t agent.SampleType) model.MetricType {
	return [...]model.MetricType{model.MetricTypeUnknown, model.MetricTypeCounter, model.MetricTypeGauge}[t]
}

type naiveMember struct {
	family        string
	typ           agent.SampleType
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
	exact := new(big.Float).SetPrec(2000)
	var weighted, weights float64
	largest := math.NaN()
	for _, m := range of {
		exact.Add(exact, big.NewFloat(m.value))
		weighted += m.value * m.weight
		weights += m.weight
		if math.IsNaN(largest) || m.value > largest {
			largest = m.value
		}
	}
	sum, _ := exact.Float64()
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
