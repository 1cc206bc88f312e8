package main

import (
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/internal/readiness"
)

// adminComponents returns what operators can ask about.
func (s *service) adminComponents() adminapi.Components {
	c := adminapi.Components{
		Fleet:    s.fleet,
		Series:   s.aggregator,
		Costs:    s.aggregator,
		Metadata: s.store,
		Pending:  s.batcher,
		Taps:     s.taps,
		Refusals: s.refusals,
		Pushes:   s.pushed,
		Metrics:  s.registry,
		Identity: s.config.identity(),
		Self:     s.self,
		LogTail:  func() []byte { return logTail(s.log) },
	}
	if s.replicas != nil {
		c.Identity.ID, c.Replicas, c.Statuses = s.replicas.Self(), s.replicas, s.store
	}
	return c
}

// self returns what the metrics of this process do not say of it.
func (s *service) self() adminapi.Self {
	self := adminapi.Self{Readiness: s.ready()}
	checks := s.checks()
	if s.bridge != nil {
		checks = slices.Concat(checks, s.bridge.checks())
	}
	self.Readiness.Reasons = readiness.Of(checks).Reasons
	for pair := range slices.Chunk(s.places(), 2) {
		self.Places = append(self.Places, adminapi.Place{Name: fmt.Sprint(pair[0]), Value: fmt.Sprint(pair[1])})
	}
	return self
}
