package main

import (
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/internal/readiness"
)

// self returns what the metrics of this process do not say of it.
func (s *service) self() adminapi.Self {
	self := adminapi.Self{Name: hostname(), Readiness: s.ready()}
	if s.replicas != nil {
		self.ID = s.replicas.Self()
	}
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
