package main

import "github.com/grafana/grafana-foundation-sdk/go/units"

func durability() row {
	return row{title: "Durability", panels: []panel{
		{
			kind: stat, title: "Unaccounted metadata", unit: units.Short, steps: anyIsRed,
			description: "received - flushed - coalesced - unchanged - dropped - pending: always 0 in each scrape. Anything else is a fault of the service.",
			queries: []query{q(`max(abs(sum by (instance) (agentstatsd_metadata_entries_total{@, outcome="received"})`+
				` - sum by (instance) (agentstatsd_metadata_entries_total{@, outcome!="received"}) - sum by (instance) (agentstatsd_metadata_pending{@})))`, "unaccounted")},
		},
		{
			kind: stat, title: "Metadata dropped", unit: units.Short, steps: anyIsRed,
			description: "Values that were lost to a limit or to the database, in the time range that is shown.",
			queries:     []query{q(within(`agentstatsd_metadata_entries_total{outcome="dropped"}`, ""), "dropped")},
		},
		{
			kind: stat, title: "Reports dropped", unit: units.Short, steps: anyIsRed,
			description: "Reports that watchers miss, in the time range that is shown.",
			queries:     []query{q(within("agentstatsd_reports_dropped_total", ""), "dropped")},
		},
		{
			kind: stack, title: "What becomes of metadata", unit: units.CountsPerSecond,
			description: "The law: what is received is flushed, coalesced with a newer value, unchanged, dropped, or still waits. The areas add up to what is received.",
			queries:     []query{q(perSecond(`agentstatsd_metadata_entries_total{outcome!="received"}`, "outcome"), "{{outcome}}")},
		},
		{
			title: "Waits for the database", unit: units.Short,
			description: "Metadata values, states of agents and sums of reports in memory. Growing: the database takes less than comes in, or is away.",
			alerts:      []string{"AgentstatsdPendingFull"},
			queries: []query{
				q("sum(agentstatsd_metadata_pending{@})", "metadata"),
				q("sum(agentstatsd_states_pending{@})", "states"),
				q("sum(agentstatsd_report_sums_pending{@})", "sums of reports"),
			},
		},
		{
			title: "Age of what waits", unit: units.Seconds, steps: []step{{0, "green"}, {15, "orange"}, {30, "red"}},
			description: "The oldest metadata value that waits, and how long the last flush took.",
			alerts:      []string{"AgentstatsdErrorBudgetBurn"},
			queries: []query{
				q("max by (instance) (agentstatsd_metadata_oldest_pending_seconds{@})", "oldest of {{instance}}"),
				q("max by (instance) (agentstatsd_metadata_last_flush_seconds{@})", "last flush of {{instance}}"),
			},
		},
		{
			title: "Writes that fail", unit: units.CountsPerSecond, steps: anyIsRed,
			description: "The database refused them or was away. Nothing acked is lost: it waits, and is written again.",
			alerts:      []string{"AgentstatsdDatabaseFails"},
			queries: []query{
				q(perSecond("agentstatsd_metadata_flush_errors_total", ""), "metadata"),
				q(perSecond("agentstatsd_fleet_write_errors_total", "what"), "{{what}}"),
				q(perSecond("agentstatsd_report_errors_total", "call"), "reports: {{call}}"),
			},
		},
		{
			title: "Dropped, by reason", unit: units.CountsPerSecond,
			description: "Metadata and reports that were lost, by the limit that was met, and agents whose metadata the database refuses.",
			queries: []query{
				q(perSecond("agentstatsd_metadata_dropped_entries_total", "reason"), "metadata: {{reason}}"),
				q(perSecond("agentstatsd_reports_dropped_total", "reason"), "reports: {{reason}}"),
				q("sum(agentstatsd_metadata_quarantined_agents{@})", "agents in quarantine"),
			},
		},
	}}
}

func storage() row {
	return row{title: "Database and pubsub", panels: []panel{
		{
			title: "Slowest calls of the database", unit: units.Seconds,
			description: "The ten calls with the highest 99th percentile.",
			alerts:      []string{"AgentstatsdDatabaseFails"},
			queries:     []query{q(top(quantile(0.99, "agentstatsd_store_query_duration_seconds", "query")), "{{query}}")},
		},
		{
			kind: stack, title: "Time in the database", unit: units.PercentUnit,
			description: "Seconds a second that calls take, of the ten that take most. 100 %: one connection is busy all the time.",
			queries:     []query{q(top(perSecond("agentstatsd_store_query_duration_seconds_sum", "query")), "{{query}}")},
		},
		{
			title: "Connections to the database", unit: units.Short,
			description: "In use, and how many there may be. At the maximum for long, calls wait: with PostgreSQL raise --database-max-conns.",
			queries: []query{
				q("sum by (instance, db_name) (agentstatsd_go_sql_in_use_connections{@})", "{{instance}} {{db_name}}"),
				q("max by (db_name) (agentstatsd_go_sql_max_open_connections{@})", "at most: {{db_name}}"),
			},
		},
		{
			title: "Waiting for a connection", unit: units.PercentUnit,
			description: "Seconds a second that calls wait for a connection to the database.",
			queries:     []query{q("sum by (instance, db_name) (rate(agentstatsd_go_sql_wait_duration_seconds_total{@}[$__rate_interval]))", "{{instance}} {{db_name}}")},
		},
		{
			title: "Pubsub: publish and delivery", unit: units.Seconds, steps: []step{{0, "green"}, {1, "orange"}},
			description: "99th percentiles. Above a second: the pubsub's server, or the network. Nothing is lost: replicas read again.",
			queries: []query{
				q(quantile(0.99, "agentstatsd_pubsub_publish_duration_seconds", ""), "publish"),
				q(quantile(0.99, "agentstatsd_pubsub_delivery_latency_seconds", ""), "delivery"),
			},
		},
		{
			kind: states, title: "Pubsub connected", unit: units.Short,
			description: "While it is not, replicas and watchers see changes only when they read again.",
			alerts:      []string{"AgentstatsdPubsubAway"},
			queries:     []query{q("min by (instance) (agentstatsd_pubsub_connected{@})", "{{instance}}")},
		},
		{
			title: "Pubsub errors", unit: units.CountsPerSecond, steps: anyIsOrange,
			description: "Messages that were not published, were dropped, or came from somebody else, and connections that were made anew.",
			queries: []query{
				q(perSecond("agentstatsd_pubsub_publish_errors_total", ""), "not published"),
				q(perSecond("agentstatsd_pubsub_dropped_messages_total", "reason"), "dropped: {{reason}}"),
				q(perSecond("agentstatsd_pubsub_refused_messages_total", "reason"), "refused: {{reason}}"),
				q(perSecond("agentstatsd_pubsub_reconnects_total", ""), "connected anew"),
			},
		},
		{
			title: "Calls that fail", unit: units.CountsPerSecond, steps: anyIsRed,
			description: "Of the database, by cause, and what is old by them: what other replicas wrote, registrations, and what watchers get. disk_full: nothing is written until there is room.",
			alerts:      []string{"AgentstatsdDatabaseFails"},
			queries: []query{
				q(perSecond("agentstatsd_store_errors_total", "cause"), "{{cause}}"),
				q(perSecond("agentstatsd_fleet_follow_errors_total", ""), "states of others"),
				q(perSecond("agentstatsd_registrations_load_errors_total", ""), "registrations"),
				q(perSecond("agentstatsd_watch_read_errors_total", ""), "metadata for watchers"),
				q(perSecond(`agentstatsd_push_follows_total{outcome="failed"}`, ""), "pushes of others"),
			},
		},
	}}
}

func refusals() row {
	return row{title: "Refusals", panels: []panel{
		{
			kind: table, title: "Templates whose agents are refused most", unit: units.Short, none: "nothing was refused",
			description: "Items in the time range that is shown, by template and reason. agentstatsd refusals names the agents, the limit and what exceeds it.",
			alerts:      []string{"AgentstatsdRefusals"},
			queries:     []query{q(top(within("agentstatsd_refused_items_total", "template, reason")), "")},
			follow:      link{title: "Its workspaces", url: "/d/" + uidWorkspaces + "?var-template=${__data.fields.template}&${__url_time_range}"},
		},
		{
			title: "Items of agents, by reason", unit: units.CountsPerSecond,
			description: "Everything that agents sent and that was refused. The agent gets the reason, too.",
			queries:     []query{q(perSecond("agentstatsd_refused_items_total", "reason"), "{{reason}}")},
		},
		{
			title: "Samples, by reason", unit: units.CountsPerSecond,
			description: "Samples that agents forwarded and that cannot be served.",
			queries:     []query{q(perSecond("agentstatsd_samples_refused_total", "reason"), "{{reason}}")},
		},
		{
			title: "Metadata and states, by reason", unit: units.CountsPerSecond,
			description: "Keys that the template does not declare, too many of them, and states that are no valid ones.",
			queries: []query{
				q(perSecond("agentstatsd_metadata_refused_keys_total", "reason"), "metadata: {{reason}}"),
				q(perSecond("agentstatsd_state_refused_total", "reason"), "state: {{reason}}"),
			},
		},
		{
			title: "Credentials", unit: units.CountsPerSecond,
			description: "unknown: a wrong or old token, or somebody guesses. unavailable: the database cannot be asked.",
			queries:     []query{q(perSecond("agentstatsd_auth_failures_total", "reason"), "{{reason}}")},
		},
		{
			title: "Connections and calls, by limit", unit: units.CountsPerSecond,
			description: "What agents, coderd and strangers met on the gRPC listener.",
			queries:     []query{q(perSecond("agentstatsd_grpc_limited_total", "reason"), "{{reason}}")},
		},
		{
			title: "TLS handshakes that fail", unit: units.CountsPerSecond,
			description: "rejected: clients do not trust the certificate. not_tls: clients without TLS, or scanners.",
			queries: []query{
				q(perSecond("agentstatsd_tls_handshakes_failed_total", "reason"), "{{reason}}"),
				q(perSecond("agentstatsd_tls_handshakes_refused_total", "reason"), "refused: {{reason}}"),
			},
		},
		{
			title: "Pushed by coderd, by reason", unit: units.CountsPerSecond,
			description: "Families and series of coderd that are missing here. coderd gets the reason, too.",
			queries: []query{
				q(perSecond("agentstatsd_pushed_families_refused_total", "reason"), "families: {{reason}}"),
				q(perSecond("agentstatsd_pushed_series_refused_total", "reason"), "series: {{reason}}"),
			},
		},
	}}
}

func cost() row {
	return row{title: "Cost", panels: []panel{
		{
			kind: bars, title: "Nearest limits", unit: units.PercentUnit, steps: shareIsRed, top: 1,
			description: "What is used of the ten limits of which most is used, on the replica that uses most. docs/configuration.md has the option of each.",
			queries:     []query{q("topk(10, max by (what) (agentstatsd_usage{@} / on (namespace, job, instance, what) agentstatsd_limit{@}))", "{{what}}")},
		},
		{
			kind: stack, title: "Series", unit: units.Short,
			description: "Series of agents by replica, and of coderd.",
			queries: []query{
				q("sum by (instance) (agentstatsd_series{@})", "of agents, on {{instance}}"),
				q("max(agentstatsd_pushed_series{@})", "of coderd"),
			},
		},
		{
			title: "Series that come and go", unit: units.CountsPerSecond,
			description: "Expired: agents went away without a goodbye, or send other series each time. Replaced: an agent has other labels in each report.",
			queries: []query{
				q(perSecond("agentstatsd_series_expired_total", ""), "expired"),
				q(perSecond("agentstatsd_series_replaced_total", ""), "replaced"),
			},
		},
		{
			title: "Memory, by what has it", unit: units.BytesIEC,
			description: "Of series, registrations, calls of coderd, and messages that are being received; the heap has more than these.",
			queries: []query{
				q("sum(agentstatsd_series_bytes{@})", "series of agents"),
				q("max(agentstatsd_registrations_bytes{@})", "registrations, on each replica"),
				q("sum by (kind) (agentstatsd_coderd_memory_bytes{@})", "calls of coderd: {{kind}}"),
				q("sum by (role) (agentstatsd_grpc_receiving_bytes{@})", "receiving from {{role}}"),
			},
		},
		{
			title: "Heap and goroutines", unit: units.Short,
			description: "Of each process. Goroutines follow the number of connections.",
			queries: []query{
				q("max by (instance) (go_goroutines{@})", "goroutines of {{instance}}"),
			},
		},
		{
			title: "Samples that agents forward", unit: units.CountsPerSecond,
			description: "Samples taken in, and families by name.",
			queries: []query{
				q(perSecond("agentstatsd_samples_total", ""), "samples"),
				q("max(agentstatsd_families{@})", "families"),
			},
		},
		{
			title: "Connections", unit: units.Short,
			description: "Of the gRPC listener, and of the HTTP listeners.",
			queries: []query{
				q("sum by (instance) (agentstatsd_grpc_connections{@})", "gRPC of {{instance}}"),
				q("sum by (instance, listener) (agentstatsd_http_connections{@})", "HTTP of {{instance}}: {{listener}}"),
			},
		},
		{
			title: "Lines of the log that were left out", unit: units.CountsPerSecond,
			description: "Beyond --log-max-per-minute. Something is logged very often.",
			queries:     []query{q(perSecond("agentstatsd_log_lines_suppressed_total", "instance"), "{{instance}}")},
		},
	}}
}
