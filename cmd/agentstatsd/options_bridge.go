package main

import (
	"slices"
	"strings"
	"time"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
)

var groupBridge = serpent.Group{Name: "Bridge", YAML: "bridge", Description: "What stands between a stock coderd's agents and coderd."}

// bridgeConfig is what an operator can set of a bridge. What a service has as well, its
// endpoint for Prometheus and its log, is in config, of which it uses nothing else.
type bridgeConfig struct {
	config

	listen           string
	upstream         string
	upstreamCAFile   string
	serviceURL       string
	allowPlaintext   bool
	trustForwarded   bool
	drainDelay       time.Duration
	closeTimeout     time.Duration
	maxDecoderBytes  int64
	maxAgentConns    int64
	maxRelayedAgents int64

	coderURL          string
	coderTokenFile    string
	coderCAFile       string
	coderMaxRequests  int64
	coderSyncInterval time.Duration

	coderdMetricsURLs     []string
	coderdMetricsHTTPFile string
	leaveOutAgents        bool
	scrapeInterval        time.Duration
	maxScrapeBytes        int64
	maxTargets            int64
}

// bridgePrefix is that of the variables of a bridge: a service beside it has its own.
const bridgePrefix = ourVariables + "BRIDGE_"

// options is the one table of the bridge's options, as that of config is of the service's.
func (b *bridgeConfig) options() serpent.OptionSet {
	options := serpent.OptionSet{{
		Description: "A YAML file with any of these options. Flags and environment win over it.",
		Flag:        "config", FlagShorthand: "c", Value: serpent.StringOf(&b.configFile),
	}}
	options = append(options, b.ownOptions()...)
	for _, o := range b.prometheusOptions() {
		// What a service serves of agents is no bridge's.
		if slices.Contains([]string{"prometheus-enable", "prometheus-collect-agent-stats", "prometheus-aggregate-agent-stats-by", "prometheus-extra-labels", "prometheus-workspace-info"}, o.Flag) {
			continue
		}
		if o.Flag == "prometheus-address" {
			o.Default = "127.0.0.1:2115"
			o.Description = "The address to serve the bridge's own metrics on, at / and /metrics, and /-/healthy and /-/ready."
		}
		options = append(options, o)
	}
	options = append(options, b.loggingOptions()...)
	optiontable.MarkReloadable(options, reloadable)
	return bridgeVariables(options)
}

// bridgeVariables gives each option the variable of a bridge.
func bridgeVariables(options serpent.OptionSet) serpent.OptionSet {
	for i := range options {
		o := &options[i]
		o.Env = bridgePrefix + strings.ToUpper(strings.ReplaceAll(o.Flag, "-", "_"))
		if o.Flag == "config" {
			o.Env += "_PATH" // as that of a service
		}
		o.Name = o.Env
	}
	return options
}

// ownOptions are those that only a bridge has, and TLS of its listener.
func (b *bridgeConfig) ownOptions() serpent.OptionSet {
	options := serpent.OptionSet{
		{
			Description: "The address that agents' connections come to.",
			Flag:        "listen", Default: "127.0.0.1:2114", Value: serpent.StringOf(&b.listen),
		},
		{
			Description: "The URL of coderd that agents' connections go on to, http or https, such as http://coder:7080. Empty: none come here.",
			Flag:        "upstream", Value: serpent.StringOf(&b.upstream),
		},
		{
			Description: "Certificates that coderd's is verified against, PEM. Empty: the system's.",
			Flag:        "upstream-ca-file", Value: serpent.StringOf(&b.upstreamCAFile),
		},
		{
			Description: "How the service is dialed with coderd's token, as agentstatsd://host:2113?token_file=/etc/agentstatsd/token. " +
				"docs/adopting.md has its parameters. Required.",
			Flag: "service-url", Value: serpent.StringOf(&b.serviceURL),
		},
		{
			Description: "The access URL of Coder, whose REST API says which agents and workspaces there are: they are registered with the service. " +
				"Empty: somebody else registers them.",
			Flag: "coder-url", Value: serpent.StringOf(&b.coderURL),
		},
		{
			Description: "A file with an API token of a user with the role Template Admin. It is read again when it changes. Needs --coder-url.",
			Flag:        "coder-api-token-file", Value: serpent.StringOf(&b.coderTokenFile),
		},
		{
			Description: "Certificates that --coder-url is verified against, PEM. Empty: the system's.",
			Flag:        "coder-ca-file", Value: serpent.StringOf(&b.coderCAFile),
		},
		{
			Description: "Requests of Coder's REST API in a second, of all bridges of the service together. Each takes its part, half a minute after their number has changed.",
			Flag:        "coder-max-requests-per-second", Default: "5", Value: within(&b.coderMaxRequests, 1, 1000),
		},
		{
			Description: "Time between two reads of all workspaces. An agent that connects here and is not known is registered at once.",
			Flag:        "sync-interval", Default: "5m", Value: notBelow(&b.coderSyncInterval, 10*time.Second),
		},
		{
			Description: "The URL of a coderd's metrics, such as http://coder:2112/, or dns+http://coder:2112/ for all addresses of the name. " +
				"May be given several times. All bridges have the same. Without --upstream what coderd has of agents is served, too. Empty: coderds push their metrics, or are scraped by Prometheus.",
			Flag: "coderd-metrics-url", Value: serpent.StringArrayOf(&b.coderdMetricsURLs),
		},
		{
			Description: "How --coderd-metrics-url is asked, where a proxy before coderd wants more: a YAML file with authorization, basic_auth, oauth2, tls_config (ca_file, server_name), http_headers or " +
				"proxy_url, as a scrape_config of Prometheus has them. It is read at the start, the files that it names for each scrape. Redirects are not followed.",
			Flag: "coderd-metrics-http-config-file", Value: serpent.StringOf(&b.coderdMetricsHTTPFile),
		},
		{
			Description: "Leave out what coderd has of agents also without --upstream: another bridge relays them, or they reach the service themselves.",
			Flag:        "leave-out-agents", Default: "false", Value: serpent.BoolOf(&b.leaveOutAgents),
		},
		{
			Description: "Time between two scrapes of a coderd.",
			Flag:        "scrape-interval", Default: "15s", Value: durationWithin(&b.scrapeInterval, time.Second, time.Hour),
		},
		{
			Description: "Bytes of a scrape of coderd, decompressed; a larger one counts as failed.",
			Flag:        "max-scrape-bytes", Default: "64MiB", Value: bytesAtLeast(&b.maxScrapeBytes, 1<<20),
		},
		{
			Description: "Coderds that are scraped, each address counted.",
			Flag:        "max-targets", Default: "256", Value: within(&b.maxTargets, 1, 4096),
		},
		{
			Description: "Listen beyond loopback without TLS: behind a proxy that ends it. Agents' tokens cross that network in the clear.",
			Flag:        "allow-plaintext", Default: "false", Value: serpent.BoolOf(&b.allowPlaintext),
		},
		{
			Description: "Pass on X-Forwarded-For and the like, as a proxy before the bridge says whom requests come from. " +
				"False: clients reach the bridge themselves, and coderd does not get what they say of that.",
			Flag: "trust-forwarded-headers", Default: "true", Value: serpent.BoolOf(&b.trustForwarded),
		},
		{
			Description: "Certificate chain of the listener for agents, PEM. It is read again when it changes.",
			Flag:        "tls-cert-file", Value: serpent.StringOf(&b.tlsCertFile),
		},
		{
			Description: "Key of the certificate, PEM.",
			Flag:        "tls-key-file", Value: serpent.StringOf(&b.tlsKeyFile),
		},
		{
			Description: "Time between saying on /-/ready that the bridge stops and refusing connections.",
			Flag:        "drain-delay", Default: "5s", Value: notBelow(&b.drainDelay, 0),
		},
		{
			Description: "Time over which a stopping bridge closes agents' connections, one after another.",
			Flag:        "drain-timeout", Default: "1m", Value: positive(&b.drainTimeout),
		},
		{
			Description: "Time to deliver what agents said, after the last connection.",
			Flag:        "close-timeout", Default: "10s", Value: positive(&b.closeTimeout),
		},
		{
			Description: "Connections of agents at once, and other requests, which leave a quarter to agents; more are answered 503. Each takes two files. 0: three eighths of the files that the process may open, at most 28,000.",
			Flag:        "max-agent-connections", Default: "0", Value: atLeast(&b.maxAgentConns, 0),
		},
		{
			Description: "Memory of all decoders. Connections beyond it go on without being decoded.",
			Flag:        "max-decoder-bytes", Default: "256MiB", Value: bytesAtLeast(&b.maxDecoderBytes, 1<<20),
		},
		{
			Description: "Agents that are relayed at once.",
			Flag:        "max-relayed-agents", Default: "50000", Value: within(&b.maxRelayedAgents, 1, 1<<24),
		},
		{
			Description: "TLS handshakes of a listener that go on at once, from the client's first message on; more wait. The slowest gives way to one that waits.",
			Flag:        "tls-max-handshakes", Default: "256", Value: atLeast(&b.maxHandshakes, 1),
		},
		{
			Description: "The same of one address; in IPv6, of one network of 64 bits.",
			Flag:        "tls-max-handshakes-per-address", Default: "64", Value: atLeast(&b.maxHandshakesPerAddr, 1),
		},
		{
			Description: "Time for a TLS handshake and its wait.",
			Flag:        "tls-handshake-timeout", Default: "10s", Value: positive(&b.handshakeTimeout),
		},
	}
	for i := range options {
		o := &options[i]
		o.YAML, o.Group = strings.ReplaceAll(o.Flag, "-", "_"), &groupBridge
	}
	optiontable.MarkReloadable(options, reloadableByBridge)
	return options
}
