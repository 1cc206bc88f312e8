package main

import (
	"fmt"
	"log/slog"
	"reflect"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/addresses"
	"github.com/coder/agentstatsd/internal/tap"
	"github.com/coder/agentstatsd/pubsub"
)

// buildServer makes the gRPC server with its services.
func (s *service) buildServer(reg prometheus.Registerer, notifications *pubsub.Metadata) error {
	opts := s.config.serverOptions()
	opts.Tokens = s.tokens
	var err error
	if opts.Reflection, err = s.config.reflection(); err != nil {
		return err
	}
	if opts.Credentials, err = s.grpcCredentials(reg); err != nil {
		return err
	}
	s.api, err = grpcserver.New(s.fleet, opts, reg, s.log.With("component", "grpcserver"))
	if err != nil {
		return err
	}
	s.Add("server", func(n *candidate) error { return s.api.Reconfigure(n.config.serverOptions()) },
		func() any { return s.api.Options() })
	s.AddFiles("tokens", s.prepareTokens)
	if s.taps, err = tap.New(reg); err != nil {
		return err
	}
	agents, err := agentapi.New(s.api, agentapi.Components{
		Fleet:     s.fleet,
		Stats:     s.stats(),
		Metadata:  s.batcher,
		Reports:   s.reports,
		Intervals: s.intervals,
		Refusals:  s.refusals,
		Taps:      s.taps,
	}, s.config.agentServiceOptions(), reg, s.log.With("component", "agentapi"))
	if err != nil {
		return err
	}
	s.Add("agents", func(n *candidate) error { return agents.Reconfigure(n.config.agentServiceOptions()) },
		func() any { return agents.Options() })
	forCoderd := s.config.coderdServiceOptions()
	forCoderd.StoreReady = s.store.Ping
	coderds, err := coderdapi.New(s.api, coderdapi.Components{
		Fleet:      s.fleet,
		Reader:     s.store,
		Subscriber: notifications,
		Pushes:     s.pushed,
		Reports:    s.reports,
		Tasks:      s.store,
	}, forCoderd, reg, s.log.With("component", "coderdapi"))
	if err != nil {
		return err
	}
	s.Add("coderd", func(n *candidate) error { return coderds.Reconfigure(n.config.coderdServiceOptions()) },
		func() any { return coderds.Options() })
	s.admin, err = adminapi.New(s.api, s.adminComponents(), reg, s.log.With("component", "adminapi"))
	return err
}

// noteExpired notes that the series of an agent have expired.
func (s *service) noteExpired(id agent.ID, series int) {
	s.refusals.SeriesExpired(id, series, s.aggregator.Options().SeriesTTL)
}

// prepareTokens reads the files of tokens. None is made.
func (s *service) prepareTokens(n *candidate, log *slog.Logger) (use func() (changed bool), err error) {
	next, err := n.config.readTokens(false, log)
	if err != nil {
		return nil, err
	}
	return func() bool {
		if reflect.DeepEqual(next, s.tokens) {
			return false
		}
		if err := s.api.SetTokens(next); err != nil { // readTokens has checked them
			s.log.Error("tokens are not used", "error", err)
			return false
		}
		s.tokens = next
		if err := s.shareConfig(n.config, next); err != nil {
			s.log.Error("other replicas compare with the tokens of before", "error", err)
		}
		return true
	}, nil
}

// stats takes agents' reports in.
func (s *service) stats() agentapi.Stats {
	if !s.config.collectAgentStats {
		return discardStats{}
	}
	return s.aggregator
}

// reflection reports whether gRPC's reflection is served.
func (c *config) reflection() (bool, error) {
	if c.grpcReflection {
		return true, nil
	}
	loopback, err := addresses.IsLoopback(c.grpcAddress)
	if err != nil {
		return false, fmt.Errorf("--grpc-address %s: %w", c.grpcAddress, err)
	}
	return loopback, nil
}

// discardStats takes reports in and keeps nothing: --prometheus-collect-agent-stats=false.
type discardStats struct{}

func (discardStats) Report(agent.ID, int64, time.Time, agent.Report) ([]agent.Refusal, int) {
	return nil, 0
}

func (discardStats) AddBytes(agent.ID, int64, time.Time, agent.Stats) []agent.Refusal { return nil }
