package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/datadir"
	"github.com/coder/agentstatsd/replica"
)

// Profiles and probes have no limits where nobody listens for them.
func TestLimitsAreOfListenersThatAreOn(t *testing.T) {
	for flag, name := range map[string]string{"pprof-address": "pprof", "probe-address": "probes"} {
		c := configWith(t, map[string]string{flag: "127.0.0.1:0"})
		c.dataDir = t.TempDir()
		s, err := newService(t.Context(), c, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		t.Cleanup(s.close)
		families, err := s.registry.Gather()
		require.NoError(t, err)
		seen := make(map[string]bool)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, label := range m.GetLabel() {
					if _, listener, ok := strings.Cut(label.GetValue(), "http_connections/"); ok && f.GetName() == "agentstatsd_limit" {
						seen[listener] = true
					}
					if label.GetName() == "listener" && f.GetName() == "agentstatsd_http_connections" {
						require.Contains(t, []string{"prometheus", name}, label.GetValue())
					}
				}
			}
		}
		require.Equal(t, map[string]bool{"prometheus": true, name: true}, seen)
	}
}

// The first line says what serves what, and no secret.
func TestStartLine(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
		return name
	}
	authority := newAuthority(t)
	cert, key := authority.issue(t, 1, "agentstatsd.test")
	certFile, keyFile, caFile := file("cert.pem", string(cert)), file("key.pem", string(key)), file("ca.pem", string(authority.pem))
	webFile := file("web.yml", "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n")
	usersFile := file("users.yml", "basic_auth_users: {}\n")
	pushFile := file("push-token", strings.Repeat("p", 32))
	for name, tc := range map[string]struct {
		set  map[string]string
		want []string
	}{
		"plain":       {nil, []string{"grpc_tls=off", "prometheus_tls=off"}},
		"without TLS": {map[string]string{"web-config-file": usersFile}, []string{"prometheus_tls=off web_config_file=" + usersFile}},
		"all": {map[string]string{
			"tls-cert-file": certFile, "tls-key-file": keyFile, "tls-client-ca-file": caFile, "coderd-client-san": "coderd.test",
			"web-config-file": webFile, "push-token-file": pushFile, "operator-token-file": file("operator-token", strings.Repeat("o", 32)),
		}, []string{
			fmt.Sprintf("grpc_tls=%q", certFile+", "+keyFile+", "+caFile), "prometheus_tls=" + webFile + " web_config_file=" + webFile,
			"push_token_file=" + pushFile, "operator_token_file=" + filepath.Join(dir, "operator-token"), "coderd_client_san=coderd.test",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := configWith(t, tc.set)
			c.pprofAddress, c.probeAddress, c.dataDir = "127.0.0.1:0", "127.0.0.1:0", t.TempDir()
			var out bytes.Buffer
			s, err := newService(t.Context(), c, slog.New(slog.NewTextHandler(&out, nil)))
			require.NoError(t, err)
			defer s.close()
			s.replicas, err = replica.New(nil, nil, c.replicaOptions(), prometheus.NewRegistry(), s.log)
			require.NoError(t, err)
			out.Reset()
			s.log.Info("agentstatsd starts", s.places()...)
			for _, want := range append(tc.want,
				"grpc_address="+s.grpcListener.Addr().String(), "prometheus_address="+s.httpListener.Addr().String(),
				"pprof_address="+s.pprofListener.Addr().String(), "probe_address="+s.probeListener.Addr().String(),
				"data_dir="+c.dataDir, `database="sqlite `+filepath.Join(c.dataDir, datadir.Database)+`"`, "pubsub=memory",
				"deployment="+s.pubsub.ID().String(), "replica="+s.replicas.Self().String(), "replica_name=", "coderd_token_file="+c.tokenFile(),
			) {
				require.Contains(t, out.String(), want)
			}
			token, err := readToken(tokenOfCoderd, c.tokenFile(), s.log)
			require.NoError(t, err)
			for _, secret := range []string{token, strings.Repeat("p", 32), strings.Repeat("o", 32)} {
				require.NotContains(t, out.String(), secret)
			}
		})
	}
}

// Servers are named without users and passwords.
func TestPlacesOfServers(t *testing.T) {
	for _, tc := range []struct{ databaseURL, pubsubURL, database, pubsub string }{
		{"", "", "sqlite d/" + datadir.Database, "memory"},
		{"postgres://ada:s3cret@db/stats", "", "postgres://db/stats", "database"},
		{"postgres://ada:s3cret@db/stats", "nats://s3cret@nats:4222", "postgres://db/stats", "nats://nats:4222"},
	} {
		c := &config{dataDir: "d", databaseURL: tc.databaseURL, pubsubURL: tc.pubsubURL}
		require.Equal(t, []string{tc.database, tc.pubsub}, []string{databasePlace(c), pubsubPlace(c)})
	}
}
