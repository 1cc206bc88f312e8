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
