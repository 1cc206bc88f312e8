package update

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/bench/load"
)

// stringMap keeps series in the usual way, like coderd and the exporters of StatsD and
// OpenTelemetry. The labels of each sample and its agent are sorted and joined into a
// string. It is looked up in one map under one lock.
type stringMap struct {
	mu sync.Mutex
	// Guarded by mu.
	series map[string]*entry
}

type entry struct {
	name    string
	kind    agent.SampleType
	labels  []agent.Label
	value   float64
	updated time.Time
}

func newStringMap() *stringMap { return &stringMap{series: make(map[string]*entry)} }

func (m *stringMap) report(ident agent.Identity, now time.Time, r *load.Report) {
	for i := range r.Len() {
		s := r.Sample(i)
		labels := append([]agent.Label{
			{Name: "agent_name", Value: ident.AgentName},
			{Name: "template_name", Value: ident.TemplateName},
			{Name: "username", Value: ident.Username},
			{Name: "workspace_name", Value: ident.WorkspaceName},
		}, s.Labels...)
		m.update(s, labels, now)
	}
}

func (m *stringMap) update(s *agent.Sample, labels []agent.Label, now time.Time) {
	key := seriesKey(s.Name, labels)
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.series[key]
	if !ok {
		e = &entry{name: s.Name, kind: s.Type, labels: labels}
		m.series[key] = e
	}
	e.value, e.updated = s.Value, now
}

// seriesKey is the same for the same labels in any order.
func seriesKey(name string, labels []agent.Label) string {
	slices.SortFunc(labels, func(a, b agent.Label) int { return strings.Compare(a.Name, b.Name) })
	var key strings.Builder
	key.WriteString(name)
	for _, l := range labels {
		key.WriteByte('\xff')
		key.WriteString(l.Name)
		key.WriteByte('\xfe')
		key.WriteString(l.Value)
	}
	return key.String()
}
