package metrics

// agentFamilies are what the agents report and forward, and what the service
// knows of their state.
var agentFamilies = []Family{
	{
		Name: "agent_scripts_executed_total", Type: Counter, Owner: OwnerAgents, Group: GroupIncrements,
		Labels: []string{"agent_name", "success", "template_name", "username", "workspace_name"},
		Help:   "Total number of scripts executed by the Coder agent. Includes cron scheduled scripts.",
		Source: "Forwarded by agents: 1 for each script that ended.",
	},
	{
		Name: "coderd_agents_apps", Type: Gauge, Owner: OwnerService,
		Labels: []string{"agent_name", "app_name", "health", "username", "workspace_name"},
		Help:   "Agent applications with statuses.",
		Source: "Number of the agent's apps with that display name and health.",
	},
	{
		Name: "coderd_agents_connection_latencies_seconds", Type: Gauge, Owner: OwnerService,
		Labels: []string{"agent_name", "derp_region", "preferred", "username", "workspace_name"},
		Help:   "Agent connection latencies in seconds.",
		Source: "Latency to each DERP region in the agent's newest network message.",
	},
	{
		Name: "coderd_agents_connections", Type: Gauge, Owner: OwnerService,
		Labels: []string{"agent_name", "lifecycle_state", "status", "tailnet_node", "username", "workspace_name"},
		Help:   "Agent connections with statuses.",
		Source: "1 for each agent, with its status: connecting, connected, disconnected or timeout. tailnet_node is nodeid: and the id of the agent's node in hexadecimal; unknown until the agent has reported it, and while it is not connected.",
	},
	{
		Name: "coderd_agents_up", Type: Gauge, Owner: OwnerService,
		Labels: []string{"template_name", "username", "workspace_name"},
		Help:   "The number of active agents per workspace.",
		Source: "Number of connected agents of the workspace, where Coder counts all of its latest build; 0 for a registered workspace without any. With --prometheus-extra-labels=template_version it has that label, as Coder's own family.",
	},
	{
		Name: "coderd_agentstats_connection_count", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of established connections by agent",
		Source: "connection_count of the agent's newest report.",
	},
	{
		Name: "coderd_agentstats_connection_median_latency_seconds", Type: Gauge, Owner: OwnerService, Group: GroupWeightedMean,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The median agent connection latency",
		Source: "connection_median_latency_ms of the agent's newest report, in seconds. Absent when the report has none.",
	},
	{
		Name: "coderd_agentstats_currently_reachable_peers", Type: Gauge, Owner: OwnerAgents, Group: GroupSum,
		Labels: []string{"agent_name", "connection_type", "template_name", "username", "workspace_name"},
		Help:   "The number of peers (e.g. clients) that are currently reachable over the encrypted network.",
		Source: "Forwarded by agents: peers that answered a ping, by connection_type p2p and derp.",
	},
	{
		Name: "coderd_agentstats_rx_bytes", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "Agent Rx bytes",
		Source: "Sum of the rx_bytes that the agent reported in the last minute, or in the last report interval if that is longer. Not a total.",
	},
	{
		Name: "coderd_agentstats_session_count_jetbrains", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of session established by JetBrains",
		Source: "Sessions of the JetBrains family of apps in the agent's newest report.",
	},
	{
		Name: "coderd_agentstats_session_count_reconnecting_pty", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of session established by reconnecting PTY",
		Source: "Sessions of the web terminal in the agent's newest report.",
	},
	{
		Name: "coderd_agentstats_session_count_ssh", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of session established by SSH",
		Source: "Sessions of the SSH family of apps in the agent's newest report.",
	},
	{
		Name: "coderd_agentstats_session_count_vscode", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of session established by VSCode",
		Source: "Sessions of the VS Code family of apps in the agent's newest report.",
	},
	{
		Name: "coderd_agentstats_startup_script_seconds", Type: Gauge, Owner: OwnerAgents, Group: GroupMax,
		Labels: []string{"agent_name", "success", "template_name", "username", "workspace_name"},
		Help:   "The number of seconds the startup script took to execute.",
		Source: "Forwarded by agents: from the start of the first startup script to the end of the last.",
	},
	{
		Name: "coderd_agentstats_tx_bytes", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "Agent Tx bytes",
		Source: "Sum of the tx_bytes that the agent reported in the last minute, or in the last report interval if that is longer. Not a total.",
	},
	{
		Name: "coderd_metrics_collector_agents_execution_seconds", Type: Histogram, Owner: OwnerService,
		Help:    "Histogram for duration of agents metrics collection in seconds.",
		Buckets: []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10, 30},
		Source:  "Time that making the families of agents' state takes. Coder's own is called coderd_prometheusmetrics_agents_execution_seconds.",
	},
	{
		Name: "coderd_template_workspace_build_duration_seconds", Type: Histogram, Owner: OwnerService,
		Labels:  []string{"is_prebuild", "organization_name", "status", "template_name", "transition"},
		Help:    "Duration from workspace build creation to agent ready, by template.",
		Buckets: []float64{1, 10, 30, 60, 300, 600, 1800, 3600},
		Native:  fineHistogram,
		Source:  "Observed once for each build, when the last of its agents is ready, timed out or failed, as it says or as a registration has it; sub-agents do not count. A template's series go an hour after its last workspace.",
	},
}
