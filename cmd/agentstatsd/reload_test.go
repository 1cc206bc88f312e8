package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/reload"
	"github.com/coder/agentstatsd/web"
)

// reloadedService is a service with a configuration file. It does not run.
type reloadedService struct {
	*service
	t      *testing.T
	file   string
	logged bytes.Buffer
}

// newReloaded makes a service whose configuration file has the text, with TLS.
func newReloaded(t *testing.T, text string, flags ...string) *reloadedService {
	t.Helper()
	dir := t.TempDir()
	cert, key := newAuthority(t).issue(t, 1, "agentstatsd.test")
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, cert, 0o600))
	require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	r := &reloadedService{t: t, file: filepath.Join(dir, "config.yaml")}
	r.write(text)
	c := new(config)
	inv := (&serpent.Command{
		Use: "serve", Options: c.options(), Middleware: configured(c, c.validate, freshService),
		Handler: func(inv *serpent.Invocation) (err error) {
			log, err := newLogger(&r.logged, c)
			if err != nil {
				return err
			}
			r.service, err = newService(context.WithoutCancel(inv.Context()), c, log)
			return err
		},
	}).Invoke(append([]string{
		"--config", r.file, "--data-dir", filepath.Join(dir, "data"), "--grpc-address", "127.0.0.1:0", "--prometheus-address", "127.0.0.1:0",
		"--tls-cert-file", certFile, "--tls-key-file", keyFile, "--web-enable-lifecycle",
		"--pprof-address", "127.0.0.1:0", "--probe-address", "127.0.0.1:0",
	}, flags...)...)
	require.NoError(t, inv.Run())
	t.Cleanup(r.close)
	return r
}

// newReloadedBridge makes a bridge with a configuration file, and TLS.
func newReloadedBridge(t *testing.T) *reloadedService {
	t.Helper()
	dir := t.TempDir()
	cert, key := newAuthority(t).issue(t, 1, "agentstatsd.test")
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, cert, 0o600))
	require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	r := &reloadedService{t: t, file: filepath.Join(dir, "config.yaml")}
	r.write("")
	c := new(bridgeConfig)
	inv := (&serpent.Command{
		Use: "bridge", Options: c.options(), Middleware: configured(&c.config, c.validate, freshBridge),
		Handler: func(inv *serpent.Invocation) (err error) {
			log, err := newLogger(io.Discard, &c.config)
			if err != nil {
				return err
			}
			if r.service, _, err = newBridge(c, log); err != nil {
				return err
			}
			_, err = c.listenForAgents(inv.Context(), r.service, r.tls)
			return err
		},
	}).Invoke("--config", r.file, "--listen", "127.0.0.1:0", "--prometheus-address", "127.0.0.1:0", "--upstream", "http://127.0.0.1:1",
		"--service-url", "agentstatsd://127.0.0.1:1?plaintext=true", "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--web-enable-lifecycle",
		"--coder-url", "http://127.0.0.1:1", "--coder-api-token-file", keyFile)
	require.NoError(t, inv.Run())
	t.Cleanup(r.close)
	return r
}

func (r *reloadedService) write(text string) {
	require.NoError(r.t, os.WriteFile(r.file, []byte(text), 0o600))
}

// live returns the fields of the options that all parts have now.
func (r *reloadedService) live() map[string]any {
	fields := make(map[string]any)
	r.Each(func(name string, options any) { flatten(name, reflect.ValueOf(options), fields) })
	return fields
}

// reloadValues are of options of which another value than the default does not go with the
// defaults of others.
var reloadValues = map[string]string{
	"agent-idle-timeout": "90s", "target-pending-age": "20s", "metadata-max-pending-per-owner": "200000", "max-push-bytes": "32MiB",
}

// TestReload changes one option after another in the file. Each that is marked changes
// what its parts have, as at a start with that value, and nothing else.
func TestReload(t *testing.T) {
	r := newReloaded(t, "")
	var reloaded []string
	for _, o := range new(config).options() {
		if o.YAML == "" || r.InForce().config.sources.given[o.Flag].Flag != "" {
			continue
		}
		w := wirings[o.Flag]
		value := cmp.Or(reloadValues[o.Flag], w.value)
		if value == "" {
			value = another(t, o)
		}
		before := r.live()
		unchanged := func() { require.Equal(t, fmt.Sprint(before), fmt.Sprint(r.live()), o.Flag) }
		r.write(fmt.Sprintf("%s:\n  %s: %q\n", o.Group.YAML, o.YAML, value))
		outcome := r.reloader.Reload()
		if outcome.Error != "" { // of an option that another one, or a file, has to go with
			require.NotContains(t, reloadable, o.Flag, outcome.Error)
			unchanged()
			continue
		}
		if !slices.Contains(reloadable, o.Flag) {
			require.Empty(t, outcome.Changed, o.Flag)
			require.Equal(t, o.Flag, outcome.NeedRestart[0].Flag)
			unchanged()
			continue
		}
		require.Empty(t, outcome.NeedRestart, o.Flag)
		require.Len(t, outcome.Changed, 1, o.Flag)
		require.Equal(t, o.Flag, outcome.Changed[0].Flag)
		after := r.live()
		var changed []string
		for name := range after {
			if reflect.ValueOf(after[name]).Kind() != reflect.Func && !reflect.DeepEqual(before[name], after[name]) {
				changed = append(changed, name)
			}
		}
		require.NotEmpty(t, changed, "--%s changes nothing", o.Flag)
		want := components(t, configWith(t, map[string]string{o.Flag: value}))
		for _, field := range w.fields {
			require.Contains(t, changed, field, "--%s", o.Flag)
			require.Equal(t, want[field], after[field], "--%s: %s", o.Flag, field)
		}
		r.write("")
		require.Empty(t, r.reloader.Reload().Error)
		unchanged()
		reloaded = append(reloaded, o.Flag)
	}
	require.ElementsMatch(t, reloadable, reloaded)
}

// Each option of a bridge that is marked changes something of it, and no other one does.
func TestReloadOfBridge(t *testing.T) {
	r := newReloadedBridge(t)
	var reloaded []string
	for _, o := range new(bridgeConfig).options() {
		if o.YAML == "" || r.InForce().config.sources.given[o.Flag].Flag != "" {
			continue
		}
		w := bridgeWirings[o.Flag]
		before := r.live()
		r.write(fmt.Sprintf("%s:\n  %s: %q\n", o.Group.YAML, o.YAML, cmp.Or(w.value, wirings[o.Flag].value, another(t, o))))
		outcome := r.reloader.Reload()
		after := r.live()
		if !slices.Contains(reloadable, o.Flag) && !slices.Contains(reloadableByBridge, o.Flag) {
			require.Empty(t, outcome.Changed, o.Flag)
			require.Equal(t, fmt.Sprint(before), fmt.Sprint(after), o.Flag)
			continue
		}
		require.Empty(t, outcome.Error, o.Flag)
		require.Len(t, outcome.Changed, 1, o.Flag)
		require.NotEqual(t, fmt.Sprint(before), fmt.Sprint(after), "--%s changes nothing", o.Flag)
		for _, field := range w.fields {
			field = strings.Replace(field, "handshakes.", "agents handshakes.", 1)
			require.Contains(t, after, field)
			require.NotEqual(t, before[field], after[field], "--%s: %s", o.Flag, field)
		}
		r.write("")
		require.Empty(t, r.reloader.Reload().Error)
		require.Equal(t, fmt.Sprint(before), fmt.Sprint(r.live()), o.Flag)
		reloaded = append(reloaded, o.Flag)
	}
	require.Subset(t, reloaded, reloadableByBridge)
}

// A file that cannot be used changes nothing, and is a warning until one can.
func TestReloadOfWrongFiles(t *testing.T) {
	r := newReloaded(t, "agents:\n  max_agents: 100\n", "--push-token-file", filepath.Join(t.TempDir(), "push-token"))
	before := fmt.Sprint(r.live(), r.tokens)
	for text, want := range map[string]string{
		"agents:\n  max_agents: many\n":                "agents.max_agents",
		"agents:\n  max_agents: 5\n  series_ttl: 1s\n": "--series-ttl 1s is below twice --report-interval 30s",
		"agents: [\n": "--config",
		"metadata:\n  batch_size: 400\n  max_pending: 300\n": "--metadata-max-pending (300) is below",
	} {
		r.write(text)
		o := r.reloader.Reload()
		require.Contains(t, o.Error, want)
		require.Empty(t, o.Changed)
		require.Equal(t, before, fmt.Sprint(r.live(), r.tokens))
		require.Len(t, r.fileWarnings(), 1)
		require.Contains(t, r.fileWarnings()[0], want)
	}
	for server, warns := range map[*web.Server]bool{r.http: true, r.probes: false} {
		response := httptest.NewRecorder()
		server.ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/-/ready", http.NoBody))
		require.Equal(t, warns, strings.Contains(response.Body.String(), "was not reloaded"), response.Body.String())
	}
	// All or nothing: the options could be used.
	r.write("agents:\n  max_agents: 50\n")
	for path, text := range map[string]string{r.config.tokenFile(): "short", r.config.pushTokenFile: "", r.config.tlsKeyFile: "garbage"} {
		good, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		require.NotEmpty(t, r.reloader.Reload().Error, path)
		require.Equal(t, before, fmt.Sprint(r.live(), r.tokens))
		require.NoError(t, os.WriteFile(path, good, 0o600))
	}
	require.Equal(t, 0.0, gauge(t, r.service, "agentstatsd_config_last_reload_successful"))
	hash := gauge(t, r.service, "agentstatsd_config_hash")
	require.Empty(t, r.reloader.Reload().Error)
	require.Equal(t, 50, r.fleet.Options().MaxAgents)
	require.Empty(t, r.fileWarnings())
	require.Equal(t, 1.0, gauge(t, r.service, "agentstatsd_config_last_reload_successful"))
	require.NotEqual(t, hash, gauge(t, r.service, "agentstatsd_config_hash"))
}

// A dry run says what is wrong with files that nobody has asked to use, and logs and counts
// nothing.
func TestDryRunOfFiles(t *testing.T) {
	r := newReloaded(t, "")
	r.logged.Reset()
	require.NoError(t, os.Chmod(r.config.tokenFile(), 0o644))
	require.Empty(t, r.reloader.DryRun().Error)
	require.Empty(t, r.logged.String())
	require.Empty(t, r.reloader.Reload().Error)
	require.Contains(t, r.logged.String(), "others can read coderd's token")
	r.logged.Reset()
	require.NoError(t, os.WriteFile(r.config.tlsKeyFile, []byte("garbage"), 0o600))
	require.Contains(t, r.reloader.DryRun().Error, "holds no private key")
	require.Empty(t, r.logged.String())
	require.Zero(t, r.tls.Refused())
	require.Empty(t, r.fileWarnings())
	require.Contains(t, r.reloader.Reload().Error, "holds no private key")
	require.Contains(t, r.logged.String(), "the configuration was not reloaded")
}

// Flags and environment do not change, and win over the file.
func TestReloadKeepsWhatFlagsGave(t *testing.T) {
	r := newReloaded(t, "agents:\n  max_agents: 7\n", "--max-agents", "8", "--push-merge", "a=sum", "--push-merge", "b=max")
	r.write("agents:\n  max_agents: 9\npushes:\n  merge: [c=sum]\nprometheus:\n  address: 127.0.0.1:1\nstorage:\n  lease_duration: 20s\n")
	o := r.reloader.Reload()
	require.Empty(t, o.Error)
	require.Empty(t, o.Changed)
	require.Len(t, o.NeedRestart, 1)
	require.Equal(t, "--lease-duration: 15s -> 20s", o.NeedRestart[0].String())
	require.Equal(t, 8, r.fleet.Options().MaxAgents)
	require.Equal(t, []string{"a=sum", "b=max"}, r.InForce().config.pushMerge)
	// The next one compares with what is in force, not with what the file had.
	o = r.reloader.Reload()
	require.Len(t, o.NeedRestart, 1)
}

func TestReloadByHTTP(t *testing.T) {
	r := newReloaded(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- r.http.Serve(ctx, r.httpListener) }()
	header := make(http.Header)
	post := func(method, path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.httpListener.Addr().String()+path, nil)
		require.NoError(t, err)
		req.Header = header
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer func() { require.NoError(t, resp.Body.Close()) }()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	r.write("agents:\n  max_agents: 9\n")
	code, body := post(http.MethodPost, "/-/reload?dry_run=true")
	require.Equal(t, http.StatusOK, code)
	var o reload.Outcome
	require.NoError(t, json.Unmarshal([]byte(body), &o))
	require.Equal(t, "--max-agents: 200000 -> 9", o.Changed[0].String())
	require.Equal(t, 200_000, r.fleet.Options().MaxAgents)
	code, _ = post(http.MethodPost, "/-/reload")
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, 9, r.fleet.Options().MaxAgents)
	r.write("x")
	code, body = post(http.MethodPost, "/-/reload")
	require.Equal(t, http.StatusInternalServerError, code)
	require.Contains(t, body, "line 1: want the file to be a mapping")
	code, _ = post(http.MethodGet, "/-/reload")
	require.Equal(t, http.StatusMethodNotAllowed, code)

	code, body = post(http.MethodPost, "/-/log-level?level=debug&for=10m")
	require.Equal(t, http.StatusOK, code, body)
	require.True(t, r.log.Enabled(t.Context(), slog.LevelDebug))
	code, _ = post(http.MethodPost, "/-/log-level?level=debug&for=1000h")
	require.Equal(t, http.StatusBadRequest, code)

	// A browser sends these for a page of somebody else.
	for _, header = range []http.Header{{"Origin": {"https://elsewhere.example"}}, {"Sec-Fetch-Site": {"cross-site"}}} {
		for _, path := range []string{"/-/reload", "/-/log-level?level=info&for=10m"} {
			code, _ = post(http.MethodPost, path)
			require.Equal(t, http.StatusForbidden, code, header)
		}
	}
	require.True(t, r.log.Enabled(t.Context(), slog.LevelDebug))
	cancel()
	require.NoError(t, <-served)
}

func TestReloadOfTokens(t *testing.T) {
	r := newReloaded(t, "")
	require.Len(t, r.tokens.Coderd, 1)
	old, err := os.ReadFile(r.config.tokenFile())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(r.config.tokenFile(), fmt.Appendf(nil, "old: %snew: %s\n", old, strings.Repeat("n", 32)), 0o600))
	o := r.reloader.Reload()
	require.Empty(t, o.Error)
	require.Equal(t, []string{"tokens"}, o.Files)
	require.Equal(t, []grpcserver.Token{
		grpcserver.NewToken("old", strings.TrimSpace(string(old))), grpcserver.NewToken("new", strings.Repeat("n", 32)),
	}, r.tokens.Coderd)
	require.Empty(t, r.reloader.Reload().Files, "they have not changed")
}

func gauge(t *testing.T, s *service, name string) float64 {
	t.Helper()
	families, err := s.registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}
