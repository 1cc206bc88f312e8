package main

import (
	"fmt"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/units"
)

// Matchers of the workspaces' dashboard. Of agents' series only coderd_agents_up has the
// template; coderd's own name the owner otherwise.
const (
	ofJob      = `job=~"$job"`
	ofAgents   = ofJob + `, username=~"$owner", workspace_name=~"$workspace"`
	ofTemplate = ofJob + `, template_name=~"$template"`
	ofBuilds   = ofTemplate + `, workspace_owner=~"$owner"`
	chosen     = `coderd_agents_up{` + ofAgents + `, template_name=~"$template"}`
)

// agentsOf is a family of agents, of the workspaces that the variables choose.
func agentsOf(family string) string {
	matchers := ofAgents
	if head, rest, ok := strings.Cut(family, "{"); ok {
		family, matchers = head, ofAgents+", "+strings.TrimSuffix(rest, "}")
	}
	return fmt.Sprintf("(%s{%s} and on (username, workspace_name) %s)", family, matchers, chosen)
}

// byTemplate aggregates such a family by template. Of two workspaces with equal names
// during a rename one is taken.
func byTemplate(aggregation, family string) string {
	return fmt.Sprintf("%s by (template_name) (%s * on (username, workspace_name) group_left (template_name)"+
		" topk by (username, workspace_name) (1, group by (username, workspace_name, template_name) (%s)))", aggregation, agentsOf(family), chosen)
}

// builds is how much a counter or a part of a histogram of coderd grew in the range that is shown.
func builds(name, matchers, by string) string {
	return aggregated(fmt.Sprintf("increase(%s{%s}[$__range])", name, matchers), by)
}

// buildQuantile is that of a histogram of coderd over the range between two points.
func buildQuantile(share float64, histogram, matchers, by string) string {
	return fmt.Sprintf("histogram_quantile(%v, sum by (le, %s) (rate(%s_bucket{%s}[$__rate_interval])))", share, by, histogram, matchers)
}

// ofRow leads to the dashboard of the workspace in a row of a table.
var ofRow = link{title: "Its workspace", url: "/d/" + uidWorkspaces + "?var-owner=${__data.fields.username}&var-workspace=${__data.fields.workspace_name}&${__url_time_range}"}

// workspaces is the dashboard for those who look after workspaces.
func workspaces() board {
	return board{
		uid: uidWorkspaces, title: "Coder workspaces", refresh: "1m", tags: []string{"agentstatsd", "coder"},
		description: "For those who look after Coder's workspaces and templates: who is connected, how they use and reach their workspaces, how builds go. It works with coderd's own series, too.",
		variables: []variable{
			{"job", "Job", "label_values(coderd_agents_up, job)", "Who serves the series. While coderd and agentstatsd both do, choose one: otherwise agents count twice.", false},
			{"template", "Template", "label_values(coderd_agents_up{" + ofJob + "}, template_name)", "", true},
			{"owner", "Owner", "label_values(coderd_agents_up{" + ofTemplate + "}, username)", "", true},
			{"workspace", "Workspace", "label_values(coderd_agents_up{" + ofTemplate + `, username=~"$owner"}, workspace_name)`, "", true},
		},
		annotations: []annotation{
			{"Failed builds", "sum by (template_name) (increase(coderd_workspace_builds_total{" + ofBuilds + `, status="failed"}[$__rate_interval])) > 0`, "red", "{{template_name}}: a build failed"},
		},
		links: []link{
			{"agentstatsd", "/d/" + uidOperators, "Whether the service itself works", true},
			{"Metrics", repository + "docs/metrics.md", "What each metric means", false},
		},
		rows: []row{workspacesNow(), glance(), connections(), usage(), latency(), traffic(), workspaceBuilds(), provisioners(), metadata()},
	}
}

func workspacesNow() row {
	return row{title: "Now", open: true, panels: []panel{
		{
			kind: stat, title: "Connected agents", unit: units.Short,
			description: "Agents of the chosen workspaces that are connected.",
			queries:     []query{{`count(` + agentsOf(`coderd_agents_connections{status="connected"}`) + `) or vector(0)`, "connected"}},
		},
		{
			kind: stat, title: "Not connected", unit: units.Short, steps: anyIsOrange,
			description: "Agents that were connected before, or never within their connection timeout.",
			queries:     []query{{`count(` + agentsOf(`coderd_agents_connections{status=~"disconnected|timeout"}`) + `) or vector(0)`, "not connected"}},
		},
		{
			kind: stat, title: "Workspaces in use", unit: units.Short,
			description: "Workspaces that somebody has a connection to.",
			queries:     []query{{`count(sum by (username, workspace_name) ` + agentsOf("coderd_agentstats_connection_count") + ` > 0) or vector(0)`, "in use"}},
		},
		{
			kind: stat, title: "Open sessions", unit: units.Short,
			description: "Of all apps.",
			queries:     []query{{`sum(` + agentsOf("coderd_agentstats_session_count") + `) or vector(0)`, "sessions"}},
		},
		{
			kind: stat, title: "Unhealthy apps", unit: units.Short, steps: anyIsOrange,
			description: "Apps whose health check fails.",
			queries:     []query{{`sum(` + agentsOf(`coderd_agents_apps{health="unhealthy"}`) + `) or vector(0)`, "unhealthy"}},
		},
		{
			kind: stat, title: "Builds", unit: units.Short,
			description: "Of the chosen templates and owners, in the time range that is shown.",
			queries:     []query{{builds("coderd_workspace_builds_total", ofBuilds, ""), "builds"}},
		},
		{
			kind: stat, title: "Failed builds", unit: units.Short, steps: anyIsRed,
			description: "Of these. The row Builds says of which template.",
			queries:     []query{{builds("coderd_workspace_builds_total", ofBuilds+`, status="failed"`, "") + " or vector(0)", "failed"}},
		},
		{
			kind: stat, title: "Users of the last hour", unit: units.Short,
			description: "Active users of the whole deployment.",
			queries:     []query{{"max(coderd_api_active_users_duration_hour{" + ofJob + "})", "users"}},
		},
	}}
}

func glance() row {
	return row{title: "At a glance", open: true, panels: []panel{
		{
			kind: stack, title: "Agents by status", unit: units.Short,
			description: "connecting: never connected yet. disconnected: connected before. timeout: not within the template's connection timeout.",
			queries:     []query{{"count by (status) " + agentsOf("coderd_agents_connections"), "{{status}}"}},
		},
		{
			kind: stack, title: "Sessions by app", unit: units.Short,
			description: "Open sessions, by the app that has them.",
			queries:     []query{{"sum by (app_name) " + agentsOf("coderd_agentstats_session_count"), "{{app_name}}"}},
		},
		{
			title: "Latency", unit: units.Seconds,
			description: "Between users and their workspaces: the median of each agent's connections, over all agents that have any.",
			queries: []query{
				{"quantile(0.5, " + agentsOf("coderd_agentstats_connection_median_latency_seconds") + ")", "half of the agents"},
				{"quantile(0.95, " + agentsOf("coderd_agentstats_connection_median_latency_seconds") + ")", "95 % of the agents"},
			},
		},
		{
			title: "Traffic", unit: units.BytesIEC,
			description: "Bytes of the last minute, or of the report interval if that is longer.",
			queries: []query{
				{"sum(" + agentsOf("coderd_agentstats_rx_bytes") + ")", "received by agents"},
				{"sum(" + agentsOf("coderd_agentstats_tx_bytes") + ")", "sent by agents"},
			},
		},
	}}
}

func connections() row {
	return row{title: "Agents", panels: []panel{
		{
			kind: stack, title: "Connected agents by template", unit: units.Short,
			description: "Agents that are connected.",
			queries:     []query{{"sum by (template_name) (" + chosen + ")", "{{template_name}}"}},
		},
		{
			kind: stack, title: "Agents by lifecycle", unit: units.Short,
			description: "start_error and start_timeout: the startup script failed, or takes too long.",
			queries:     []query{{"count by (lifecycle_state) " + agentsOf("coderd_agents_connections"), "{{lifecycle_state}}"}},
		},
		{
			kind: table, title: "Agents that are not connected", unit: units.Short, none: "all are connected",
			description: "By name. docs/asking.md says how to find out why.",
			queries:     []query{{"topk(100, sum by (username, workspace_name, agent_name, status, lifecycle_state) " + agentsOf(`coderd_agents_connections{status!="connected"}`) + ")", ""}},
			follow:      ofRow,
		},
		{
			title: "Workspaces without a connected agent", unit: units.Short,
			description: "By template: stopped ones, if coderd registers them, and those whose agents are away.",
			queries:     []query{{"count by (template_name) (" + chosen + " == 0)", "{{template_name}}"}},
		},
		{
			kind: stack, title: "Apps by health", unit: units.Short,
			description: "disabled: the app has no health check.",
			queries:     []query{{"sum by (health) " + agentsOf("coderd_agents_apps"), "{{health}}"}},
		},
		{
			kind: table, title: "Apps that are not healthy", unit: units.Short, none: "all are healthy",
			description: "Apps whose health check fails, or that begin.",
			queries:     []query{{"topk(100, sum by (username, workspace_name, agent_name, app_name, health) " + agentsOf(`coderd_agents_apps{health=~"unhealthy|initializing"}`) + ")", ""}},
			follow:      ofRow,
		},
		{
			title: "Startup scripts", unit: units.Seconds,
			description: "The time that they took, of the slower half and of the slowest agent of each template.",
			queries: []query{
				{"quantile by (template_name) (0.5, coderd_agentstats_startup_script_seconds{" + ofAgents + `, template_name=~"$template"})`, "median of {{template_name}}"},
				{"max by (template_name) (coderd_agentstats_startup_script_seconds{" + ofAgents + `, template_name=~"$template"})`, "slowest of {{template_name}}"},
			},
		},
		{
			title: "Scripts of agents", unit: units.CountsPerSecond,
			description: "That ended, by template and success; those of cron, too.",
			queries:     []query{{"sum by (template_name, success) (rate(agent_scripts_executed_total{" + ofAgents + `, template_name=~"$template"}[$__rate_interval]))`, "{{template_name}}, success: {{success}}"}},
		},
	}}
}
