package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/freeport"
)

// bridgeWith returns the defaults with what is required, and some options set.
func bridgeWith(t *testing.T, set map[string]string) *bridgeConfig {
	t.Helper()
	b := new(bridgeConfig)
	options := b.options()
	require.NoError(t, options.SetDefaults())
	b.listen, b.prometheusAddress = freeport.Addr(), freeport.Addr()
	b.upstream, b.serviceURL = "http://127.0.0.1:1", "agentstatsd://127.0.0.1:1?plaintext=true"
	for flag, value := range set {
		i := slices.IndexFunc(options, func(o serpent.Option) bool { return o.Flag == flag })
		require.GreaterOrEqual(t, i, 0, flag)
		require.NoError(t, options[i].Value.Set(value))
	}
	return b
}

// begun returns the error of a bridge that is started and stopped.
func begun(t *testing.T, b *bridgeConfig) string {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.drainDelay, b.drainTimeout = 0, time.Millisecond
	return fmt.Sprint(runBridge(ctx, b, slog.New(slog.DiscardHandler)))
}

// bridgeWirings are of the options that only a bridge has.
var bridgeWirings = map[string]wiring{
	"config":                          wirings["config"],
	"listen":                          {value: "256.0.0.1:1"},
	"upstream":                        {fields: []string{"bridge.Upstream"}, value: "http://coder:7080"},
	"service-url":                     {value: "nothing"},
	"upstream-ca-file":                {value: "bridge_test.go"},
	"tls-cert-file":                   {with: map[string]string{"tls-cert-file": "bridge_test.go", "tls-key-file": "bridge_test.go"}},
	"tls-key-file":                    {with: map[string]string{"tls-cert-file": "bridge_test.go", "tls-key-file": "bridge_test.go"}},
	"drain-delay":                     {fields: []string{"bridge.DrainDelay", "stop"}},
	"drain-timeout":                   {fields: []string{"bridge.DrainTimeout", "stop"}},
	"close-timeout":                   {fields: []string{"bridge.CloseTimeout", "stop"}},
	"allow-plaintext":                 {with: map[string]string{"listen": "0.0.0.0:2114"}},
	"coder-url":                       {fields: []string{"registrations.CoderURL"}, value: "https://coder.test", with: map[string]string{"coder-api-token-file": "token"}},
	"coder-api-token-file":            {fields: []string{"registrations.TokenFile"}, value: "token", with: map[string]string{"coder-url": "https://coder.test"}},
	"coder-ca-file":                   {value: "bridge_test.go", with: map[string]string{"coder-url": "https://coder.test", "coder-api-token-file": "token"}},
	"coder-max-requests-per-second":   to("registrations.MaxRequestsPerSecond"),
	"sync-interval":                   to("registrations.SyncInterval"),
	"coderd-metrics-url":              {fields: []string{"targets.URLs"}, value: "http://coder:2112"},
	"coderd-metrics-http-config-file": to("targets.HTTPConfigFile"),
	"leave-out-agents":                {fields: []string{"targets.PassThrough"}, with: map[string]string{"upstream": ""}},
	"scrape-interval":                 to("targets.Interval"),
	"max-scrape-bytes":                to("targets.MaxBodyBytes"),
	"max-targets":                     to("targets.MaxTargets"),
	"max-agent-connections":           to("bridge.MaxConnections"),
	"trust-forwarded-headers":         to("bridge.DropForwarded"),
	"max-decoder-bytes":               to("bridge.MaxDecoderBytes"),
	"max-relayed-agents":              to("bridge.MaxAgents"),
	"tls-max-handshakes":              to("handshakes.Max"),
	"tls-max-handshakes-per-address":  to("handshakes.MaxPerAddress"),
	"tls-handshake-timeout":           to("handshakes.Timeout"),
}

// bridgeFields returns what options of a bridge set.
func bridgeFields(b *bridgeConfig) map[string]any {
	fields := map[string]any{"stop": b.stopTimeout()}
	flatten("bridge", reflect.ValueOf(b.bridgeOptions()), fields)
	flatten("registrations", reflect.ValueOf(b.registrationsOptions()), fields)
	flatten("targets", reflect.ValueOf(b.targetsOptions()), fields)
	flatten("handshakes", reflect.ValueOf(b.handshakes()), fields)
	return fields
}

// Each option of a bridge changes what the bridge gets, or how it starts.
func TestBridgeOptionsReachTheBridge(t *testing.T) {
	seen := map[string]bool{"bridge.Backoff.Min": true, "bridge.Backoff.Max": true, "bridge.Connected": true, "bridge.Unknown": true, "bridge.HTTPError": true, "bridge.UpstreamTLS": true, "registrations.TLS": true}
	for _, o := range new(bridgeConfig).options() {
		w, own := bridgeWirings[o.Flag]
		if !own {
			_, shared := wirings[o.Flag]
			require.True(t, shared, "--%s: say what it reaches", o.Flag)
			continue
		}
		t.Run(o.Flag, func(t *testing.T) {
			value := w.value
			if value == "" {
				value = another(t, o)
			}
			before := bridgeWith(t, w.with)
			with := map[string]string{o.Flag: value}
			for flag, value := range w.with {
				if flag != o.Flag {
					with[flag] = value
				}
			}
			after := bridgeWith(t, with)
			was, is := bridgeFields(before), bridgeFields(after)
			var got []string
			for name := range is {
				if reflect.ValueOf(is[name]).Kind() != reflect.Func && !reflect.DeepEqual(was[name], is[name]) {
					got = append(got, name)
					seen[name] = true
				}
			}
			slices.Sort(got)
			require.Equal(t, w.fields, got)
			if len(got) == 0 && o.Flag != "config" {
				require.NotEqual(t, fmt.Sprint(before.validate())+begun(t, before), fmt.Sprint(after.validate())+begun(t, after))
			}
		})
	}
	for name := range bridgeFields(bridgeWith(t, nil)) {
		require.True(t, seen[name], "no option sets %s", name)
	}
}

// Each address of a bridge is looked at before it starts.
func TestBridgeChecksAddresses(t *testing.T) {
	for _, flag := range []string{"listen", "prometheus-address", "pprof-address", "probe-address"} {
		b := bridgeWith(t, map[string]string{flag: "127.0.0.1"})
		require.ErrorContains(t, b.validate(), "--"+flag+` "127.0.0.1": want host:port, such as 127.0.0.1:`)
	}
}

// The listener for agents speaks TLS, if it has a certificate, and HTTP/1.1.
func TestBridgeSpeaksTLS(t *testing.T) {
	dir := t.TempDir()
	authority := newAuthority(t)
	cert, key := authority.issue(t, 1, "agentstatsd.test")
	for name, text := range map[string][]byte{"cert.pem": cert, "key.pem": key} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	b := bridgeWith(t, map[string]string{
		"tls-cert-file": filepath.Join(dir, "cert.pem"), "tls-key-file": filepath.Join(dir, "key.pem"), "drain-delay": "0s", "drain-timeout": "1ms",
	})
	require.NoError(t, b.validate())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- runBridge(ctx, b, slog.New(slog.DiscardHandler)) }()
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(authority.pem))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "agentstatsd.test"}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	var resp *http.Response
	require.Eventually(t, func() (ok bool) {
		var err error
		resp, err = (&http.Client{Transport: transport}).Get("https://" + b.listen + "/")
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	require.Equal(t, http.StatusBadGateway, resp.StatusCode)
	require.Equal(t, 1, resp.ProtoMajor)
	metrics, err := get("http://" + b.prometheusAddress + "/metrics")
	require.NoError(t, err)
	require.Contains(t, metrics, `agentstatsd_tls_certificate_expiry_timestamp_seconds{certificate="server",listener="agents"}`)
	_, err = get("http://" + b.listen + "/")
	require.NoError(t, err)
	awaitText(t, "http://"+b.prometheusAddress+"/metrics", `agentstatsd_tls_handshakes_failed_total{listener="agents",reason="not_tls"} 1`)
	cancel()
	require.NoError(t, <-ended)
}
