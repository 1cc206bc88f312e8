package main

import (
	"github.com/coder/serpent"
)

// prometheusOptions are of the endpoint that Prometheus scrapes.
func (c *config) prometheusOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Description: "Serve the registry, /-/healthy and /-/ready over HTTP.",
			Flag:        "prometheus-enable", Env: "CODER_PROMETHEUS_ENABLE", YAML: "enable",
			Default: "true", Value: serpent.BoolOf(&c.prometheusEnable), Group: &groupPrometheus,
		},
		{
			Description: "The address to serve the registry on, at / and /metrics, and the status page, at /status, and at / to browsers.",
			Flag:        "prometheus-address", Env: "CODER_PROMETHEUS_ADDRESS", YAML: "address",
			Default: "127.0.0.1:2112", Value: serpent.StringOf(&c.prometheusAddress), Group: &groupPrometheus,
		},
		{
			Description: "Serve coderd_agentstats_* and the series that agents forward. Off: reports are taken in and none of it is served.",
			Flag:        "prometheus-collect-agent-stats", Env: "CODER_PROMETHEUS_COLLECT_AGENT_STATS", YAML: "collect_agent_stats",
			Default: "true", Value: serpent.BoolOf(&c.collectAgentStats), Group: &groupPrometheus,
		},
		{
			Description: "Labels to keep on agents' series: agent_name, template_name, username, workspace_name. " +
				"With fewer than all four, series that become equal are combined.",
			Flag: "prometheus-aggregate-agent-stats-by", Env: "CODER_PROMETHEUS_AGGREGATE_AGENT_STATS_BY", YAML: "aggregate_agent_stats_by",
			Default: "agent_name,template_name,username,workspace_name", Value: serpent.StringArrayOf(&c.aggregateBy), Group: &groupPrometheus,
		},
		{
			Description: "Labels beside the documented ones. template_version: on coderd_agents_up, as newer Coders have it.",
			Flag:        "prometheus-extra-labels", Env: "AGENTSTATSD_PROMETHEUS_EXTRA_LABELS", YAML: "extra_labels",
			Value: serpent.StringArrayOf(&c.extraLabels), Group: &groupPrometheus,
		},
		{
			Description: "Serve agentstatsd_workspace_info: a series of each workspace with its organization, template and the version of that, for joins.",
			Flag:        "prometheus-workspace-info", Env: "AGENTSTATSD_PROMETHEUS_WORKSPACE_INFO", YAML: "workspace_info",
			Default: "false", Value: serpent.BoolOf(&c.workspaceInfo), Group: &groupPrometheus,
		},
		{
			Description: "Scrapes served at once; more wait for 5 s at most, or half of the scraper's timeout, and are answered 503 then.",
			Flag:        "max-concurrent-scrapes", Env: "AGENTSTATSD_MAX_CONCURRENT_SCRAPES", YAML: "max_concurrent_scrapes",
			Default: "16", Value: atLeast(&c.maxConcurrentScrapes, 1), Group: &groupPrometheus,
		},
		{
			Description: "Scrapes served in a second for ever, as many as --max-concurrent-scrapes at once. More wait as those do, so that scrapes without a pause do not slow agents.",
			Flag:        "max-scrapes-per-second", Env: "AGENTSTATSD_MAX_SCRAPES_PER_SECOND", YAML: "max_scrapes_per_second",
			Default: "100", Value: atLeast(&c.maxScrapesPerSecond, 1), Group: &groupPrometheus,
		},
		{
			Description: "Time that a client has to read a scrape, before its connection is closed.",
			Flag:        "scrape-timeout", Env: "AGENTSTATSD_SCRAPE_TIMEOUT", YAML: "scrape_timeout",
			Default: "1m", Value: positive(&c.scrapeTimeout), Group: &groupPrometheus,
		},
		{
			Description: "Connections of HTTP at once. One more takes the place of one that nothing is asked on.",
			Flag:        "max-http-connections", Env: "AGENTSTATSD_MAX_HTTP_CONNECTIONS", YAML: "max_http_connections",
			Default: "512", Value: atLeast(&c.maxHTTPConns, 1), Group: &groupPrometheus,
		},
		{
			Description: "Connections of HTTP at once from one address; in IPv6, from one network of 64 bits.",
			Flag:        "max-http-connections-per-address", Env: "AGENTSTATSD_MAX_HTTP_CONNECTIONS_PER_ADDRESS", YAML: "max_http_connections_per_address",
			Default: "128", Value: atLeast(&c.maxHTTPConnsPerAddr, 1), Group: &groupPrometheus,
		},
		{
			Description: "TLS and basic authentication of the HTTP listener: a web configuration file of Prometheus's exporter toolkit.",
			Flag:        "web-config-file", Env: "AGENTSTATSD_WEB_CONFIG_FILE", YAML: "web_config_file",
			Value: serpent.StringOf(&c.webConfigFile), Group: &groupPrometheus,
		},
		{
			Description: "Reload the configuration on POST /-/reload as on SIGHUP, and change the level of the log on POST /-/log-level, for whoever may scrape.",
			Flag:        "web-enable-lifecycle", Env: "AGENTSTATSD_WEB_ENABLE_LIFECYCLE", YAML: "enable_lifecycle",
			Default: "false", Value: serpent.BoolOf(&c.enableLifecycle), Group: &groupPrometheus,
		},
		{
			Description: "The address to serve /-/healthy and /-/ready on without TLS and without a password, for probes; warnings are left out there. Empty: they are served with the registry only.",
			Flag:        "probe-address", Env: "AGENTSTATSD_PROBE_ADDRESS", YAML: "probe_address",
			Value: serpent.StringOf(&c.probeAddress), Group: &groupPrometheus,
		},
		{
			Description: "The address to serve Go's profiles on, at /debug/pprof/: on loopback. Empty: not served.",
			Flag:        "pprof-address", Env: "AGENTSTATSD_PPROF_ADDRESS", YAML: "pprof_address",
			Value: serpent.StringOf(&c.pprofAddress), Group: &groupPrometheus,
		},
	}
}

// pageOptions are of the status page, which a bridge has not.
func (c *config) pageOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Description: "Status pages, and answers of their JSON, made at once; more wait as scrapes do.",
			Flag:        "max-concurrent-pages", Env: "AGENTSTATSD_MAX_CONCURRENT_PAGES", YAML: "max_concurrent_pages",
			Default: "4", Value: atLeast(&c.maxConcurrentPages, 1), Group: &groupPrometheus,
		},
		{
			Description: "Status pages, and answers of their JSON, made in a second for ever, as many as --max-concurrent-pages at once.",
			Flag:        "max-pages-per-second", Env: "AGENTSTATSD_MAX_PAGES_PER_SECOND", YAML: "max_pages_per_second",
			Default: "10", Value: atLeast(&c.maxPagesPerSecond, 1), Group: &groupPrometheus,
		},
		{
			Description: "Show the values of agents' metadata on their status pages and in the JSON, to whoever may scrape.",
			Flag:        "web-show-metadata", Env: "AGENTSTATSD_WEB_SHOW_METADATA", YAML: "show_metadata",
			Default: "false", Value: serpent.BoolOf(&c.webShowMetadata), Group: &groupPrometheus,
		},
		{
			Description: "The URL at which people reach this replica's HTTP listener, such as https://stats.example.com/replica-a. Pages of other replicas link to it. Empty: they do not.",
			Flag:        "web-external-url", Env: "AGENTSTATSD_WEB_EXTERNAL_URL", YAML: "external_url",
			Value: serpent.StringOf(&c.webExternalURL), Group: &groupPrometheus,
		},
	}
}

// labelTemplateVersion is the label that --prometheus-extra-labels can add.
const labelTemplateVersion = "template_version"
