package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coder/serpent"
)

// config is what an operator can set. Its zero value is not usable: options
// carries the defaults.
type config struct {
	configFile string

	prometheusEnable      bool
	prometheusAddress     string
	collectAgentStats     bool
	aggregateBy           []string
	maxConcurrentScrapes  int64
	scrapeTimeout         time.Duration
	webConfigFile         string
	pprofAddress          string
	grpcAddress           string
	grpcAllowPlaintext    bool
	tlsCertFile           string
	tlsKeyFile            string
	tlsClientCAFile       string
	coderdClientSAN       string
	coderdTokenFile       string
	maxAgentMessageBytes  int64
	maxMessageBytes       int64
	maxWatches            int64
	statsRetention        time.Duration
	drainTimeout          time.Duration
	dataDir               string
	databaseURL           string
	databaseMaxConns      int64
	databasePooling       bool
	pubsubURL             string
	leaseDuration         time.Duration
	reportInterval        time.Duration
	sessionAge            time.Duration
	maxAgents             int64
	seriesTTL             time.Duration
	maxSeries             int64
	maxSeriesPerAgent     int64
	maxCoderdInstances    int64
	maxPushedSeries       int64
	maxPushBytes          int64
	metadataFlushInterval time.Duration
	metadataBatchSize     int64
	metadataMaxPending    int64
	metadataMaxKeys       int64
	metadataRereadEvery   time.Duration
	metadataTouchInterval time.Duration
	logFormat             string
	logLevel              string
}

// The groups of options, in the order of the help and of the README.
var (
	groupPrometheus = serpent.Group{Name: "Prometheus", YAML: "prometheus", Description: "The endpoint that Prometheus scrapes."}
	groupGRPC       = serpent.Group{Name: "gRPC", YAML: "grpc", Description: "The listener that agents and coderd dial."}
	groupStorage    = serpent.Group{Name: "Storage", YAML: "storage", Description: "Where registrations, state and metadata are kept."}
	groupAgents     = serpent.Group{Name: "Agents", YAML: "agents", Description: "What agents are told and allowed."}
	groupPushes     = serpent.Group{Name: "Pushes", YAML: "pushes", Description: "What instances of coderd may push of their own families."}
	groupMetadata   = serpent.Group{Name: "Metadata", YAML: "metadata", Description: "How metadata reaches the database."}
	groupLogging    = serpent.Group{Name: "Logging", YAML: "logging", Description: "What the service says, and how."}
)

// options is the one table that flags, environment, YAML and the README's
// configuration table come from. Names that Coder has too are Coder's.
func (c *config) options() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Name:        "Config Path",
			Description: "A YAML file with any of these options. Flags and environment win over it.",
			Flag:        "config", FlagShorthand: "c", Env: "AGENTSTATSD_CONFIG_PATH",
			Value: (*serpent.YAMLConfigPath)(&c.configFile),
		},
		{
			Name:        "Prometheus Enable",
			Description: "Serve the registry, /-/healthy and /-/ready over HTTP.",
			Flag:        "prometheus-enable", Env: "CODER_PROMETHEUS_ENABLE", YAML: "enable",
			Default: "true", Value: serpent.BoolOf(&c.prometheusEnable), Group: &groupPrometheus,
		},
		{
			Name:        "Prometheus Address",
			Description: "The address to serve the registry on, at / and /metrics.",
			Flag:        "prometheus-address", Env: "CODER_PROMETHEUS_ADDRESS", YAML: "address",
			Default: "127.0.0.1:2112", Value: serpent.StringOf(&c.prometheusAddress), Group: &groupPrometheus,
		},
		{
			Name:        "Prometheus Collect Agent Stats",
			Description: "Serve coderd_agentstats_* and the series that agents forward. Off: reports are taken in and none of it is served.",
			Flag:        "prometheus-collect-agent-stats", Env: "CODER_PROMETHEUS_COLLECT_AGENT_STATS", YAML: "collect_agent_stats",
			Default: "true", Value: serpent.BoolOf(&c.collectAgentStats), Group: &groupPrometheus,
		},
		{
			Name: "Prometheus Aggregate Agent Stats By",
			Description: "Labels to keep on agents' series: agent_name, template_name, username, workspace_name. " +
				"With fewer than all four, series that become equal are combined.",
			Flag: "prometheus-aggregate-agent-stats-by", Env: "CODER_PROMETHEUS_AGGREGATE_AGENT_STATS_BY", YAML: "aggregate_agent_stats_by",
			Default: "agent_name,template_name,username,workspace_name", Value: serpent.StringArrayOf(&c.aggregateBy), Group: &groupPrometheus,
		},
		{
			Name:        "Max Concurrent Scrapes",
			Description: "Scrapes served at once; more are answered 503.",
			Flag:        "max-concurrent-scrapes", Env: "AGENTSTATSD_MAX_CONCURRENT_SCRAPES", YAML: "max_concurrent_scrapes",
			Default: "16", Value: atLeast(&c.maxConcurrentScrapes, 1), Group: &groupPrometheus,
		},
		{
			Name:        "Scrape Timeout",
			Description: "Time that a client has to read a scrape, before its connection is closed.",
			Flag:        "scrape-timeout", Env: "AGENTSTATSD_SCRAPE_TIMEOUT", YAML: "scrape_timeout",
			Default: "1m", Value: longerThan(&c.scrapeTimeout, 0), Group: &groupPrometheus,
		},
		{
			Name:        "Web Config File",
			Description: "TLS and basic authentication of the HTTP listener: a web configuration file of Prometheus's exporter toolkit.",
			Flag:        "web-config-file", Env: "AGENTSTATSD_WEB_CONFIG_FILE", YAML: "web_config_file",
			Value: serpent.StringOf(&c.webConfigFile), Group: &groupPrometheus,
		},
		{
			Name:        "Pprof Address",
			Description: "The address to serve Go's profiles on, at /debug/pprof/. Empty: not served.",
			Flag:        "pprof-address", Env: "AGENTSTATSD_PPROF_ADDRESS", YAML: "pprof_address",
			Value: serpent.StringOf(&c.pprofAddress), Group: &groupPrometheus,
		},
		{
			Name:        "gRPC Address",
			Description: "The address that agents and coderd dial. Beyond loopback it needs TLS, or --grpc-allow-plaintext.",
			Flag:        "grpc-address", Env: "AGENTSTATSD_GRPC_ADDRESS", YAML: "address",
			Default: "127.0.0.1:2113", Value: serpent.StringOf(&c.grpcAddress), Group: &groupGRPC,
		},
		{
			Name:        "gRPC Allow Plaintext",
			Description: "Listen beyond loopback without TLS, for example behind a proxy that ends TLS. Tokens then cross that network in the clear.",
			Flag:        "grpc-allow-plaintext", Env: "AGENTSTATSD_GRPC_ALLOW_PLAINTEXT", YAML: "allow_plaintext",
			Default: "false", Value: serpent.BoolOf(&c.grpcAllowPlaintext), Group: &groupGRPC,
		},
		{
			Name:        "TLS Cert File",
			Description: "Certificate chain of the gRPC listener, PEM. Read again when it changes.",
			Flag:        "tls-cert-file", Env: "AGENTSTATSD_TLS_CERT_FILE", YAML: "tls_cert_file",
			Value: serpent.StringOf(&c.tlsCertFile), Group: &groupGRPC,
		},
		{
			Name:        "TLS Key File",
			Description: "Private key of the gRPC listener, PEM. Read again when it changes.",
			Flag:        "tls-key-file", Env: "AGENTSTATSD_TLS_KEY_FILE", YAML: "tls_key_file",
			Value: serpent.StringOf(&c.tlsKeyFile), Group: &groupGRPC,
		},
		{
			Name:        "TLS Client CA File",
			Description: "Certificates that client certificates are verified against, PEM. Needs --coderd-client-san.",
			Flag:        "tls-client-ca-file", Env: "AGENTSTATSD_TLS_CLIENT_CA_FILE", YAML: "tls_client_ca_file",
			Value: serpent.StringOf(&c.tlsClientCAFile), Group: &groupGRPC,
		},
		{
			Name:        "Coderd Client SAN",
			Description: "DNS name in a verified client certificate that makes its holder coderd. Empty: only the token does.",
			Flag:        "coderd-client-san", Env: "AGENTSTATSD_CODERD_CLIENT_SAN", YAML: "coderd_client_san",
			Value: serpent.StringOf(&c.coderdClientSAN), Group: &groupGRPC,
		},
		{
			Name:        "Coderd Token File",
			Description: "The token that coderd authenticates with. Made, mode 0600, if it does not exist. Empty: coderd-token in the data directory.",
			Flag:        "coderd-token-file", Env: "AGENTSTATSD_CODERD_TOKEN_FILE", YAML: "coderd_token_file",
			Value: serpent.StringOf(&c.coderdTokenFile), Group: &groupGRPC,
		},
		{
			Name:        "Max Message Bytes",
			Description: "Largest request of coderd, in bytes.",
			Flag:        "max-message-bytes", Env: "AGENTSTATSD_MAX_MESSAGE_BYTES", YAML: "max_message_bytes",
			Default: "4194304", Value: atLeast(&c.maxMessageBytes, 64<<10), Group: &groupGRPC,
		},
		{
			Name:        "Max Watches",
			Description: "Watches of coderd at once, of all kinds; more are refused.",
			Flag:        "max-watches", Env: "AGENTSTATSD_MAX_WATCHES", YAML: "max_watches",
			Default: "256", Value: atLeast(&c.maxWatches, 1), Group: &groupGRPC,
		},
		{
			Name:        "Stats Retention",
			Description: "Time for which a named watch of agents' stats is kept after its stream ended, so that it loses nothing.",
			Flag:        "stats-retention", Env: "AGENTSTATSD_STATS_RETENTION", YAML: "stats_retention",
			Default: "10m", Value: longerThan(&c.statsRetention, 0), Group: &groupGRPC,
		},
		{
			Name:        "Drain Timeout",
			Description: "Time over which a stopping service asks agents to reconnect, and waits for them, before it closes their streams.",
			Flag:        "drain-timeout", Env: "AGENTSTATSD_DRAIN_TIMEOUT", YAML: "drain_timeout",
			Default: "10s", Value: longerThan(&c.drainTimeout, 0), Group: &groupGRPC,
		},
		{
			Name:        "Data Dir",
			Description: "Directory of the SQLite database and of generated secrets. One process at a time.",
			Flag:        "data-dir", Env: "AGENTSTATSD_DATA_DIR", YAML: "data_dir",
			Default: "data", Value: serpent.StringOf(&c.dataDir), Group: &groupStorage,
		},
		{
			Name: "Database URL",
			Description: "A PostgreSQL database, 14 or newer, that replicas of the service share: postgres://user@host/name. " +
				"Its password is better in PGPASSFILE, or the URL in the environment, than in a flag. Empty: SQLite in the data directory.",
			Flag: "database-url", Env: "AGENTSTATSD_DATABASE_URL", YAML: "database_url",
			Value: serpent.StringOf(&c.databaseURL), Group: &groupStorage,
		},
		{
			Name:        "Database Max Conns",
			Description: "Connections to PostgreSQL at once, beside that of the pubsub.",
			Flag:        "database-max-conns", Env: "AGENTSTATSD_DATABASE_MAX_CONNS", YAML: "database_max_conns",
			Default: "10", Value: atLeast(&c.databaseMaxConns, 2), Group: &groupStorage,
		},
		{
			Name: "Database Transaction Pooling",
			Description: "A pooler in transaction mode, like PgBouncer, stands before PostgreSQL: keep nothing in a session. " +
				"Needs --pubsub-url, as news are not heard through it.",
			Flag: "database-transaction-pooling", Env: "AGENTSTATSD_DATABASE_TRANSACTION_POOLING", YAML: "database_transaction_pooling",
			Default: "false", Value: serpent.BoolOf(&c.databasePooling), Group: &groupStorage,
		},
		{
			Name: "Pubsub URL",
			Description: "What carries news between replicas: nats:// or tls:// for NATS, postgres:// for NOTIFY of a PostgreSQL that is dialed directly. " +
				"Empty: that of the database; in memory with SQLite.",
			Flag: "pubsub-url", Env: "AGENTSTATSD_PUBSUB_URL", YAML: "pubsub_url",
			Value: serpent.StringOf(&c.pubsubURL), Group: &groupStorage,
		},
		{
			Name: "Lease Duration",
			Description: "Time after which replicas take one that is silent for gone, and serve in its place what one alone serves. " +
				"The same on all replicas.",
			Flag: "lease-duration", Env: "AGENTSTATSD_LEASE_DURATION", YAML: "lease_duration",
			Default: "15s", Value: longerThan(&c.leaseDuration, 2*time.Second-1), Group: &groupStorage,
		},
		{
			Name:        "Report Interval",
			Description: "Time between two reports of an agent, as agents are told.",
			Flag:        "report-interval", Env: "AGENTSTATSD_REPORT_INTERVAL", YAML: "report_interval",
			Default: "30s", Value: longerThan(&c.reportInterval, time.Second-1), Group: &groupAgents,
		},
		{
			Name:        "Session Age",
			Description: "Time after which an agent is asked to reconnect, with jitter, so that agents spread over replicas. 0: never.",
			Flag:        "session-age", Env: "AGENTSTATSD_SESSION_AGE", YAML: "session_age",
			Default: "1h", Value: longerThan(&c.sessionAge, -1), Group: &groupAgents,
		},
		{
			Name:        "Max Agents",
			Description: "Agents that can be registered; more are refused.",
			Flag:        "max-agents", Env: "AGENTSTATSD_MAX_AGENTS", YAML: "max_agents",
			Default: "200000", Value: atLeast(&c.maxAgents, 1), Group: &groupAgents,
		},
		{
			Name:        "Max Agent Message Bytes",
			Description: "Largest request of an agent, in bytes.",
			Flag:        "max-agent-message-bytes", Env: "AGENTSTATSD_MAX_AGENT_MESSAGE_BYTES", YAML: "max_agent_message_bytes",
			Default: "1048576", Value: atLeast(&c.maxAgentMessageBytes, 64<<10), Group: &groupAgents,
		},
		{
			Name:        "Series TTL",
			Description: "Time after which a series that is not reported any more vanishes. At least twice the report interval.",
			Flag:        "series-ttl", Env: "AGENTSTATSD_SERIES_TTL", YAML: "series_ttl",
			Default: "2m", Value: longerThan(&c.seriesTTL, 0), Group: &groupAgents,
		},
		{
			Name:        "Max Series",
			Description: "Series of all agents together; more are refused.",
			Flag:        "max-series", Env: "AGENTSTATSD_MAX_SERIES", YAML: "max_series",
			Default: "2000000", Value: atLeast(&c.maxSeries, 1), Group: &groupAgents,
		},
		{
			Name:        "Max Series Per Agent",
			Description: "Forwarded series of one agent; more are refused.",
			Flag:        "max-series-per-agent", Env: "AGENTSTATSD_MAX_SERIES_PER_AGENT", YAML: "max_series_per_agent",
			Default: "1000", Value: atLeast(&c.maxSeriesPerAgent, 1), Group: &groupAgents,
		},
		{
			Name:        "Max Coderd Instances",
			Description: "Instances of coderd whose families are kept apart; of more, those that are gone the longest are folded into totals.",
			Flag:        "max-coderd-instances", Env: "AGENTSTATSD_MAX_CODERD_INSTANCES", YAML: "max_coderd_instances",
			Default: "256", Value: atLeast(&c.maxCoderdInstances, 1), Group: &groupPushes,
		},
		{
			Name:        "Max Pushed Series",
			Description: "Series of one instance of coderd, each bucket counted as one; families beyond are refused.",
			Flag:        "max-pushed-series", Env: "AGENTSTATSD_MAX_PUSHED_SERIES", YAML: "max_series",
			Default: "200000", Value: atLeast(&c.maxPushedSeries, 1), Group: &groupPushes,
		},
		{
			Name:        "Max Push Bytes",
			Description: "Largest snapshot of an instance of coderd, in bytes, over all its parts.",
			Flag:        "max-push-bytes", Env: "AGENTSTATSD_MAX_PUSH_BYTES", YAML: "max_bytes",
			Default: "67108864", Value: atLeast(&c.maxPushBytes, 64<<10), Group: &groupPushes,
		},
		{
			Name:        "Metadata Flush Interval",
			Description: "Time between two scheduled flushes of pending metadata.",
			Flag:        "metadata-flush-interval", Env: "AGENTSTATSD_METADATA_FLUSH_INTERVAL", YAML: "flush_interval",
			Default: "5s", Value: longerThan(&c.metadataFlushInterval, 0), Group: &groupMetadata,
		},
		{
			Name:        "Metadata Batch Size",
			Description: "Pending entries that start a flush at once, and entries that one flush writes.",
			Flag:        "metadata-batch-size", Env: "AGENTSTATSD_METADATA_BATCH_SIZE", YAML: "batch_size",
			Default: "500", Value: atLeast(&c.metadataBatchSize, 1), Group: &groupMetadata,
		},
		{
			Name:        "Metadata Max Pending",
			Description: "Entries that wait for the database, all agents together; new keys beyond are refused.",
			Flag:        "metadata-max-pending", Env: "AGENTSTATSD_METADATA_MAX_PENDING", YAML: "max_pending",
			Default: "500000", Value: atLeast(&c.metadataMaxPending, 1), Group: &groupMetadata,
		},
		{
			Name:        "Metadata Max Keys",
			Description: "Keys of an agent whose template declares none; more are refused.",
			Flag:        "metadata-max-keys", Env: "AGENTSTATSD_METADATA_MAX_KEYS", YAML: "max_keys",
			Default: "128", Value: atLeast(&c.metadataMaxKeys, 1), Group: &groupMetadata,
		},
		{
			Name:        "Metadata Reread Interval",
			Description: "Time between two reads of what is watched, which repair missed news.",
			Flag:        "metadata-reread-interval", Env: "AGENTSTATSD_METADATA_REREAD_INTERVAL", YAML: "reread_interval",
			Default: "30s", Value: longerThan(&c.metadataRereadEvery, 0), Group: &groupMetadata,
		},
		{
			Name:        "Metadata Touch Interval",
			Description: "Time after which a value that is reported again unchanged is written again, with its newer time. 0: each time.",
			Flag:        "metadata-touch-interval", Env: "AGENTSTATSD_METADATA_TOUCH_INTERVAL", YAML: "touch_interval",
			Default: "1m", Value: longerThan(&c.metadataTouchInterval, -1), Group: &groupMetadata,
		},
		{
			Name:        "Log Format",
			Description: "Form of the log on standard error.",
			Flag:        "log-format", Env: "AGENTSTATSD_LOG_FORMAT", YAML: "format",
			Default: "text", Value: serpent.EnumOf(&c.logFormat, "text", "json"), Group: &groupLogging,
		},
		{
			Name:        "Log Level",
			Description: "Least level that is logged.",
			Flag:        "log-level", Env: "AGENTSTATSD_LOG_LEVEL", YAML: "level",
			Default: "info", Value: serpent.EnumOf(&c.logLevel, "debug", "info", "warn", "error"), Group: &groupLogging,
		},
	}
}

// atLeast is an integer option that refuses values below least.
func atLeast(v *int64, least int64) *serpent.Validator[*serpent.Int64] {
	return serpent.Validate(serpent.Int64Of(v), func(v *serpent.Int64) error {
		if int64(*v) < least {
			return fmt.Errorf("%d is below the least value %d", int64(*v), least)
		}
		return nil
	})
}

// longerThan is a duration option that refuses values of bound and below.
func longerThan(v *time.Duration, bound time.Duration) *serpent.Validator[*serpent.Duration] {
	return serpent.Validate(serpent.DurationOf(v), func(v *serpent.Duration) error {
		if time.Duration(*v) <= bound {
			return fmt.Errorf("%s is not longer than %s", time.Duration(*v), bound)
		}
		return nil
	})
}

// validate checks what concerns more than one option. Its errors name the
// flags.
func (c *config) validate() error {
	var errs []error
	if c.seriesTTL < 2*c.reportInterval {
		errs = append(errs, fmt.Errorf("--series-ttl %s is below twice --report-interval %s", c.seriesTTL, c.reportInterval))
	}
	if (c.tlsCertFile == "") != (c.tlsKeyFile == "") {
		errs = append(errs, errors.New("--tls-cert-file and --tls-key-file need each other"))
	}
	if c.tlsClientCAFile != "" && c.tlsCertFile == "" {
		errs = append(errs, errors.New("--tls-client-ca-file needs --tls-cert-file and --tls-key-file"))
	}
	if (c.tlsClientCAFile == "") != (c.coderdClientSAN == "") {
		errs = append(errs, errors.New("--tls-client-ca-file and --coderd-client-san need each other"))
	}
	if c.tlsCertFile == "" && !c.grpcAllowPlaintext {
		loopback, err := isLoopback(c.grpcAddress)
		if err != nil {
			errs = append(errs, fmt.Errorf("--grpc-address %s: %w", c.grpcAddress, err))
		} else if !loopback {
			errs = append(errs, fmt.Errorf("--grpc-address %s is beyond loopback: give --tls-cert-file and --tls-key-file, or --grpc-allow-plaintext", c.grpcAddress))
		}
	}
	errs = append(errs, c.validateEngines()...)
	return errors.Join(errs...)
}

// validateEngines checks what the database and the pubsub need of each other. Its
// errors do not show the URLs, which may hold passwords.
func (c *config) validateEngines() []error {
	var errs []error
	switch schemeOf(c.databaseURL) {
	case "", "postgres", "postgresql":
	default:
		errs = append(errs, errors.New("--database-url: want a URL with the scheme postgres, or none"))
	}
	switch schemeOf(c.pubsubURL) {
	case "", "postgres", "postgresql", "nats", "tls":
	default:
		errs = append(errs, errors.New("--pubsub-url: want a URL with the scheme nats, tls or postgres, or none"))
	}
	if c.databasePooling && c.databaseURL == "" {
		errs = append(errs, errors.New("--database-transaction-pooling needs --database-url"))
	}
	if c.databasePooling && c.pubsubURL == "" {
		errs = append(errs, errors.New("--database-transaction-pooling needs --pubsub-url: a direct URL of the database, or NATS"))
	}
	return errs
}

// schemeOf returns the scheme of a URL in lower case, empty of no URL, and
// something that is none of what has none.
func schemeOf(url string) string {
	if url == "" {
		return ""
	}
	scheme, _, found := strings.Cut(url, "://")
	if !found {
		return "?"
	}
	return strings.ToLower(scheme)
}

// tokenFile returns the path of coderd's token.
func (c *config) tokenFile() string {
	if c.coderdTokenFile != "" {
		return c.coderdTokenFile
	}
	return filepath.Join(c.dataDir, "coderd-token")
}

// lookupTimeout bounds how long a start waits for a name server.
const lookupTimeout = 10 * time.Second

// isLoopback tells whether a listener on address can be reached from this
// machine only. A name counts if all that it resolves to is loopback.
func isLoopback(address string) (bool, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false, err
	}
	if host == "" {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return false, fmt.Errorf("look up: %w", err)
	}
	return !slices.ContainsFunc(addrs, func(a net.IPAddr) bool { return !a.IP.IsLoopback() }), nil
}
