package metrics

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheckForwardedName(t *testing.T) {
	for name, want := range map[string]Reason{
		"agent_scripts_executed_total":                "",
		"coderd_agentstats_currently_reachable_peers": "",
		"coderd_agentstats_startup_script_seconds":    "",
		"a":                                    "",
		"_":                                    "",
		":a:b":                                 "",
		"Az09_":                                "",
		"goroutines":                           "",
		"upper":                                "",
		"ALERTSX":                              "",
		strings.Repeat("n", 200):               "",
		strings.Repeat("n", 201):               ReasonNameTooLong,
		"":                                     ReasonInvalidName,
		"0a":                                   ReasonInvalidName,
		"a-b":                                  ReasonInvalidName,
		"a b":                                  ReasonInvalidName,
		"a\n":                                  ReasonInvalidName,
		"é":                                    ReasonInvalidName,
		"a\xff":                                ReasonInvalidName,
		"a{b=\"c\"}":                           ReasonInvalidName,
		"coderd_agentstats_rx_bytes":           ReasonReservedName,
		"coderd_agentapi_metadata_batch_size":  ReasonReservedName,
		"coderd_agentstats_startup_script_sec": ReasonReservedName,
		"coderd_agents_up":                     ReasonReservedName,
		"coderd_workspace_builds_total":        ReasonReservedName,
		"go_goroutines":                        ReasonReservedName,
		"coderd_x":                             ReasonReservedName,
		"coder_x":                              ReasonReservedName,
		"go_x":                                 ReasonReservedName,
		"process_x":                            ReasonReservedName,
		"promhttp_x":                           ReasonReservedName,
		"grpc_x":                               ReasonReservedName,
		"agentstatsd_x":                        ReasonReservedName,
		"scrape_x":                             ReasonReservedName,
		"up":                                   ReasonReservedName,
		"ALERTS":                               ReasonReservedName,
		"ALERTS_FOR_STATE":                     ReasonReservedName,
	} {
		require.Equal(t, want, CheckForwardedName(name), "%q", name)
	}
}

func TestCheckPushedName(t *testing.T) {
	for name, want := range map[string]Reason{
		"coderd_api_requests_processed_total":               "",
		"coderd_workspace_creation_total":                   "",
		"coderd_newer_than_the_catalogue":                   "",
		"coder_pubsub_messages_total":                       "",
		"coderd_prometheusmetrics_agents_execution_seconds": "",
		"grpc_client_handled_total":                         "",
		"go":                                                "",
		"goroutines":                                        "",
		"upper":                                             "",
		"ALERTSX":                                           "",
		"a:b":                                               "",
		"coderd_agentapi_metadata_flushed_total_sum": "", // of a counter, which has no such lines
		"coderd_api_request_latencies_seconds_count": "", // coderd's own affair
		strings.Repeat("n", 200):                     "",
		strings.Repeat("n", 201):                     ReasonNameTooLong,
		"":                                           ReasonInvalidName,
		"a-b":                                        ReasonInvalidName,
		"a\xff":                                      ReasonInvalidName,
		"coderd_agentstats_rx_bytes":                 ReasonOwnedByService,
		"coderd_agents_up":                           ReasonOwnedByService,
		"coderd_agentapi_metadata_batch_size":        ReasonOwnedByService,
		"coderd_agentapi_metadata_batch_size_bucket":        ReasonOwnedByService,
		"coderd_agentapi_metadata_batch_size_count":         ReasonOwnedByService,
		"coderd_agentapi_metadata_batch_size_sum":           ReasonOwnedByService,
		"coderd_agentstats_connection":                      ReasonOwnedByService, // its _count
		"coderd_template_workspace_build_duration_seconds":  ReasonOwnedByService,
		"coderd_metrics_collector_agents_execution_seconds": ReasonOwnedByService,
		"agent_scripts_executed_total":                      ReasonOwnedByService,
		"coderd_agentstats_startup_script_seconds":          ReasonOwnedByService,
		"go_goroutines":                          ReasonOwnedByService,
		"go_gc_gogc_percent":                     ReasonOwnedByService,
		"process_open_fds":                       ReasonOwnedByService,
		"promhttp_metric_handler_requests_total": ReasonOwnedByService,
		"go_sql_open_connections":                "",
		"go_gc_duration_seconds_sum":             ReasonOwnedByService,
		"process_network_receive_bytes_total":    "",
		"agentstatsd_x":                          ReasonOwnedByService,
		"grpc_server_handled_total":              ReasonOwnedByService,
		"scrape_duration_seconds":                ReasonOwnedByService,
		"up":                                     ReasonOwnedByService,
		"ALERTS":                                 ReasonOwnedByService,
		"ALERTS_FOR_STATE":                       ReasonOwnedByService,
	} {
		require.Equal(t, want, CheckPushedName(name), "%q", name)
	}
}

// No family that the service has of its own process may be pushed.
func TestFamiliesOfTheProcessAreReserved(t *testing.T) {
	families, err := NewRegistry().Gather()
	require.NoError(t, err)
	require.Greater(t, len(families), 35)
	for _, f := range families {
		require.Equal(t, ReasonOwnedByService, CheckPushedName(f.GetName()), f.GetName())
	}
}

func TestCheckLabel(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        Reason
	}{
		{"a", "", ""},
		{"_a1", "é\n\x00\"", ""},
		{"le2", "v", ""},
		{strings.Repeat("n", 128), strings.Repeat("v", 1024), ""},
		{strings.Repeat("n", 129), "v", ReasonLabelNameTooLong},
		{"a", strings.Repeat("v", 1025), ReasonLabelValueTooLong},
		{"a", "\xff", ReasonInvalidLabelValue},
		{"a", "\xed\xa0\x80", ReasonInvalidLabelValue},
		{"", "v", ReasonInvalidLabelName},
		{"a:b", "v", ReasonInvalidLabelName},
		{"a-b", "v", ReasonInvalidLabelName},
		{"1", "v", ReasonInvalidLabelName},
		{"é", "v", ReasonInvalidLabelName},
		{"__name__", "v", ReasonReservedLabel},
		{"__", "v", ReasonReservedLabel},
		{"username", "v", ReasonReservedLabel},
		{"workspace_name", "v", ReasonReservedLabel},
		{"agent_name", "v", ReasonReservedLabel},
		{"template_name", "v", ReasonReservedLabel},
		{"le", "v", ReasonReservedLabel},
		{"quantile", "v", ReasonReservedLabel},
	} {
		require.Equal(t, c.want, CheckLabel(c.name, c.value), "%q=%q", c.name, c.value)
	}
}
