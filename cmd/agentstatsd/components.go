package main

import (
	"cmp"
	"slices"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/intervals"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/refusals"
	"github.com/coder/agentstatsd/replica"
	"github.com/coder/agentstatsd/reports"
	"github.com/coder/agentstatsd/scrape"
	"github.com/coder/agentstatsd/store"
	"github.com/coder/agentstatsd/web"
	"github.com/coder/agentstatsd/web/console"
)

// What each component gets of the configuration. TestOptionsReachTheirComponents shows
// that every option is in one of these, or what else it changes.

func (c *config) storeOptions() store.Options {
	return store.Options{
		Name:               connectionName(hostname(), ""),
		URL:                c.databaseURL,
		Path:               c.databasePath(),
		MaxConns:           int(c.databaseMaxConns),
		TransactionPooling: c.databasePooling,
		TouchInterval:      c.metadataTouchInterval,
		DeploymentID:       c.deployment(),
	}
}

func (c *config) replicaOptions() replica.Options {
	return replica.Options{Name: hostname(), LeaseDuration: c.leaseDuration}
}

func (c *config) aggregatorOptions() aggregator.Options {
	return aggregator.Options{
		ReportInterval:         c.reportInterval,
		SeriesTTL:              c.seriesTTL,
		MaxSeries:              int(c.maxSeries),
		MaxSeriesPerOwner:      int(c.maxSeriesPerOwner),
		MaxSeriesPerAgent:      int(c.maxSeriesPerAgent),
		MaxSeriesBytes:         int(c.maxSeriesBytes),
		MaxSeriesBytesPerOwner: int(c.maxSeriesOwnerBytes),
		MaxSeriesBytesPerAgent: int(c.maxSeriesAgentBytes),
		MaxFamilies:            int(c.maxFamilies),
		MaxFamiliesPerAgent:    int(c.maxFamiliesPerAgent),
		GroupBy:                c.aggregateBy,
		WorkspaceInfo:          c.workspaceInfo,
	}
}

func (c *config) batcherOptions() batcher.Options {
	return batcher.Options{
		BatchSize:     int(c.metadataBatchSize),
		FlushInterval: c.metadataFlushInterval,
		MaxPending:    int(c.metadataMaxPending),
		TouchInterval: c.metadataTouchInterval,

		MaxPendingPerAgent: int(c.metadataAgentShare),
		MaxPendingPerOwner: int(c.metadataOwnerShare),
	}
}

func (c *config) fleetOptions() fleet.Options {
	return fleet.Options{
		MaxAgents:       int(c.maxAgents),
		MaxBytes:        c.maxRegistrationsBytes,
		MaxMetadataKeys: int(c.metadataMaxKeys),
		MaxLookups:      int(c.maxLookups),
		SessionAge:      c.sessionAge,

		UpTemplateVersion: slices.Contains(c.extraLabels, labelTemplateVersion),
		WorkspaceInfo:     c.workspaceInfo,

		MessagesPerSecond: int(c.agentMessageRate),
		MessagesBurst:     int(c.agentMessageBurst),
		BytesPerSecond:    int(c.agentByteRate),
		BytesBurst:        int(c.agentByteBurst),
		RefusedPerSecond:  int(c.agentRefusedRate),
		RefusedBurst:      int(c.agentRefusedBurst),
	}
}

func (c *config) refusalsOptions() refusals.Options {
	return refusals.Options{MaxAgents: int(c.maxRefusedAgents), MaxBytes: int(c.maxRefusedBytes)}
}

// pushedOptions has no lease and no notifier: those are of replicas.
func (c *config) pushedOptions(merges map[string]metrics.Merge) pushed.Options {
	return pushed.Options{
		Merge:          merges,
		SeriesTTL:      c.seriesTTL,
		MaxInstances:   int(c.maxCoderdInstances),
		MaxSeries:      int(c.maxPushedSeries),
		MaxTotalSeries: int(c.maxPushedSeriesTotal),
		MaxFamilies:    int(c.maxPushedFamilies),
		MaxRowBytes:    int(c.maxPushRowBytes),

		MaxLabelValueBytes: int(c.maxPushedValueBytes),
		MaxLabelsBytes:     int(c.maxPushedLabelsBytes),
	}
}

func (c *config) reportsOptions() reports.Options {
	return reports.Options{
		MaxSubscriptions: int(c.maxSubscriptions),
		MaxPending:       int(c.reportsMaxPending),
		MaxPendingBytes:  int(c.reportsPendingBytes),
		MaxSumBytes:      int(c.maxReportSumBytes),
		MaxSums:          int(c.maxReportSums),
		Retention:        c.statsRetention,
	}
}

// serverOptions has no credentials and no reflection.
func (c *config) serverOptions() grpcserver.Options {
	return grpcserver.Options{
		CoderdClientSAN:      c.coderdClientSAN,
		MaxMessageBytes:      int(c.maxMessageBytes),
		MaxAgentMessageBytes: int(c.maxAgentMessageBytes),
		MaxReceivingBytes:    int(c.maxReceivingBytes),
		MessageTimeout:       c.messageTimeout,
		MaxStreams:           uint32(c.grpcMaxStreams),
		SendTimeout:          c.grpcSendTimeout,
		DrainTimeout:         c.drainTimeout,

		MaxStreamsPerAgent:     int(c.maxStreamsPerAgent),
		MaxUnreadOfCoderd:      int(c.maxWatches),
		IdleTimeout:            cmp.Or(c.agentIdleTimeout, 3*c.longestInterval()),
		MaxCoderdCalls:         int(c.maxCoderdCalls),
		MaxConnections:         int(cmp.Or(c.grpcMaxConnections, openFiles()*3/4)),
		MaxStrangersPerAddress: int(c.grpcMaxStrangers),
		MaxStrangerCalls:       int(c.grpcStrangerCalls),
		StrangerRate:           int(c.grpcStrangerRate),
		StrangerBurst:          int(c.grpcStrangerBurst),
		AgentCallRate:          int(c.grpcAgentCallRate),
		MaxOpenCalls:           int(c.grpcMaxOpenCalls),
		AuthenticationTimeout:  c.authenticationTimeout,
		ConnectionIdleTimeout:  c.grpcIdleTimeout,
		HelloTimeout:           c.firstMessageTimeout,
	}
}

func (c *config) intervalsOptions() intervals.Options {
	maxFactor := 0.0 // the default
	if !c.adaptiveIntervals {
		maxFactor = 1
	}
	return intervals.Options{
		MaxFactor:        maxFactor,
		FlushInterval:    c.metadataFlushInterval,
		TargetCPU:        float64(c.targetCPUPercent) / 100,
		TargetPendingAge: c.targetPendingAge,
		TargetFlush:      float64(c.targetFlushPercent) / 100,
	}
}

func (c *config) agentServiceOptions() agentapi.Options {
	return agentapi.Options{
		ReportInterval:  c.reportInterval,
		LongestInterval: c.longestInterval(),
		Limits:          agentapi.Limits{Series: int(c.maxSeriesPerAgent)},
		AckDelay:        c.ackDelay,
		FlushInterval:   c.metadataFlushInterval,
		GoodbyeTimeout:  c.agentGoodbyeTimeout,

		MaxRelayStreams:    int(c.maxRelayStreams),
		MaxRelayedSessions: int(c.maxRelayedSessions),
	}
}

// coderdOptions has no check of the store.
func (c *config) coderdServiceOptions() coderdapi.Options {
	return coderdapi.Options{
		MaxWatches:           int(c.maxWatches),
		MaxSyncs:             int(c.maxSyncs),
		MaxWatchBytes:        int(c.maxWatchBytes),
		MaxWatchesBytes:      int(c.maxWatchesBytes),
		MaxPushes:            int(c.maxCoderdInstances),
		MaxPushBytes:         int(c.maxPushBytes),
		MaxPushesBytes:       int(c.maxPushesBytes),
		MaxRegistrationBytes: int(c.maxRegistrationBytes),
		MaxSyncBytes:         int(c.maxSyncBytes),
		MaxDeclaredKeys:      int(c.metadataDeclaredKeys),
		SyncTimeout:          c.syncTimeout,
		WatchInterval:        c.metadataRereadEvery,
	}
}

func (c *config) scrapeOptions() scrape.Options {
	return scrape.Options{WriteTimeout: c.scrapeTimeout}
}

// identity has no id.
func (c *config) identity() adminapi.Identity {
	return adminapi.Identity{Name: hostname(), URL: c.webExternalURL}
}

func (c *config) consoleOptions() console.Options {
	return console.Options{ShowMetadata: c.webShowMetadata}
}

// httpOptions has no TLS and no passwords.
func (c *config) httpOptions() web.Options {
	return web.Options{
		Name: "prometheus", WriteTimeout: httpWriteTimeout,
		MaxConns: int(c.maxHTTPConns), MaxConnsPerAddress: int(c.maxHTTPConnsPerAddr),
		Handshakes: c.handshakes(),
	}
}

// probeOptions has neither TLS nor passwords.
func (c *config) probeOptions() web.Options {
	return web.Options{
		Name: "probes", WriteTimeout: httpWriteTimeout, MaxConns: int(c.maxHTTPConns), MaxConnsPerAddress: int(c.maxHTTPConnsPerAddr),
	}
}

// pprofOptions has no write timeout: a profile takes as long as it is asked to.
func (c *config) pprofOptions() web.Options {
	return web.Options{Name: "pprof", MaxConns: int(c.maxHTTPConns), MaxConnsPerAddress: int(c.maxHTTPConnsPerAddr)}
}
