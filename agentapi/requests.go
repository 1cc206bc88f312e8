package agentapi

import (
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxAge is longer than relays keep what they are given, in microseconds.
const maxAge = uint64(24 * time.Hour / time.Microsecond)

// ageOf returns an age in microseconds as a duration.
func ageOf(age uint64) time.Duration { return time.Duration(min(age, maxAge)) * time.Microsecond }

// saidAt returns when a relay was given the value with the index, as Request.Said does.
func saidAt(r fleet.Request, ages []int64, i int) int64 {
	if i >= len(ages) {
		return 0
	}
	return r.Said(ageOf(uint64(ages[i])))
}

// takeRequest hands one request of a stream to the components, and returns what they
// refused.
func (s *Service) takeRequest(r fleet.Request, f *wire.Frame) (refused []agent.Refusal) {
	add := func(more []agent.Refusal) { refused = append(refused, more...) }
	if f.Stats != nil {
		add(s.takeReport(r, f.Stats, f.Stats.Rest, statsKind{age: f.StatsAge}))
		f.KeepEncodings()
	}
	if entries, ok := f.MetadataEntries(); ok {
		add(s.takeEntries(r, entries))
	}
	if f.Request != nil {
		add(s.takeMessage(r, f))
	}
	return refused
}

// takeMessage does for a request that is decoded as a message.
func (s *Service) takeMessage(r fleet.Request, f *wire.Frame) (refused []agent.Refusal) {
	add := func(more []agent.Refusal) { refused = append(refused, more...) }
	m := f.Request
	if m.Lifecycle != nil {
		add(s.takeLifecycle(r, m.GetLifecycle(), m.GetAges().GetLifecycle()))
	}
	if m.AppHealth != nil {
		add(s.takeAppHealth(r, m.GetAppHealth().GetUpdates(), m.GetAges().GetAppHealth()))
	}
	if m.Network != nil {
		add(s.takeNetwork(r, m.GetNetwork(), m.GetAges().GetNetwork()))
	}
	if m.Stats != nil {
		add(s.takeStats(r, m.GetStats(), statsKind{f.StatsAge, m.GetStatsSuperseded(), m.GetStatsUncounted()}))
	}
	if m.Metadata != nil {
		add(s.takeMetadata(r, m.GetMetadata().GetMetadata(), m.GetAges().GetMetadata()))
	}
	if m.Goodbye != nil {
		s.metrics.requests.goodbye.Inc()
	}
	return refused
}

// statsKind is what a request says of its report.
type statsKind struct {
	age                   uint64
	superseded, uncounted bool
}

func (s *Service) takeStats(r fleet.Request, stats *agentstatsv1.Stats, kind statsKind) []agent.Refusal {
	report := wire.NewMessageReport(stats)
	defer report.Release()
	s.metrics.sessionNames.Add(float64(report.Overflow))
	return s.takeReport(r, report, func() []byte { return contract.EncodeRest(stats) }, kind)
}

// takeReport hands a report to the components. rest returns the report encoded without
// samples, for watchers of reports. Of a superseded one, and of one that is older than
// another relay's, only what adds up is taken in.
func (s *Service) takeReport(r fleet.Request, report agent.Report, rest func() []byte, kind statsKind) []agent.Refusal {
	s.metrics.requests.stats.Inc()
	since := ageOf(kind.age)
	if !r.IsRelayed() {
		since = 0
	}
	if s.Reports.Wanted() {
		s.sumReport(r, report, rest, since, kind.uncounted)
	}
	if kind.superseded || r.IsOlderReport(since) {
		return s.addBytes(r, report)
	}
	refused, created := s.Stats.Report(r.Agent(), r.Epoch(), r.Now(), report)
	r.ChargeSeries(created)
	r.MarkReported(since)
	return refused
}

// restBuffers are []byte, as adding a report copies its data.
var restBuffers = sync.Pool{New: func() any { return new([]byte) }}

// addBytes takes in what adds up of a report.
func (s *Service) addBytes(r fleet.Request, report agent.Report) []agent.Refusal {
	return s.Stats.AddBytes(r.Agent(), r.Epoch(), r.Now(), report.Stats())
}

// sumReport adds a report to the subscriptions.
func (s *Service) sumReport(r fleet.Request, report agent.Report, rest func() []byte, age time.Duration, uncounted bool) {
	sum, workspace, data := contract.SumOf(report.Stats(), r.Now().Add(-age)), r.Workspace(), restBuffers.Get().(*[]byte)
	defer restBuffers.Put(data)
	*data = contract.AppendIDs(append((*data)[:0], rest()...), workspace)
	sum.Agent, sum.Workspace, sum.Order, sum.Data = r.Agent(), workspace.ID, r.ReportOrder(age), *data
	sum.Instance = r.Instance()
	if uncounted {
		sum.Reports = 0
	}
	if sum.HasCounts() {
		sum.Tracker = r.AwaitReport()
	}
	s.Reports.Add(&sum)
}

func (s *Service) takeMetadata(r fleet.Request, metadata []*agentstatsv1.Metadata, ages []int64) []agent.Refusal {
	entries := make([]agent.MetadataEntry, len(metadata))
	for i, m := range metadata {
		entries[i] = agent.MetadataEntry{
			Key: m.GetKey(), Value: m.GetResult().GetValue(), Error: m.GetResult().GetError(), Said: saidAt(r, ages, i),
		}
	}
	return s.takeEntries(r, entries)
}

// takeEntries hands metadata to the components. It may change the entries.
func (s *Service) takeEntries(r fleet.Request, entries []agent.MetadataEntry) []agent.Refusal {
	s.metrics.requests.metadata.Inc()
	entries, refused := r.AdmitMetadata(entries)
	if len(entries) == 0 {
		return refused
	}
	return append(refused, s.Metadata.Add(r.Now(), agent.MetadataReport{
		Agent:     r.Agent(),
		Owner:     r.Owner(),
		Order:     r.Order(),
		LateOrder: r.LateOrder(),
		Entries:   entries,

		Incarnation: r.Incarnation(),
		Tracker:     r.Tracker(),
	})...)
}

func (s *Service) takeLifecycle(r fleet.Request, l *agentstatsv1.Lifecycle, age int64) []agent.Refusal {
	s.metrics.requests.lifecycle.Inc()
	state, known := contract.LifecycleStates[l.GetState()]
	if !known {
		return s.refuseState(reasonUnknownState, "lifecycle.state: unknown lifecycle state %d", l.GetState())
	}
	changedAt, err := contract.TimeOf(l.GetChangedAt())
	if err != nil {
		return s.refuseState(reasonInvalidField, "lifecycle.changed_at: %v", err)
	}
	r.SetLifecycle(agent.Lifecycle{State: state, ChangedAt: changedAt}, r.Said(ageOf(uint64(age))))
	return nil
}

func (s *Service) takeAppHealth(r fleet.Request, updates []*agentstatsv1.AppHealthUpdate, ages []int64) []agent.Refusal {
	s.metrics.requests.appHealth.Inc()
	if n := len(updates); n > contract.MaxApps {
		refused := s.refuseState(reasonInvalidField, "app_health.updates: want at most %d, got %d", contract.MaxApps, n)
		refused[0].Count = n
		return refused
	}
	var refused []agent.Refusal
	refuse := func(i int, field, format string, args ...any) {
		if len(refused) < agent.MaxRefusalNames {
			refused = append(refused, s.refuseState(reasonInvalidField, "app_health.updates[%d].%s: %s", i, field, fmt.Sprintf(format, args...))...)
			return
		}
		s.metrics.refusedStates.WithLabelValues(reasonInvalidField).Inc()
		refused[len(refused)-1].Count++
	}
	health := make(map[agent.ID]agent.AppHealth, len(updates))
	said := make(map[agent.ID]int64, len(ages))
	for i, u := range updates {
		id, err := uuid.FromBytes(u.GetId())
		if err != nil {
			refuse(i, "id", "want 16 bytes, got %d", len(u.GetId()))
			continue
		}
		state, known := contract.AppHealths[u.GetHealth()]
		if !known {
			refuse(i, "health", "unknown health %d", u.GetHealth())
			continue
		}
		if _, twice := health[id]; twice {
			refuse(i, "id", "want each app once, got %s again", id)
			continue
		}
		health[id] = state
		if at := saidAt(r, ages, i); at != 0 {
			said[id] = at
		}
	}
	if len(health) == 0 {
		return refused
	}
	return append(refused, r.SetAppHealth(health, said)...)
}

func (s *Service) takeNetwork(r fleet.Request, n *agentstatsv1.Network, age int64) []agent.Refusal {
	s.metrics.requests.network.Inc()
	network, err := contract.NetworkOf(n)
	if err != nil {
		return s.refuseState(reasonInvalidField, "%v", err)
	}
	r.SetNetwork(network, r.Said(ageOf(uint64(age))))
	return nil
}

func (s *Service) refuseState(reason, format string, args ...any) []agent.Refusal {
	s.metrics.refusedStates.WithLabelValues(reason).Inc()
	return []agent.Refusal{{
		Kind:    agent.RefusedInvalid,
		Reason:  reason,
		Message: fmt.Sprintf(format, args...),
		Count:   1,
	}}
}
