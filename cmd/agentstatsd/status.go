package main

import (
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/internal/readiness"
	"github.com/coder/agentstatsd/optiontable"
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
		Config:   s.options,
		LogTail:  func() []byte { return logTail(s.log) },
	}
	if s.replicas != nil {
		c.Identity.ID, c.Replicas, c.Statuses = s.replicas.Self(), s.replicas, s.store
	}
	return c
}

// options returns the options in force, and their hash.
func (s *service) options() ([]optiontable.Row, uint64) {
	sources := s.InForce().config.sources
	rows := optiontable.Rows(sources.options)
	for i := range rows {
		rows[i].Reloadable = rows[i].Reloadable && sources.candidate != nil
	}
	return rows, optiontable.Hash(sources.options)
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
