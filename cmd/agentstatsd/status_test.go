package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// The status of a service has what its process, its checks and its first line of the log say.
func TestStatusOfService(t *testing.T) {
	c := configWith(t, nil)
	c.dataDir = t.TempDir()
	s, err := newService(t.Context(), c, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer s.close()
	get := func() *agentstatsv1.ReplicaStatus {
		resp, err := s.admin.GetStatus(t.Context(), &agentstatsv1.GetStatusRequest{})
		require.NoError(t, err)
		return resp.GetReplicas()[0]
	}
	r := get()
	require.Empty(t, r.GetId(), "it is alone")
	require.True(t, r.GetLeads())
	require.Equal(t, hostname(), r.GetName())
	require.Equal(t, version(), r.GetVersion())
	require.Positive(t, r.GetResidentBytes())
	require.NotNil(t, r.GetStartedAt())
	require.Equal(t, gauge(t, s, "agentstatsd_memory_limit_bytes"), r.GetMemoryLimitBytes())
	names := make([]string, len(r.GetComponents()))
	for i, c := range r.GetComponents() {
		names[i] = c.GetName()
		require.Equal(t, c.GetName() != "fleet" && c.GetName() != "pushed", c.GetReady(), "it does not run: %v", c)
	}
	require.Equal(t, []string{"batcher", "database", "draining", "fleet", "pushed"}, names)
	require.False(t, r.GetReady())
	require.NotEmpty(t, r.GetLimits())
	places := s.places()
	require.Len(t, r.GetPlaces(), len(places)/2)
	require.Equal(t, places[2], r.GetPlaces()[1].GetName())
	require.Equal(t, places[3], r.GetPlaces()[1].GetValue())

	s.draining.Store(true)
	require.True(t, get().GetDraining())
}

// The options in force are those of --print-config, also after a reload, without secrets.
func TestConfigOfService(t *testing.T) {
	r := newReloaded(t, "agents:\n  max_agents: 7\n", "--pubsub-url", "nats://ada:hunter2@127.0.0.1:1")
	get := func() (options map[string]*agentstatsv1.Option, hash string) {
		resp, err := r.admin.GetConfig(t.Context(), &agentstatsv1.GetConfigRequest{})
		require.NoError(t, err)
		require.NotContains(t, resp.String(), "hunter2")
		var printed bytes.Buffer
		require.NoError(t, optiontable.Print(&printed, r.InForce().config.sources.options))
		lines := strings.Split(printed.String(), "\n")
		options = make(map[string]*agentstatsv1.Option)
		group := ""
		for _, o := range resp.GetOptions() {
			options[o.GetFlag()] = o
			for strings.HasSuffix(lines[0], ":") && !strings.HasPrefix(lines[0], " ") { // a new group
				lines, group = lines[1:], o.GetGroup()
			}
			require.Equal(t, group, o.GetGroup())
			require.Contains(t, lines[0], o.GetValue())
			require.Regexp(t, fmt.Sprintf(`[#(] ?%s\)?$`, o.GetSource()), lines[0])
			lines = lines[1:]
		}
		require.Equal(t, []string{""}, lines, "all of --print-config")
		return options, resp.GetHash()
	}
	options, before := get()
	require.Equal(t, "nats://ada:xxxxx@127.0.0.1:1", options["pubsub-url"].GetValue())
	require.Equal(t, "flag", options["pubsub-url"].GetSource())
	require.True(t, options["pubsub-url"].GetNeedsRestart())
	require.Equal(t, "Storage", options["pubsub-url"].GetGroup())
	require.Equal(t, []string{"7", "200000", "file", "AGENTSTATSD_MAX_AGENTS"}, textsOf(options["max-agents"]))
	require.False(t, options["max-agents"].GetNeedsRestart())
	require.Equal(t, []string{"30s", "30s", "default", "AGENTSTATSD_REPORT_INTERVAL"}, textsOf(options["report-interval"]))
	require.Equal(t, strconv.FormatFloat(gauge(t, r.service, "agentstatsd_config_hash"), 'f', -1, 64), before)

	r.write("agents:\n  max_agents: 8\n  report_interval: 20s\nstorage:\n  lease_duration: 20s\n")
	require.Empty(t, r.reloader.Reload().Error)
	options, after := get()
	require.Equal(t, []string{"8", "200000", "file", "AGENTSTATSD_MAX_AGENTS"}, textsOf(options["max-agents"]))
	require.Equal(t, []string{"20s", "30s", "file", "AGENTSTATSD_REPORT_INTERVAL"}, textsOf(options["report-interval"]))
	require.Equal(t, "15s", options["lease-duration"].GetValue(), "it needs a restart")
	require.NotEqual(t, before, after)
	require.Equal(t, strconv.FormatFloat(gauge(t, r.service, "agentstatsd_config_hash"), 'f', -1, 64), after)
}

// A pubsub that is away is a warning, without its address.
func TestStatusWithoutPubSub(t *testing.T) {
	r := newReloaded(t, "", "--pubsub-url", "nats://ada:hunter2@127.0.0.1:1")
	resp, err := r.admin.GetStatus(t.Context(), &agentstatsv1.GetStatusRequest{})
	require.NoError(t, err)
	require.Equal(t, []string{"there is no connection to the pubsub: this replica sees changes of others only when it reads them again"},
		resp.GetReplicas()[0].GetWarnings())
	require.NotContains(t, resp.String(), "hunter2")
}

func textsOf(o *agentstatsv1.Option) []string {
	return []string{o.GetValue(), o.GetDefaultValue(), o.GetSource(), o.GetEnv()}
}

// What cannot be read again needs a restart, whatever it is.
func TestConfigWithoutReload(t *testing.T) {
	c := configWith(t, nil)
	c.dataDir = t.TempDir()
	c.sources.options = c.options()
	s, err := newService(t.Context(), c, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer s.close()
	resp, err := s.admin.GetConfig(t.Context(), &agentstatsv1.GetConfigRequest{})
	require.NoError(t, err)
	require.NotEmpty(t, resp.GetOptions())
	for _, o := range resp.GetOptions() {
		require.True(t, o.GetNeedsRestart(), o.GetFlag())
	}
}
