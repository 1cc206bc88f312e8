package main

import "github.com/grafana/grafana-foundation-sdk/go/units"

func scrapes() row {
	return row{title: "Scrapes", panels: []panel{
		{
			title: "Duration", unit: units.Seconds,
			description: "Percentiles by format, until all was written. Near the scrape timeout of Prometheus: raise that, or serve less.",
			queries: []query{
				q(quantile(0.99, "agentstatsd_scrape_duration_seconds", "format"), "p99 {{format}}"),
				q(quantile(0.5, "agentstatsd_scrape_duration_seconds", "format"), "p50 {{format}}"),
			},
		},
		{
			title: "Bytes", unit: units.BytesPerSecondIEC,
			description: "What scrapers read, by coding, on all replicas.",
			queries:     []query{q(perSecond("agentstatsd_scrape_bytes_total", "encoding"), "{{encoding}}")},
		},
		{
			title: "Scrapes a second", unit: units.CountsPerSecond,
			description: "By format, on each replica. Each Prometheus should make one in each of its scrape intervals.",
			queries:     []query{q(perSecond("agentstatsd_scrape_duration_seconds_count", "instance, format"), "{{instance}} {{format}}")},
		},
		{
			title: "Scrapes that fail or wait", unit: units.CountsPerSecond, steps: anyIsOrange,
			description: "write: Prometheus gives up. Refused: more scrapers than --max-concurrent-scrapes or --max-scrapes-per-second allow. Cut: slow readers, while others waited.",
			alerts:      []string{"AgentstatsdNotScraped"},
			queries: []query{
				q(perSecond("agentstatsd_scrape_errors_total", "cause"), "failed: {{cause}}"),
				q(perSecond("agentstatsd_scrapes_refused_total", ""), "refused"),
				q(perSecond("agentstatsd_scrapes_cut_total", ""), "cut"),
				q("sum(agentstatsd_scrapes_waiting{@})", "waiting now"),
			},
		},
		{
			title: "As Prometheus sees it", unit: units.Seconds,
			description: "The time that each scrape took it.",
			queries:     []query{q("scrape_duration_seconds{@}", "{{instance}}")},
		},
		{
			title: "Samples in a scrape", unit: units.Short,
			description: "Before relabelling, and those of them that are kept.",
			queries: []query{
				q("scrape_samples_scraped{@}", "{{instance}}"),
				q("scrape_samples_post_metric_relabeling{@}", "{{instance}}, kept"),
			},
		},
		{
			title: "Since the last scrape", unit: units.Seconds, steps: []step{{0, "green"}, {60, "orange"}, {300, "red"}},
			description: "As each replica counts, at its newest scrape: long after a pause in which Prometheus did not come.",
			queries:     []query{q("time() - max by (instance) (agentstatsd_last_scrape_timestamp_seconds{@})", "{{instance}}")},
		},
		{
			title: "Status pages", unit: units.CountsPerSecond,
			description: "Pages and answers of the JSON that were refused or cut, and those that wait.",
			queries: []query{
				q(perSecond("agentstatsd_pages_refused_total", ""), "refused"),
				q(perSecond("agentstatsd_pages_cut_total", ""), "cut"),
				q("sum(agentstatsd_pages_waiting{@})", "waiting now"),
			},
		},
	}}
}

func replicas() row {
	return row{title: "Replicas (PostgreSQL)", panels: []panel{
		{
			title: "Live replicas", unit: units.Short,
			description: "As each one sees it. Fewer than were started: one is away, or has another database. Those that share serve what is not connected.",
			alerts:      []string{"AgentstatsdReplicaLost"},
			queries: []query{
				q("max by (instance) (agentstatsd_replicas_live{@})", "{{instance}}"),
				q("max by (instance) (agentstatsd_replicas_sharing{@})", "{{instance}}: share"),
				q("max(agentstatsd_replicas_gone{@})", "gone without a word"),
			},
		},
		{
			kind: states, title: "Leads", unit: units.Short,
			description: "One replica leads. None for a minute: pushed families are not served, or the database is away.",
			alerts:      []string{"AgentstatsdNobodyLeads"},
			queries:     []query{q("max by (instance) (agentstatsd_replica_leads{@})", "{{instance}}")},
		},
		{
			kind: states, title: "Serves what coderd pushes", unit: units.Short,
			description: "Exactly one replica does.",
			queries:     []query{q("max by (instance) (agentstatsd_serves_pushed_families{@})", "{{instance}}")},
		},
		{
			kind: states, title: "Member", unit: units.Short,
			description: "While a replica is none, the others serve in its place.",
			queries:     []query{q("max by (instance) (agentstatsd_replica_member{@})", "{{instance}}")},
		},
		{
			title: "Heartbeats that fail", unit: units.CountsPerSecond, steps: anyIsRed,
			description: "The replica loses the database. Changes of the lease: it does so again and again.",
			queries: []query{
				q(perSecond("agentstatsd_replica_heartbeat_errors_total", "instance"), "{{instance}}"),
				q(perSecond("agentstatsd_replica_lease_changes_total", "instance"), "{{instance}}: changes of the lease"),
			},
		},
		{
			title: "Strangers", unit: units.Short, steps: anyIsOrange,
			description: "Who publishes to these replicas and is not in their database: one without it, or another deployment with the same id.",
			queries:     []query{q("max by (instance) (agentstatsd_replica_strangers{@})", "{{instance}}")},
		},
		{
			title: "Clocks", unit: units.Seconds, signed: true,
			description: "How far the clock of each replica is from the database's. Beyond some seconds one of them is wrong: times of builds and sessions are, too.",
			alerts:      []string{"AgentstatsdClockSkew"},
			queries:     []query{q("max by (instance) (agentstatsd_replica_clock_skew_seconds{@})", "{{instance}}")},
		},
		{
			title: "Exchange that fails", unit: units.CountsPerSecond, steps: anyIsOrange,
			description: "Of what replicas say of themselves, which status pages then show as it was, and of notifications: others see changes when they read again.",
			queries: []query{
				q(perSecond("agentstatsd_status_exchange_errors_total", ""), "status"),
				q(perSecond("agentstatsd_statuses_refused_total", "reason"), "status refused: {{reason}}"),
				q(perSecond("agentstatsd_fleet_notification_errors_total", ""), "notifications of agents"),
				q(perSecond("agentstatsd_push_notification_errors_total", ""), "notifications of pushes"),
			},
		},
	}}
}

func coderd() row {
	return row{title: "coderd", panels: []panel{
		{
			title: "Push streams and instances", unit: units.Short,
			description: "Instances of coderd that push now, and those whose counts are kept. Fewer streams than coderds: one is away.",
			alerts:      []string{"AgentstatsdCoderdSilent"},
			queries: []query{
				q("sum(agentstatsd_push_streams{@})", "streams"),
				q("max(agentstatsd_push_instances{@})", "instances"),
			},
		},
		{
			title: "Pushes", unit: units.CountsPerSecond,
			description: "Outcomes other than stored: what coderd counts becomes old.",
			queries:     []query{q(perSecond("agentstatsd_pushes_total", "outcome"), "{{outcome}}")},
		},
		{
			title: "Series of coderd", unit: units.Short,
			description: "What is served of it. Passed families come from coderd in place of being computed here.",
			queries: []query{
				q("max(agentstatsd_pushed_series{@})", "series"),
				q("max(agentstatsd_passed_families{@})", "passed families"),
				q("max(agentstatsd_hidden_families{@})", "families of agents that coderd has, too"),
			},
		},
		{
			title: "Calls by token", unit: units.CountsPerSecond,
			description: "Flat for an old token: nobody uses it, and it can be removed.",
			queries:     []query{q(perSecond("agentstatsd_token_calls_total", "token, role"), "{{token}} ({{role}})")},
		},
		{
			title: "Calls that fail", unit: units.CountsPerSecond,
			description: "By method and code. Unavailable while a replica stops is usual.",
			queries:     []query{q(top(perSecond(`grpc_server_handled_total{grpc_code!="OK"}`, "grpc_method, grpc_code")), "{{grpc_method}}: {{grpc_code}}")},
		},
		{
			title: "Watches", unit: units.Short,
			description: "Open watches by kind, and streams of reports. Near --max-watches more are refused.",
			queries: []query{
				q("sum by (kind) (agentstatsd_watches{@})", "{{kind}}"),
				q("sum(agentstatsd_report_streams{@})", "streams of reports"),
			},
		},
		{
			title: "Reports for watchers", unit: units.CountsPerSecond,
			description: "Taken in, written and delivered. Subscriptions whose watcher is gone pile up until --stats-retention.",
			queries: []query{
				q(perSecond("agentstatsd_reports_total", ""), "received"),
				q(perSecond("agentstatsd_reports_written_total", ""), "written"),
				q(perSecond("agentstatsd_reports_delivered_total", ""), "delivered"),
			},
		},
		{
			title: "Calls that were refused", unit: units.CountsPerSecond, steps: anyIsOrange,
			description: "For want of memory, of streams, or as a change of the registrations was too large.",
			queries: []query{
				q(perSecond("agentstatsd_coderd_memory_refused_total", "kind"), "memory: {{kind}}"),
				q(perSecond("agentstatsd_streams_refused_total", "kind"), "streams: {{kind}}"),
				q(perSecond("agentstatsd_registration_changes_refused_total", "reason"), "registrations: {{reason}}"),
				q(perSecond("agentstatsd_relay_refused_total", "reason"), "relays: {{reason}}"),
			},
		},
	}}
}

func bridge() row {
	return row{title: "Bridge: agents' connections", panels: []panel{
		{
			title: "Connections", unit: units.Short,
			description: "Through each bridge, and those of agents that are decoded. Well fewer decoders than connections of agents: some agents are not served.",
			queries: []query{
				q("sum by (instance, kind) (agentstatsd_bridge_connections{@})", "{{instance}}: {{kind}}"),
				q("sum by (instance) (agentstatsd_bridge_decoders{@})", "{{instance}}: decoded"),
			},
		},
		{
			title: "Decoders that gave up", unit: units.CountsPerSecond, steps: anyIsOrange,
			description: "Agents or coderd speak what the bridge does not know; their connections go on, and what they say is not served.",
			alerts:      []string{"AgentstatsdBridgeGaveUp"},
			queries:     []query{q(perSecond("agentstatsd_bridge_decoders_given_up_total", "reason"), "{{reason}}")},
		},
		{
			title: "Handshakes", unit: units.CountsPerSecond,
			description: "By coderd's answer. 401 or 403: agents with old tokens. 502: coderd is away. 503: too many connections.",
			queries:     []query{q(perSecond("agentstatsd_bridge_handshakes_total", "code"), "{{code}}")},
		},
		{
			kind: stack, title: "Calls that are relayed", unit: units.CountsPerSecond,
			description: "By name. UpdateStats flat while connections are decoded: agents report nothing.",
			queries:     []query{q(perSecond("agentstatsd_bridge_calls_total", "call"), "{{call}}")},
		},
		{
			title: "Traffic", unit: units.BytesPerSecondIEC,
			description: "Bytes that pass through, by who sends them.",
			queries:     []query{q(perSecond("agentstatsd_bridge_bytes_total", "sender"), "{{sender}}")},
		},
		{
			title: "Added latency", unit: units.Seconds,
			description: "99th percentile of what the bridge adds. High for sender agent: coderd takes nothing.",
			queries:     []query{q(quantile(0.99, "agentstatsd_bridge_added_latency_seconds", "sender"), "{{sender}}")},
		},
		{
			title: "Memory of decoders", unit: units.BytesIEC,
			description: "Near --max-decoder-bytes new connections are not decoded.",
			queries:     []query{q("sum by (instance) (agentstatsd_bridge_decoder_bytes{@})", "{{instance}}")},
		},
		{
			title: "Errors", unit: units.CountsPerSecond, steps: anyIsOrange,
			description: "Of the connection to coderd and to the service, calls that were too large, and connections that were refused.",
			queries: []query{
				q(perSecond("agentstatsd_bridge_upstream_errors_total", ""), "coderd"),
				q(perSecond("agentstatsd_bridge_relay_errors_total", ""), "service"),
				q(perSecond("agentstatsd_bridge_calls_skipped_total", ""), "calls too large"),
				q(perSecond("agentstatsd_bridge_connections_refused_total", "outcome"), "refused: {{outcome}}"),
			},
		},
	}}
}

func bridgeCoder() row {
	return row{title: "Bridge: coderd's API and metrics", panels: []panel{
		{
			title: "Since the last sync", unit: units.Seconds, steps: []step{{0, "green"}, {600, "orange"}, {1800, "red"}},
			description: "Of the registrations with coderd's API. It has to be recent on one bridge only.",
			queries:     []query{q("time() - min by (instance) (agentstatsd_bridge_last_sync_timestamp_seconds{@} > 0)", "{{instance}}")},
		},
		{
			title: "Syncs", unit: units.CountsPerSecond,
			description: "By outcome. If no bridge has synced, the outcome that rises says why.",
			queries:     []query{q(perSecond("agentstatsd_bridge_syncs_total", "outcome"), "{{outcome}}")},
		},
		{
			title: "What the API token sees", unit: units.Short,
			description: "Workspaces that are visible, and agents that are registered. Fewer than Coder shows: its user lacks the role Template Admin.",
			queries: []query{
				q("max by (instance) (agentstatsd_bridge_visible_workspaces{@})", "workspaces, {{instance}}"),
				q("max by (instance) (agentstatsd_bridge_registered_agents{@})", "agents, {{instance}}"),
				q("max by (instance) (agentstatsd_bridge_unknown_agents_waiting{@})", "unknown agents that wait, {{instance}}"),
			},
		},
		{
			title: "Requests of the API", unit: units.RequestsPerSecond,
			description: "By status. Others than 200: coderd, the token or its rate limit. none: coderd cannot be reached.",
			queries:     []query{q(perSecond("agentstatsd_bridge_coder_requests_total", "status"), "{{status}}")},
		},
		{
			kind: states, title: "Registrations go on", unit: units.Short,
			description: "No: the API token was refused, give the bridge another one.",
			queries:     []query{q("1 - max by (instance) (agentstatsd_bridge_registrations_paused{@})", "{{instance}}")},
		},
		{
			title: "Scrapes of coderds", unit: units.CountsPerSecond,
			description: "By outcome. Others than pushed and superseded: this coderd's families become old.",
			queries:     []query{q(perSecond("agentstatsd_bridge_scrapes_total", "target, outcome")+" > 0", "{{target}}: {{outcome}}")},
		},
		{
			title: "Since the last scrape of each coderd", unit: units.Seconds,
			description: "On the bridge that scraped it last.",
			queries:     []query{q("time() - max by (target) (agentstatsd_bridge_last_scrape_timestamp_seconds{@} > 0)", "{{target}}")},
		},
		{
			title: "Targets", unit: units.Short,
			description: "Coderds that are scraped, those of them that another bridge scrapes, and families that were left out.",
			queries: []query{
				q("max by (instance) (agentstatsd_bridge_targets{@})", "targets of {{instance}}"),
				q("max by (instance) (agentstatsd_bridge_targets_standby{@})", "of these standby, {{instance}}"),
				q(perSecond("agentstatsd_bridge_scrape_families_left_out_total", "reason"), "families left out: {{reason}}"),
			},
		},
	}}
}
