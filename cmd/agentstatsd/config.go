package main

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/internal/addresses"
	"github.com/coder/agentstatsd/metrics"
)

// config is what an operator can set. Its zero value is not usable: options
// carries the defaults.
type config struct {
	configFile string
	sources    sources // of the values below
	// printConfig is no option of the table.
	printConfig bool

	prometheusEnable      bool
	prometheusAddress     string
	collectAgentStats     bool
	extraLabels           []string
	workspaceInfo         bool
	aggregateBy           []string
	maxConcurrentScrapes  int64
	maxScrapesPerSecond   int64
	scrapeTimeout         time.Duration
	maxConcurrentPages    int64
	maxPagesPerSecond     int64
	webShowMetadata       bool
	maxHTTPConns          int64
	maxHTTPConnsPerAddr   int64
	webConfigFile         string
	webExternalURL        string
	enableLifecycle       bool
	probeAddress          string
	pprofAddress          string
	grpcAddress           string
	grpcAllowPlaintext    bool
	tlsCertFile           string
	tlsKeyFile            string
	tlsClientCAFile       string
	coderdClientSAN       string
	maxHandshakes         int64
	maxHandshakesPerAddr  int64
	handshakeTimeout      time.Duration
	coderdTokenFile       string
	pushTokenFile         string
	operatorTokenFile     string
	maxAgentMessageBytes  int64
	maxMessageBytes       int64
	grpcReflection        bool
	grpcMaxConnections    int64
	grpcMaxStrangers      int64
	grpcStrangerCalls     int64
	grpcStrangerRate      int64
	grpcStrangerBurst     int64
	grpcAgentCallRate     int64
	grpcMaxOpenCalls      int64
	authenticationTimeout time.Duration
	firstMessageTimeout   time.Duration
	grpcIdleTimeout       time.Duration
	maxCoderdCalls        int64
	maxStreamsPerAgent    int64
	maxRelayStreams       int64
	maxRelayedSessions    int64
	agentIdleTimeout      time.Duration
	maxReceivingBytes     int64
	messageTimeout        time.Duration
	grpcMaxStreams        int64
	maxLookups            int64
	maxSyncs              int64
	syncTimeout           time.Duration
	ackDelay              time.Duration
	agentGoodbyeTimeout   time.Duration
	maxWatches            int64
	maxWatchBytes         int64
	maxWatchesBytes       int64
	grpcSendTimeout       time.Duration
	statsRetention        time.Duration
	maxSubscriptions      int64
	maxReportSums         int64
	reportsMaxPending     int64
	reportsPendingBytes   int64
	maxReportSumBytes     int64
	drainTimeout          time.Duration
	dataDir               string
	databaseURL           string
	databaseMaxConns      int64
	databasePooling       bool
	pubsubURL             string
	deploymentID          string
	leaseDuration         time.Duration
	reportInterval        time.Duration
	adaptiveIntervals     bool
	targetCPUPercent      int64
	targetPendingAge      time.Duration
	targetFlushPercent    int64
	sessionAge            time.Duration
	maxAgents             int64
	maxRegistrationsBytes int64
	maxRegistrationBytes  int64
	maxSyncBytes          int64
	maxPushesBytes        int64
	metadataDeclaredKeys  int64
	agentMessageRate      int64
	agentMessageBurst     int64
	agentByteRate         int64
	agentByteBurst        int64
	agentRefusedRate      int64
	agentRefusedBurst     int64
	maxRefusedAgents      int64
	maxRefusedBytes       int64
	seriesTTL             time.Duration
	maxSeries             int64
	maxSeriesPerAgent     int64
	maxSeriesPerOwner     int64
	maxSeriesBytes        int64
	maxSeriesAgentBytes   int64
	maxSeriesOwnerBytes   int64
	maxFamilies           int64
	maxFamiliesPerAgent   int64
	maxCoderdInstances    int64
	maxPushedSeries       int64
	maxPushBytes          int64
	maxPushedSeriesTotal  int64
	maxPushedFamilies     int64
	maxPushRowBytes       int64
	maxPushedValueBytes   int64
	maxPushedLabelsBytes  int64
	pushMerge             []string
	metadataFlushInterval time.Duration
	metadataBatchSize     int64
	metadataMaxPending    int64
	metadataAgentShare    int64
	metadataOwnerShare    int64
	metadataMaxKeys       int64
	metadataRereadEvery   time.Duration
	metadataTouchInterval time.Duration
	logFormat             string
	logLevel              string
	logMaxPerMinute       int64
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
	if most := maxConnections(); c.grpcMaxConnections > most {
		errs = append(errs, fmt.Errorf("--grpc-max-connections: want at most %d, nine tenths of the files that the process may open, got %d", most, c.grpcMaxConnections))
	}
	if c.agentIdleTimeout != 0 && c.agentIdleTimeout < 2*c.reportInterval {
		errs = append(errs, fmt.Errorf("--agent-idle-timeout %s is below twice --report-interval %s", c.agentIdleTimeout, c.reportInterval))
	}
	if c.targetPendingAge != 0 && c.targetPendingAge <= c.metadataFlushInterval {
		errs = append(errs, fmt.Errorf("--target-pending-age %s is not above --metadata-flush-interval %s", c.targetPendingAge, c.metadataFlushInterval))
	}
	errs = append(errs, c.validateLimits()...)
	errs = append(errs, c.validateAddresses()...)
	errs = append(errs, validateLabels("--prometheus-aggregate-agent-stats-by", c.aggregateBy, aggregator.IdentityLabels()))
	errs = append(errs, validateLabels("--prometheus-extra-labels", c.extraLabels, []string{labelTemplateVersion}))
	if addresses.Check(c.grpcAddress) == nil && c.tlsCertFile == "" && !c.grpcAllowPlaintext {
		loopback, err := addresses.IsLoopback(c.grpcAddress)
		if err != nil {
			errs = append(errs, fmt.Errorf("--grpc-address %s: %w", c.grpcAddress, err))
		} else if !loopback {
			errs = append(errs, fmt.Errorf("--grpc-address %s is beyond loopback: give --tls-cert-file and --tls-key-file, or --grpc-allow-plaintext", c.grpcAddress))
		}
	}
	if _, err := metrics.ParseMerges(c.pushMerge); err != nil {
		errs = append(errs, fmt.Errorf("--push-merge: %w", err))
	}
	if c.webExternalURL != "" && (!addresses.IsPlainURL(c.webExternalURL) || len(c.webExternalURL) > maxExternalURL) {
		errs = append(errs, fmt.Errorf("--web-external-url: want a URL of at most %d bytes such as https://stats.example.com/replica-a, without user, query and fragment", maxExternalURL))
	}
	errs = append(errs, c.validatePprof())
	errs = append(errs, c.validateEngines()...)
	return errors.Join(errs...)
}

// maxExternalURL bounds the bytes of the URL of the page, which other replicas store.
const maxExternalURL = 256

// validatePprof keeps profiles on this machine.
func (c *config) validatePprof() error {
	if c.pprofAddress == "" || addresses.Check(c.pprofAddress) != nil {
		return nil
	}
	loopback, err := addresses.IsLoopback(c.pprofAddress)
	if err != nil {
		return fmt.Errorf("--pprof-address %s: %w", c.pprofAddress, err)
	}
	if !loopback {
		return fmt.Errorf("--pprof-address %s is beyond loopback: profiles show memory and slow the service down, and nobody is asked for a password", c.pprofAddress)
	}
	return nil
}

// validateAddresses checks the syntax of what is listened on.
func (c *config) validateAddresses() []error {
	var errs []error
	for _, l := range []struct{ flag, address string }{
		{"grpc-address", c.grpcAddress},
		{"prometheus-address", c.prometheusAddress},
		{"pprof-address", c.pprofAddress},
		{"probe-address", c.probeAddress},
	} {
		if (l.flag == "pprof-address" || l.flag == "probe-address") && l.address == "" {
			continue
		}
		if err := addresses.Check(l.address); err != nil {
			errs = append(errs, fmt.Errorf("--%s %q: want host:port, such as 127.0.0.1:2112: %w", l.flag, l.address, err))
		}
	}
	return errs
}

// validateLabels checks that each of a flag's labels is one of known, and that
// none is named twice.
func validateLabels(flag string, labels, known []string) error {
	for i, label := range labels {
		if !slices.Contains(known, label) {
			return fmt.Errorf("%s: %q is none of %s", flag, label, strings.Join(known, ", "))
		}
		if slices.Contains(labels[:i], label) {
			return fmt.Errorf("%s: %s is named twice", flag, label)
		}
	}
	return nil
}

// validateEngines checks what the database and the pubsub need of each other. Its
// errors do not show the URLs, which may hold passwords.
func (c *config) validateEngines() []error {
	var errs []error
	switch addresses.Scheme(c.databaseURL) {
	case "", "postgres", "postgresql":
	default:
		errs = append(errs, errors.New("--database-url: want a URL with the scheme postgres, or none"))
	}
	for _, u := range []struct{ flag, url string }{{"database-url", c.databaseURL}, {"pubsub-url", c.pubsubURL}} {
		if strings.ContainsFunc(u.url, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
			errs = append(errs, fmt.Errorf("--%s holds a blank or a control character: write it as %%20 and the like", u.flag))
		} else if _, err := url.Parse(u.url); err != nil {
			errs = append(errs, fmt.Errorf("--%s is not a URL: write special characters of the password as %%40 and the like", u.flag))
		} else if addresses.IsUnclear(u.url) {
			errs = append(errs, fmt.Errorf("--%s has an @, # or ? where none belongs: write special characters of the password as %%40 and the like", u.flag))
		}
	}
	if _, known := engines[addresses.Scheme(c.pubsubURL)]; !known {
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

// tokenFile returns the path of coderd's token.
func (c *config) tokenFile() string {
	if c.coderdTokenFile != "" {
		return c.coderdTokenFile
	}
	return filepath.Join(c.dataDir, "coderd-token")
}
