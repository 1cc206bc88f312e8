package main

import "github.com/grafana/grafana-foundation-sdk/go/units"

const (
	uidOperators  = "agentstatsd"
	uidWorkspaces = "agentstatsd-workspaces"
)

// operators is the dashboard for those who run the service.
func operators() board {
	return board{
		uid: uidOperators, title: "agentstatsd", refresh: "30s", tags: []string{"agentstatsd", "coder"},
		description: "For those who run agentstatsd: whether it works, whether anything is lost, what is refused, what it costs.",
		variables: []variable{
			{"namespace", "Namespace", "label_values(agentstatsd_build_info, namespace)", "Of the targets. Without Kubernetes there is none: All.", true},
			{"job", "Job", `label_values(agentstatsd_build_info{namespace=~"$namespace"}, job)`, "The service's, and its bridges'.", false},
			{"instance", "Instance", `label_values(agentstatsd_build_info{namespace=~"$namespace", job=~"$job"}, instance)`, "Replicas and bridges.", false},
		},
		annotations: []annotation{
			{"Alerts", `ALERTS{alertname=~"Agentstatsd.+", alertstate="firing"}`, "red", "{{alertname}}"},
			{"Starts", service("time() - process_start_time_seconds{@} < 60"), "blue", "{{instance}} started"},
			{"Reloads", service("changes(agentstatsd_config_last_reload_success_timestamp_seconds{@}[$__rate_interval]) > 0"), "purple", "{{instance}} reloaded its configuration"},
		},
		links: []link{
			{"Workspaces", "/d/" + uidWorkspaces, "What users of Coder see", true},
			{"Runbooks", repository + "docs/runbooks/README.md", "What to do when an alert fires", false},
			{"Metrics", repository + "docs/metrics.md", "What each metric means", false},
			{"Operations", repository + "docs/operations.md", "What has to be done while the service runs", false},
		},
		rows: []row{
			overview(), objectives(), health(), agents(), durability(), storage(), refusals(), cost(), scrapes(), replicas(), coderd(), bridge(), bridgeCoder(),
		},
	}
}

func overview() row {
	return row{title: "Overview", open: true, panels: []panel{
		{
			kind: stat, title: "Ready processes", unit: units.Short, steps: noneIsRed,
			description: "Replicas and bridges whose components all work. /-/ready of the others says what does not.",
			queries:     []query{q("count(min by (instance) (agentstatsd_component_ready{@}) == 1) or vector(0)", "ready")},
		},
		{
			kind: stat, title: "Connected agents", unit: units.Short,
			description: "Open sessions of agents, those that are relayed included, on all replicas.",
			queries:     []query{q("sum(agentstatsd_sessions{@})", "connected")},
		},
		{
			kind: stat, title: "Registered agents", unit: units.Short, steps: noneIsRed,
			description: "Agents that coderd, or a bridge, has registered. A sudden fall: too much was removed.",
			queries:     []query{q("max(agentstatsd_agents_registered{@})", "registered")},
		},
		{
			kind: stat, title: "Series served", unit: units.Short,
			description: "Series of agents, and those that coderd pushed, on all replicas.",
			queries:     []query{q("sum(agentstatsd_series{@}) + sum(agentstatsd_pushed_series{@} * on (job, instance) agentstatsd_serves_pushed_families{@})", "series")},
		},
		{
			kind: stat, title: "Oldest unwritten metadata", unit: units.Seconds, steps: []step{{0, "green"}, {15, "orange"}, {30, "red"}},
			description: "How long the oldest metadata value waits for the database. It should be below twice --metadata-flush-interval.",
			alerts:      []string{"AgentstatsdErrorBudgetBurn", "AgentstatsdPendingFull"},
			queries:     []query{q("max(agentstatsd_metadata_oldest_pending_seconds{@})", "oldest")},
		},
		{
			kind: stat, title: "Refused", unit: units.CountsPerSecond, steps: anyIsOrange,
			description: "Items of agents that were refused in a second. The row Refusals says of which template, and why.",
			alerts:      []string{"AgentstatsdRefusals"},
			queries:     []query{q(perSecond("agentstatsd_refused_items_total", ""), "refused")},
		},
		{
			kind: stat, title: "Nearest limit", unit: units.PercentUnit, steps: shareIsRed,
			description: "The limit of which most is used. The row Cost names it; above 90 % what is new is about to be refused.",
			queries:     []query{q("max(agentstatsd_usage{@} / on (namespace, job, instance, what) agentstatsd_limit{@})", "used")},
		},
		{
			kind: stat, title: "Slowest scrape", unit: units.Seconds, steps: []step{{0, "green"}, {5, "orange"}, {9, "red"}},
			description: "The 99th percentile of scrapes, of the slowest replica. Beyond Prometheus's scrape timeout, series are missing.",
			alerts:      []string{"AgentstatsdNotScraped", "AgentstatsdErrorBudgetBurn"},
			queries:     []query{q("max("+quantile(0.99, "agentstatsd_scrape_duration_seconds", "instance")+")", "p99")},
		},
	}}
}

// objectives are of the recording rules in deploy/prometheus, which have no instance.
func objectives() row {
	const of = `{namespace=~"$namespace", job=~"$job"}`
	budget := []string{"AgentstatsdErrorBudgetBurn"}
	return row{title: "Objectives and alerts (with the rules of deploy/prometheus)", panels: []panel{
		{
			title: "Error budget that is left", unit: units.PercentUnit, alerts: budget, signed: true, steps: []step{{-1, "red"}, {0, "orange"}, {0.5, "green"}},
			description: "Of the errors that 30 days may have by each objective: durable within 30 s, fresh series, scrapes within 5 s. Below 0 more than that were.",
			queries:     []query{{"agentstatsd:slo_budget_left:ratio30d" + of, "{{slo}}, {{job}}"}},
		},
		{
			title: "Burn rate", unit: units.Short, alerts: budget, steps: []step{{0, "green"}, {6, "orange"}, {14.4, "red"}},
			description: "How many times as many errors as the budget allows there were in the last hour. At 14.4 an hour takes 2 % of 30 days.",
			queries:     []query{{"agentstatsd:slo_errors:ratio_avg1h" + of + " / on (slo) group_left () agentstatsd:slo_budget:ratio", "{{slo}}, {{job}}"}},
		},
		{
			title: "Errors", unit: units.PercentUnit, alerts: budget,
			description: "The share of replicas, agents or scrapes that are not as the objective says, now.",
			queries:     []query{{"agentstatsd:slo_errors:ratio" + of, "{{slo}}, {{job}}"}},
		},
		{
			kind: table, title: "Alerts", unit: units.Short, none: "no alert",
			description: "Of agentstatsd, pending and firing. Each has a runbook.",
			queries:     []query{{"count by (alertname, alertstate, severity, job) (ALERTS{alertname=~\"Agentstatsd.+\"})", ""}},
			follow:      link{title: "Runbook", url: repository + "docs/runbooks/${__data.fields.alertname}.md"},
		},
	}}
}

func health() row {
	return row{title: "Health", open: true, panels: []panel{
		{
			kind: states, title: "Ready, by component", unit: units.Short,
			description: "What each process says of its components. draining: the process stops, or an operator has it drain.",
			queries:     []query{q("min by (instance, component) (agentstatsd_component_ready{@})", "{{instance}} {{component}}")},
		},
		{
			title: "Memory", unit: units.BytesIEC,
			description: "What the process takes, and what it may take. Near the limit the kernel kills it: give it more, or lower its limits.",
			alerts:      []string{"AgentstatsdMemoryNearLimit"},
			queries: []query{
				q("max by (instance) (process_resident_memory_bytes{@})", "{{instance}}"),
				q("max by (instance) (agentstatsd_memory_limit_bytes{@})", "limit of {{instance}}"),
			},
		},
		{
			title: "CPU", unit: units.Short,
			description: "Cores that each process uses.",
			queries:     []query{q("sum by (instance) (rate(process_cpu_seconds_total{@}[$__rate_interval]))", "{{instance}}")},
		},
		{
			title: "Open files", unit: units.PercentUnit, steps: shareIsRed, top: 1,
			description: "Of those that the process may open. At 100 % nobody can connect, Prometheus neither.",
			queries:     []query{q("process_open_fds{@} / process_max_fds{@}", "{{instance}}")},
		},
		{
			title: "Faults", unit: units.Short,
			description: "What should never be: panics, series that could not be served, rows and messages that could not be read. Report it with the log.",
			queries: []query{
				q(grown("agentstatsd_panics_total"), "panics"),
				q(grown("agentstatsd_states_unserved_total"), "states that were not served"),
				q(grown("agentstatsd_pushed_family_render_errors_total"), "families that were not rendered"),
				q(grown("agentstatsd_store_undecodable_rows_total"), "rows that were not decoded"),
				q(grown("agentstatsd_fleet_notifications_malformed_total"), "notifications that were not decoded"),
			},
		},
		{
			title: "Configuration", unit: units.Short, steps: anyIsRed,
			description: "Reloads that failed: all stays as it was, and /-/ready names the file. Differences between replicas, in tokens, limits or times.",
			queries: []query{
				q("sum by (instance) (1 - agentstatsd_config_last_reload_successful{@})", "{{instance}}: last reload failed"),
				q("sum by (instance) (agentstatsd_replica_config_differences{@})", "{{instance}}: differences"),
			},
		},
		{
			title: "Certificates and tokens expire in", unit: units.Seconds, steps: []step{{0, "red"}, {7 * 24 * 3600, "green"}},
			description: "Time until the certificate of a listener, and the API token of a bridge, end. Renew them before the last week.",
			alerts:      []string{"AgentstatsdCertificateExpires"},
			queries: []query{
				q("min by (instance, listener) (agentstatsd_tls_certificate_expiry_timestamp_seconds{@}) - time()", "{{listener}} of {{instance}}"),
				q("min by (instance) (agentstatsd_bridge_coder_token_expiry_timestamp_seconds{@} > 0) - time()", "API token of {{instance}}"),
			},
		},
		{
			kind: table, title: "Versions", unit: units.Short,
			description: "Which version runs where.",
			queries:     []query{q("count by (instance, version, revision, goversion) (agentstatsd_build_info{@})", "{{instance}}")},
		},
	}}
}

func agents() row {
	return row{title: "Agents", panels: []panel{
		{
			kind: stack, title: "Sessions", unit: units.Short,
			description: "Connected agents by replica. A sudden fall: the network, a proxy, or a certificate that agents do not trust.",
			queries:     []query{q("sum by (instance) (agentstatsd_sessions{@})", "{{instance}}")},
		},
		{
			title: "Sessions that end", unit: units.CountsPerSecond,
			description: "By how they end. disconnect: the network or a proxy cuts streams. takeover: agents, or relays, connect twice.",
			queries:     []query{q(perSecond("agentstatsd_sessions_ended_total", "end"), "{{end}}")},
		},
		{
			kind: stack, title: "Requests of agents", unit: units.RequestsPerSecond,
			description: "What agents send, by kind. Flat while agents are connected: nothing comes in.",
			queries:     []query{q(perSecond("agentstatsd_agent_requests_total", "kind"), "{{kind}}")},
		},
		{
			title: "Relayed and overdue agents", unit: units.Short,
			description: "Agents that a bridge, or coderd, relays, and its streams: 0 while one relays, its agents are not served. Overdue: connected without a report, so their series expire.",
			alerts:      []string{"AgentstatsdErrorBudgetBurn"},
			queries: []query{
				q("sum(agentstatsd_relayed_sessions{@})", "relayed sessions"),
				q("sum(agentstatsd_relay_streams{@})", "streams of relays"),
				q("sum(agentstatsd_agents_overdue{@})", "overdue"),
			},
		},
		{
			title: "Load", unit: units.PercentUnit, steps: []step{{0, "green"}, {1, "orange"}},
			description: "Of CPU, of flushes and of what waits; at 100 % agents are told to report less often. More CPU, more replicas or a faster database, by its kind.",
			queries:     []query{q("max by (kind) (agentstatsd_load{@})", "{{kind}}")},
		},
		{
			title: "Interval factor", unit: units.Short,
			description: "By how much the intervals of agents are lengthened under load. 1: not at all.",
			queries:     []query{q("max(agentstatsd_interval_factor{@})", "factor")},
		},
		{
			title: "Agents that are slowed or locked out", unit: units.CountsPerSecond,
			description: "Messages that came faster than --agent-message-rate or --agent-byte-rate, and agents that were locked out for a while.",
			alerts:      []string{"AgentstatsdAgentFlood"},
			queries: []query{
				q(perSecond("agentstatsd_agent_messages_delayed_total", "reason"), "delayed: {{reason}}"),
				q(perSecond("agentstatsd_agents_limited_total", "reason"), "locked out: {{reason}}"),
			},
		},
		{
			title: "Registrations", unit: units.CountsPerSecond,
			description: "How often workspaces start and stop, by what became of the registration.",
			queries:     []query{q(perSecond("agentstatsd_registrations_total", "outcome"), "{{outcome}}")},
		},
	}}
}
