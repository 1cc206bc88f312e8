package main

import (
	"log/slog"
	"reflect"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/intervals"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/replica"
	"github.com/coder/agentstatsd/reports"
)

// otherDefaults are the fields whose default differs from that of their option, and why.
var otherDefaults = map[string]string{
	"server.MaxConnections": "follows from the files that the process may open",
	"server.IdleTimeout":    "follows from the longest report interval, which intervals are lengthened to",
	"agents.Limits.Series":  "is sent to agents; the aggregator has the limit",
	"fleet.SessionAge":      "0 means for ever",
	"batcher.TouchInterval": "0 means that each value is written",
	"aggregator.GroupBy":    "nil means that nothing is grouped",
}

// TestDefaultsAreOne builds components without options: each field that an option sets
// has the option's default.
func TestDefaultsAreOne(t *testing.T) {
	defaults := make(map[string]any)
	for name, component := range withoutOptions(t) {
		if options := reflect.ValueOf(component).MethodByName("Options"); options.IsValid() {
			flatten(name, options.Call(nil)[0], defaults)
			continue
		}
		options := reflect.ValueOf(component).Elem().FieldByName("opts")
		flatten(name, reflect.NewAt(options.Type(), options.Addr().UnsafePointer()).Elem(), defaults)
	}
	table := components(t, configWith(t, nil))
	checked := 0
	for flag, w := range wirings {
		for _, field := range w.fields {
			own, ok := defaults[field]
			if !ok || otherDefaults[field] != "" {
				continue
			}
			checked++
			if given := reflect.ValueOf(table[field]); given.IsZero() || given.Kind() == reflect.Map {
				continue // left to the component
			}
			assert.Equal(t, table[field], own, "--%s and %s", flag, field)
		}
	}
	require.Greater(t, checked, 50)
}

// withoutOptions makes components over nothing, by their names in wirings.
func withoutOptions(t *testing.T) map[string]any {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	reg := prometheus.NewRegistry()
	series, err := aggregator.New(aggregator.Options{}, reg)
	require.NoError(t, err)
	pending, err := batcher.New(nil, nil, batcher.Options{}, reg, log)
	require.NoError(t, err)
	agents, err := fleet.New(nil, series, pending, fleet.Options{}, reg, log)
	require.NoError(t, err)
	families, err := pushed.New(nil, series, pushed.Options{}, reg, log)
	require.NoError(t, err)
	watched, err := reports.New(nil, reports.Options{}, reg, log)
	require.NoError(t, err)
	replicas, err := replica.New(nil, nil, replica.Options{}, reg, log)
	require.NoError(t, err)
	lengthened, err := intervals.New(pending, nil, intervals.Options{}, reg, log)
	require.NoError(t, err)
	server, err := grpcserver.New(agents, grpcserver.Options{}, reg, log)
	require.NoError(t, err)
	agentService, err := agentapi.New(server, agentapi.Components{Fleet: agents, Stats: series, Metadata: pending, Reports: watched}, agentapi.Options{}, reg, log)
	require.NoError(t, err)
	coderdService, err := coderdapi.New(server, coderdapi.Components{Fleet: agents, Pushes: families, Reports: watched}, coderdapi.Options{}, reg, log)
	require.NoError(t, err)
	return map[string]any{
		"aggregator": series, "batcher": pending, "fleet": agents, "pushed": families, "reports": watched, "replica": replicas,
		"intervals": lengthened, "server": server, "agents": agentService, "coderd": coderdService,
	}
}
