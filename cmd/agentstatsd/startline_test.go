package main

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestServerOf(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://ada:s3cret@db:5432/stats?password=s3cret": "postgres://db:5432/stats",
		"postgres://ada:s3cret@db1:5432,db2:5432/stats":       "postgres://db1:5432,db2:5432/stats",
		"postgres:///stats?host=/run/postgresql":              "postgres:///stats",
		"nats://s3cret@a:4222,nats://ada:s3cret@b:4222":       "nats://a:4222,b:4222",
		"tls://nats:4222":                     "tls://nats:4222",
		"postgres://ada:s3cret/more@db/stats": "postgres://?",
	} {
		got := serverOf(url)
		require.NotContains(t, got, "s3cret", url)
		require.Equal(t, want, got)
	}
}

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
	c := configWith(t, map[string]string{"pprof-address": "127.0.0.1:0", "probe-address": "127.0.0.1:0"})
	c.dataDir = t.TempDir()
	c.operatorTokenFile = filepath.Join(c.dataDir, "operator-token")
	var out bytes.Buffer
	s, err := newService(t.Context(), c, slog.New(slog.NewTextHandler(&out, nil)))
	require.NoError(t, err)
	defer s.close()
	out.Reset()
	s.log.Info("agentstatsd starts", s.places()...)
	for _, want := range []string{
		"grpc_address=" + s.grpcListener.Addr().String(), "grpc_tls=off",
		"prometheus_address=" + s.httpListener.Addr().String(), "prometheus_tls=off",
		"pprof_address=" + s.pprofListener.Addr().String(),
		"data_dir=" + c.dataDir, `database="sqlite ` + filepath.Join(c.dataDir, databaseFile) + `"`, "pubsub=memory", "deployment=",
		"coderd_token_file=" + c.tokenFile(), "operator_token_file=" + c.operatorTokenFile, "probe_address=" + s.probeListener.Addr().String(),
	} {
		require.Contains(t, out.String(), want)
	}
	token, err := readToken(tokenOfCoderd, c.tokenFile(), s.log)
	require.NoError(t, err)
	require.NotContains(t, out.String(), token)
}
