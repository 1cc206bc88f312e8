package main

import (
	"path/filepath"
	"strings"

	"github.com/coder/agentstatsd/internal/addresses"
	"github.com/coder/agentstatsd/internal/datadir"
)

// places says what serves what, for the first line of the log: addresses, with TLS or not,
// the database, the pubsub, and the files of credentials by their names.
func (s *service) places() []any {
	c := s.config
	places := []any{"version", version(), "grpc_address", s.grpcListener.Addr().String(), "grpc_tls", tlsPlace(c.tlsCertFile, c.tlsKeyFile, c.tlsClientCAFile)}
	places = append(places, s.endpointPlaces()...)
	places = append(places, "data_dir", c.dataDir, "database", databasePlace(c), "pubsub", pubsubPlace(c), "deployment", s.pubsub.ID())
	if s.replicas != nil {
		places = append(places, "replica", s.replicas.Self(), "replica_name", hostname())
	}
	places = append(places, "coderd_token_file", c.tokenFile())
	if c.pushTokenFile != "" {
		places = append(places, "push_token_file", c.pushTokenFile)
	}
	if c.operatorTokenFile != "" {
		places = append(places, "operator_token_file", c.operatorTokenFile)
	}
	if c.coderdClientSAN != "" {
		places = append(places, "coderd_client_san", c.coderdClientSAN)
	}
	return places
}

// endpointPlaces says where Prometheus scrapes, and where profiles and probes are.
func (s *service) endpointPlaces() (places []any) {
	if s.httpListener != nil {
		tls := plaintext
		if s.webConfig.TLS() {
			tls = s.config.webConfigFile
		}
		places = append(places, "prometheus_address", s.httpListener.Addr().String(), "prometheus_tls", tls)
		if s.webConfig != nil {
			places = append(places, "web_config_file", s.config.webConfigFile)
		}
	}
	if s.pprofListener != nil {
		places = append(places, "pprof_address", s.pprofListener.Addr().String())
	}
	if s.probeListener != nil {
		places = append(places, "probe_address", s.probeListener.Addr().String())
	}
	return places
}

// plaintext is said of a listener without TLS.
const plaintext = "off"

// tlsPlace names the files of a listener's TLS.
func tlsPlace(files ...string) string {
	var named []string
	for _, f := range files {
		if f != "" {
			named = append(named, f)
		}
	}
	if len(named) == 0 {
		return plaintext
	}
	return strings.Join(named, ", ")
}

// databasePlace names the database, without a user or a password.
func databasePlace(c *config) string {
	if c.databaseURL == "" {
		return "sqlite " + filepath.Join(c.dataDir, datadir.Database)
	}
	return addresses.ServerOf(c.databaseURL)
}

// pubsubPlace names what carries messages between replicas.
func pubsubPlace(c *config) string {
	switch {
	case c.pubsubURL != "":
		return addresses.ServerOf(c.pubsubURL)
	case c.databaseURL != "":
		return "database"
	}
	return "memory"
}
