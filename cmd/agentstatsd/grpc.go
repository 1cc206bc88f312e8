package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/pubsub"
)

// buildServer makes the gRPC edge.
func (s *service) buildServer(reg prometheus.Registerer, news *pubsub.Metadata) error {
	c := s.config
	var err error
	var stats agentapi.Stats = s.aggregator
	if !c.collectAgentStats {
		stats = discardStats{}
	}
	parts := agentapi.Components{
		Fleet:    s.fleet,
		Stats:    stats,
		Metadata: s.batcher,
		Reader:   s.store,
		News:     news,
		Pushes:   s.pushed,
		Reports:  s.reports,
	}
	reflection := c.grpcReflection
	if !reflection {
		reflection, err = isLoopback(c.grpcAddress)
		if err != nil {
			return fmt.Errorf("--grpc-address %s: %w", c.grpcAddress, err)
		}
	}
	credentials, err := s.grpcCredentials(reg)
	if err != nil {
		return err
	}
	s.api, err = agentapi.NewServer(parts, agentapi.Options{
		Credentials:          credentials,
		CoderdTokenHash:      s.tokenHash,
		CoderdClientSAN:      c.coderdClientSAN,
		ReportInterval:       c.reportInterval,
		Limits:               agentapi.Limits{Series: int(c.maxSeriesPerAgent)},
		MaxMessageBytes:      int(c.maxMessageBytes),
		MaxAgentMessageBytes: int(c.maxAgentMessageBytes),
		MaxReceivingBytes:    int(c.maxReceivingBytes),
		MessageTimeout:       c.messageTimeout,
		MaxStreams:           uint32(c.grpcMaxStreams),
		MaxSyncs:             int(c.maxSyncs),
		SyncTimeout:          c.syncTimeout,
		GoodbyeTimeout:       c.agentGoodbyeTimeout,
		MaxPushBytes:         int(c.maxPushBytes),
		MaxPushesBytes:       int(c.maxPushesBytes),
		MaxRegistrationBytes: int(c.maxRegistrationBytes),
		MaxSyncBytes:         int(c.maxSyncBytes),
		MaxDeclaredKeys:      int(c.metadataDeclaredKeys),
		MaxPushes:            int(c.maxCoderdInstances),
		MaxWatches:           int(c.maxWatches),
		MaxWatchBytes:        int(c.maxWatchBytes),
		MaxWatchesBytes:      int(c.maxWatchesBytes),
		SendTimeout:          c.grpcSendTimeout,
		WatchInterval:        c.metadataRereadEvery,
		DrainTimeout:         c.drainTimeout,
		StoreReady:           s.store.Ping,

		MaxStreamsPerAgent:     int(c.maxStreamsPerAgent),
		IdleTimeout:            c.agentIdleTimeout,
		MaxCoderdCalls:         int(c.maxCoderdCalls),
		MaxConnections:         int(cmp.Or(c.grpcMaxConnections, openFiles()*3/4)),
		MaxStrangersPerAddress: int(c.grpcMaxStrangers),
		MaxStrangerCalls:       int(c.grpcStrangerCalls),
		StrangerRate:           int(c.grpcStrangerRate),
		StrangerBurst:          int(c.grpcStrangerBurst),
		MaxOpenCalls:           int(c.grpcMaxOpenCalls),
		AuthenticationTimeout:  c.authenticationTimeout,
		ConnectionIdleTimeout:  c.grpcIdleTimeout,
		HelloTimeout:           c.firstMessageTimeout,
		Reflection:             reflection,
	}, reg, s.log.With("component", "agentapi"))
	return err
}

// discardStats takes reports in and keeps nothing: --prometheus-collect-agent-stats=false.
type discardStats struct{}

func (discardStats) Report(agent.ID, int64, time.Time, agent.Report) ([]agent.Refusal, int) {
	return nil, 0
}
