package main

import "github.com/grafana/grafana-foundation-sdk/go/units"

func usage() row {
	return row{title: "Use", panels: []panel{
		{
			kind: stack, title: "Sessions by family of apps", unit: units.Short,
			description: "Each family has the apps that belong to it, such as Cursor to VS Code.",
			queries: []query{
				{"sum(" + agentsOf("coderd_agentstats_session_count_vscode") + ")", "VS Code"},
				{"sum(" + agentsOf("coderd_agentstats_session_count_jetbrains") + ")", "JetBrains"},
				{"sum(" + agentsOf("coderd_agentstats_session_count_ssh") + ")", "SSH"},
				{"sum(" + agentsOf("coderd_agentstats_session_count_reconnecting_pty") + ")", "web terminal"},
			},
		},
		{
			kind: stack, title: "Sessions by template", unit: units.Short,
			description: "Open sessions of all apps.",
			queries:     []query{{byTemplate("sum", "coderd_agentstats_session_count"), "{{template_name}}"}},
		},
		{
			kind: stack, title: "Connections by template", unit: units.Short,
			description: "Connections to agents.",
			queries:     []query{{byTemplate("sum", "coderd_agentstats_connection_count"), "{{template_name}}"}},
		},
		{
			kind: table, title: "Workspaces with most connections", unit: units.Short,
			description: "The ten with most connections now.",
			queries:     []query{{top("sum by (username, workspace_name) " + agentsOf("coderd_agentstats_connection_count")), ""}},
			follow:      ofRow,
		},
		{
			title: "Active users by template", unit: units.Short,
			description: "As coderd's insights count them, of the last minutes.",
			queries:     []query{{"max by (template_name) (coderd_insights_templates_active_users{" + ofTemplate + "})", "{{template_name}}"}},
		},
		{
			title: "Time in apps", unit: units.Seconds,
			description: "As coderd's insights count it, of the ten apps that are used most.",
			queries:     []query{{top("sum by (application_name) (coderd_insights_applications_usage_seconds{" + ofTemplate + "})"), "{{application_name}}"}},
		},
		{
			title: "Licence", unit: units.Short,
			description: "Users that count against the licence, and how many it has.",
			queries: []query{
				{"max(coderd_license_active_users{" + ofJob + "})", "active"},
				{"max(coderd_license_limit_users{" + ofJob + "})", "limit"},
			},
		},
		{
			title: "Parameters", unit: units.Short,
			description: "Workspaces by the value of a parameter, the ten with most.",
			queries:     []query{{top("sum by (template_name, parameter_name, parameter_value) (coderd_insights_parameters{" + ofTemplate + "})"), "{{template_name}}: {{parameter_name}} = {{parameter_value}}"}},
		},
	}}
}

func latency() row {
	return row{title: "Latency", panels: []panel{
		{
			title: "Latency by template", unit: units.Seconds,
			description: "The median over the agents of a template that have connections.",
			queries:     []query{{byTemplate("avg", "coderd_agentstats_connection_median_latency_seconds"), "{{template_name}}"}},
		},
		{
			kind: table, title: "Slowest connections", unit: units.Seconds, none: "nobody is connected",
			description: "The ten agents with the highest median latency of their connections.",
			queries:     []query{{top("max by (username, workspace_name, agent_name) " + agentsOf("coderd_agentstats_connection_median_latency_seconds")), ""}},
			follow:      ofRow,
		},
		{
			title: "Latency to DERP regions", unit: units.Seconds,
			description: "From agents to each region, the median over agents.",
			queries:     []query{{"quantile by (derp_region) (0.5, " + agentsOf("coderd_agents_connection_latencies_seconds") + ")", "{{derp_region}}"}},
		},
		{
			kind: stack, title: "Preferred regions", unit: units.Short,
			description: "How many agents prefer a region.",
			queries:     []query{{"count by (derp_region) " + agentsOf(`coderd_agents_connection_latencies_seconds{preferred="true"}`), "{{derp_region}}"}},
		},
		{
			kind: stack, title: "How peers are reached", unit: units.Short,
			description: "p2p: directly. derp: through a relay, which is slower.",
			queries:     []query{{"sum by (connection_type) (coderd_agentstats_currently_reachable_peers{" + ofAgents + `, template_name=~"$template"})`, "{{connection_type}}"}},
		},
		{
			kind: table, title: "Farthest agents", unit: units.Seconds,
			description: "The ten agents with the highest latency to their preferred region.",
			queries:     []query{{top("max by (username, workspace_name, agent_name, derp_region) " + agentsOf(`coderd_agents_connection_latencies_seconds{preferred="true"}`)), ""}},
			follow:      ofRow,
		},
	}}
}

func traffic() row {
	return row{title: "Traffic", panels: []panel{
		{
			kind: stack, title: "Received, by template", unit: units.BytesIEC,
			description: "Bytes of the last minute that agents received, or of the report interval if that is longer.",
			queries:     []query{{byTemplate("sum", "coderd_agentstats_rx_bytes"), "{{template_name}}"}},
		},
		{
			kind: stack, title: "Sent, by template", unit: units.BytesIEC,
			description: "Bytes of the last minute that agents sent.",
			queries:     []query{{byTemplate("sum", "coderd_agentstats_tx_bytes"), "{{template_name}}"}},
		},
		{
			title: "Workspaces that receive most", unit: units.BytesIEC,
			description: "The ten with most bytes of the last minute.",
			queries:     []query{{top("sum by (username, workspace_name) " + agentsOf("coderd_agentstats_rx_bytes")), "{{username}}/{{workspace_name}}"}},
		},
		{
			title: "Workspaces that send most", unit: units.BytesIEC,
			description: "The ten with most bytes of the last minute.",
			queries:     []query{{top("sum by (username, workspace_name) " + agentsOf("coderd_agentstats_tx_bytes")), "{{username}}/{{workspace_name}}"}},
		},
	}}
}

func workspaceBuilds() row {
	const duration = "coderd_template_workspace_build_duration_seconds"
	return row{title: "Builds", panels: []panel{
		{
			title: "Builds", unit: units.CountsPerSecond,
			description: "That ended, by transition and status. An older coderd has no owner here: choose all owners.",
			// Its transition is called action.
			queries: []query{{"sum by (workspace_transition, action, status) (rate(coderd_workspace_builds_total{" + ofBuilds + "}[$__rate_interval]))", "{{workspace_transition}}{{action}} {{status}}"}},
		},
		{
			kind: table, title: "Builds by template and version", unit: units.Short,
			description: "In the time range that is shown: a version that begins to fail stands out.",
			queries:     []query{{builds("coderd_workspace_builds_total", ofBuilds, "template_name, template_version, status"), ""}},
		},
		{
			title: "Until agents are ready", unit: units.Seconds,
			description: "From the creation of a build until all its agents are ready, as percentiles by template.",
			queries: []query{
				{buildQuantile(0.5, duration, ofTemplate, "template_name"), "p50 {{template_name}}"},
				{buildQuantile(0.95, duration, ofTemplate, "template_name"), "p95 {{template_name}}"},
			},
		},
		{
			kind: table, title: "Starts that ended otherwise", unit: units.Short,
			description: "Builds in the time range that is shown, by how their agents started: success, timeout or error, and of prebuilt workspaces or others.",
			queries:     []query{{builds(duration+"_count", ofTemplate, "template_name, status, is_prebuild"), ""}},
		},
		{
			title: "Provisioning", unit: units.Seconds,
			description: "95th percentile of the time that a build takes the provisioner, by transition.",
			queries:     []query{{buildQuantile(0.95, "coderd_provisionerd_workspace_build_timings_seconds", ofTemplate, "workspace_transition"), "{{workspace_transition}}"}},
		},
		{
			title: "Creation of workspaces", unit: units.Seconds,
			description: "95th percentile of first builds, of regular and of prebuilt workspaces, and of claims of prebuilt ones.",
			queries: []query{
				{buildQuantile(0.95, "coderd_workspace_creation_duration_seconds", ofTemplate, "type"), "{{type}}"},
				{buildQuantile(0.95, "coderd_prebuilt_workspace_claim_duration_seconds", ofTemplate, "template_name"), "claims of {{template_name}}"},
			},
		},
		{
			kind: stack, title: "Workspaces by newest build", unit: units.Short,
			description: "Status of the newest build of each workspace of the chosen templates and owners.",
			queries:     []query{{"sum by (status) (coderd_workspace_latest_build_status{" + ofBuilds + "})", "{{status}}"}},
		},
		{
			title: "Workspaces by template's version", unit: units.Short,
			description: "How far a new version of a template has come.",
			queries:     []query{{top("sum by (template_name, template_version) (coderd_workspace_latest_build_status{" + ofBuilds + "})"), "{{template_name}} {{template_version}}"}},
		},
	}}
}

func provisioners() row {
	return row{title: "Provisioners and API", panels: []panel{
		{
			title: "Provisioner daemons", unit: units.Short, steps: noneIsRed,
			description: "Built-in ones of all coderds. External ones have an endpoint of their own.",
			queries:     []query{{"sum(coderd_provisionerd_num_daemons{" + ofJob + "})", "daemons"}},
		},
		{
			title: "Jobs that run", unit: units.Short,
			description: "As many as daemons for long: builds wait.",
			queries:     []query{{"sum by (provisioner) (coderd_provisionerd_jobs_current{" + ofJob + "})", "{{provisioner}}"}},
		},
		{
			title: "Jobs", unit: units.Seconds,
			description: "95th percentile of the time of a job, by status.",
			queries:     []query{{buildQuantile(0.95, "coderd_provisionerd_job_timings_seconds", ofJob, "status"), "{{status}}"}},
		},
		{
			title: "Requests of the API", unit: units.RequestsPerSecond,
			description: "By code, of all coderds.",
			queries:     []query{{"sum by (code) (rate(coderd_api_requests_processed_total{" + ofJob + "}[$__rate_interval]))", "{{code}}"}},
		},
		{
			title: "Slowest paths of the API", unit: units.Seconds,
			description: "The ten with the highest 95th percentile.",
			queries:     []query{{top(buildQuantile(0.95, "coderd_api_request_latencies_seconds", ofJob, "path")), "{{path}}"}},
		},
		{
			title: "Open websockets", unit: units.Short,
			description: "Of all coderds.",
			queries:     []query{{"sum(coderd_api_concurrent_websockets{" + ofJob + "})", "websockets"}},
		},
	}}
}

func metadata() row {
	return row{title: "Metadata", panels: []panel{
		{
			title: "Values written", unit: units.CountsPerSecond,
			description: "What the dashboard of Coder shows of workspaces. Values that are coalesced with newer ones are written once.",
			queries:     []query{{"sum(rate(coderd_agentapi_metadata_flushed_total{" + ofJob + "}[$__rate_interval]))", "values"}},
		},
		{
			title: "Keys dropped", unit: units.CountsPerSecond, steps: anyIsRed,
			description: "Values that were lost for want of room.",
			queries:     []query{{"sum(rate(coderd_agentapi_metadata_dropped_keys_total{" + ofJob + "}[$__rate_interval]))", "dropped"}},
		},
		{
			title: "Time to write", unit: units.Seconds,
			description: "95th percentile of a flush, by its reason.",
			queries:     []query{{buildQuantile(0.95, "coderd_agentapi_metadata_flush_duration_seconds", ofJob, "reason"), "{{reason}}"}},
		},
		{
			title: "Keys of an agent in a batch", unit: units.Short,
			description: "Median and 95th percentile: how many keys an agent changes between two flushes.",
			queries: []query{
				{"histogram_quantile(0.5, sum by (le) (rate(coderd_agentapi_metadata_batch_utilization_bucket{" + ofJob + "}[$__rate_interval])))", "p50"},
				{"histogram_quantile(0.95, sum by (le) (rate(coderd_agentapi_metadata_batch_utilization_bucket{" + ofJob + "}[$__rate_interval])))", "p95"},
			},
		},
	}}
}
