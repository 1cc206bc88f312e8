package agentapi_test

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/grpcserver"
)

func TestAgentOptions(t *testing.T) {
	server, err := grpcserver.New(nil, grpcserver.Options{}, prometheus.NewRegistry(), nil)
	require.NoError(t, err)
	for want, opts := range map[string]agentapi.Options{
		"agentapi options: report interval: want at least 1s, got 1ms":                 {ReportInterval: time.Millisecond},
		"agentapi options: ack delay: want at least 0, got -1ns":                       {AckDelay: -1},
		"agentapi options: flush interval: want at least 0, got -1ns":                  {FlushInterval: -1},
		"agentapi options: goodbye timeout: want at least 0, got -1ns":                 {GoodbyeTimeout: -1},
		"agentapi options: max relay streams: want at least 0, got -1":                 {MaxRelayStreams: -1},
		"agentapi options: max relayed sessions: want at least 0, got -1":              {MaxRelayedSessions: -1},
		"agentapi options: limits: series: want at least 0, got -1":                    {Limits: agentapi.Limits{Series: -1}},
		"agentapi options: limits: metadata key bytes: want at least 0, got -1":        {Limits: agentapi.Limits{MetadataKeyBytes: -1}},
		"agentapi options: limits: metadata report key bytes: want at least 0, got -1": {Limits: agentapi.Limits{MetadataReportKeyBytes: -1}},
		"agentapi options: limits: metadata value bytes: want at least 0, got -1":      {Limits: agentapi.Limits{MetadataValueBytes: -1}},
		"agentapi options: limits: metadata error bytes: want at least 0, got -1":      {Limits: agentapi.Limits{MetadataErrorBytes: -1}},
		"agentapi components: reports is absent":                                       {},
	} {
		_, err := agentapi.New(server, agentapi.Components{}, opts, prometheus.NewRegistry(), nil)
		require.EqualError(t, err, want)
	}
}
