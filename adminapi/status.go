package adminapi

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/internal/readiness"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Identity says which replica a process is. It does not change.
type Identity struct {
	// ID of the process among the replicas; zero: it is alone.
	ID agent.ID
	// Name of the host.
	Name string
	// URL of the page; empty: it is not known.
	URL string
}

// Self is what the metrics of a replica do not say of how it is.
type Self struct {
	// Places are what serves what, without secrets.
	Places []Place
	// Readiness is the answer of /-/ready. Reasons has those of all components, also if
	// it is ready in spite of them.
	Readiness readiness.Answer
}

// Place is an address, a path or a URL, and what is there.
type Place struct{ Name, Value string }

const (
	// maxRefusedReasons bounds the reasons in a status. There are about 60.
	maxRefusedReasons = 20
	// maxLargest bounds the rows by each of largest.
	maxLargest = 20
)

// largest is what a status has the largest of.
var largest = []cardinality.Dimension{cardinality.ByFamily, cardinality.ByTemplate, cardinality.ByOwner}

// GetStatus implements agentstatsv1.AdminServiceServer.
func (s *Service) GetStatus(context.Context, *agentstatsv1.GetStatusRequest) (*agentstatsv1.GetStatusResponse, error) {
	now := time.Now()
	resp := &agentstatsv1.GetStatusResponse{Replicas: []*agentstatsv1.ReplicaStatus{s.status(now)}}
	for _, o := range s.others.list() {
		resp.Replicas = append(resp.Replicas, s.statusOf(o, now))
	}
	return resp, nil
}

// status returns how this replica is at now, within maxStatusBytes.
func (s *Service) status(now time.Time) *agentstatsv1.ReplicaStatus {
	self := s.Self()
	g, err := gather(s.Metrics)
	warnings := self.Readiness.Warnings
	if err != nil {
		warnings = append(slices.Clone(warnings), "some of the numbers here are missing: "+err.Error())
	}
	s.shortages.add(now, g)
	warnings = slices.Concat(warnings, s.shortages.warnings(now, g))
	r := &agentstatsv1.ReplicaStatus{
		Name: s.Identity.Name, Url: s.Identity.URL, Alive: true,
		// One that is alone leads.
		Leads:            g["agentstatsd_replica_leads"] == nil || g.value("agentstatsd_replica_leads") == 1,
		StartedAt:        timestamp(g.value("process_start_time_seconds")),
		Ready:            self.Readiness.Ready,
		Draining:         self.Readiness.Reasons["draining"] != "",
		Components:       g.components(self.Readiness.Reasons),
		Warnings:         warnings,
		Limits:           g.limits(),
		Certificates:     g.certificates(),
		Registered:       g.value("agentstatsd_agents_registered"),
		Connected:        g.value("agentstatsd_sessions"),
		Relayed:          g.value("agentstatsd_relayed_sessions"),
		Series:           g.value("agentstatsd_series"),
		ResidentBytes:    g.value("process_resident_memory_bytes"),
		MemoryLimitBytes: g.value("agentstatsd_memory_limit_bytes"),
		Durability:       g.durability(),
		Refused:          g.refused(maxRefusedReasons),
		ScrapedAt:        timestamp(g.value("agentstatsd_last_scrape_timestamp_seconds")),
	}
	if cores := s.history.cores(now, g.value(processorSeconds)); !math.IsNaN(cores) {
		r.Cores = cores
	}
	if id := s.Identity.ID; id != (agent.ID{}) {
		r.Id = id.String()
	}
	for _, m := range g["agentstatsd_build_info"].GetMetric() {
		r.Version, r.Revision = labelOf(m, "version"), labelOf(m, "revision")
	}
	for _, p := range self.Places {
		r.Places = append(r.Places, &agentstatsv1.Place{Name: p.Name, Value: p.Value})
	}
	for _, by := range largest {
		r.Cardinality = append(r.Cardinality, cardinalityGroup(cardinality.Query{By: by}, s.Series.SampledCardinality(by, maxLargest)))
	}
	s.metrics.rowsLeftOut.Add(float64(trim(r, maxStatusBytes)))
	return r
}

// components returns the parts that readiness depends on, in the order of their names,
// and the database, of which there is no metric.
func (g gathered) components(reasons map[string]string) (all []*agentstatsv1.Component) {
	names := g.by("agentstatsd_component_ready", "component")
	names[readiness.DatabasePart] = 1
	for _, name := range slices.Sorted(maps.Keys(names)) {
		reason := reasons[name]
		all = append(all, &agentstatsv1.Component{Name: name, Ready: reason == "", Reason: reason})
	}
	return all
}

// limits returns all limits, in the order of their names.
func (g gathered) limits() (all []*agentstatsv1.Limit) {
	limits, used := g.by("agentstatsd_limit", "what"), g.by("agentstatsd_usage", "what")
	for _, what := range slices.Sorted(maps.Keys(limits)) {
		l := &agentstatsv1.Limit{Name: what, Limit: limits[what]}
		if n, ok := used[what]; ok {
			l.Used = &n
		}
		all = append(all, l)
	}
	return all
}

// certificates returns those of listeners, in the order of their listeners.
func (g gathered) certificates() (all []*agentstatsv1.Certificate) {
	for _, m := range g["agentstatsd_tls_certificate_expiry_timestamp_seconds"].GetMetric() {
		all = append(all, &agentstatsv1.Certificate{
			Listener: labelOf(m, "listener"), Kind: labelOf(m, "certificate"), NotAfter: timestamp(valueOf(m)),
		})
	}
	slices.SortStableFunc(all, func(a, b *agentstatsv1.Certificate) int {
		return cmp.Or(cmp.Compare(a.GetListener(), b.GetListener()), cmp.Compare(a.GetKind(), b.GetKind()))
	})
	return all
}

// durability returns what became of metadata. All of it but the errors is of one moment,
// as the batcher collects it in one step. So the sum adds up.
func (g gathered) durability() *agentstatsv1.Durability {
	entries := g.by("agentstatsd_metadata_entries_total", "outcome")
	return &agentstatsv1.Durability{
		Received: entries["received"], Coalesced: entries["coalesced"], Flushed: entries["flushed"],
		Unchanged: entries["unchanged"], Dropped: entries["dropped"],
		Pending:              g.value("agentstatsd_metadata_pending"),
		OldestPendingSeconds: g.value("agentstatsd_metadata_oldest_pending_seconds"),
		LastFlushSeconds:     g.value("agentstatsd_metadata_last_flush_seconds"),
		FlushErrors:          g.value("agentstatsd_metadata_flush_errors_total"),
	}
}

// refused returns refused items by reason, the most first.
func (g gathered) refused(most int) (all []*agentstatsv1.NamedCount) {
	for reason, n := range g.by("agentstatsd_refused_items_total", "reason") {
		if n > 0 {
			all = append(all, &agentstatsv1.NamedCount{Name: reason, Count: n})
		}
	}
	slices.SortFunc(all, compareCounts)
	return all[:min(len(all), most)]
}

// timestamp returns a Unix time; nil: it is 0, as of what did not happen.
func timestamp(seconds float64) *timestamppb.Timestamp {
	if seconds <= 0 {
		return nil
	}
	return timestamppb.New(time.UnixMicro(int64(math.Round(seconds * 1e6)))) // a float64 has no more
}
