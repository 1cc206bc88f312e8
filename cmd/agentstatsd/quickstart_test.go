package main

import (
	"cmp"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/serpent"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/freeport"
)

// fenced matches a block of Markdown: its language and its text.
var fenced = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

// quickstart returns the blocks of a language in docs/quickstart-coder.md.
func quickstart(t *testing.T, language string) (blocks []string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "quickstart-coder.md"))
	require.NoError(t, err)
	for _, block := range fenced.FindAllStringSubmatch(string(page), -1) {
		if block[1] == language {
			blocks = append(blocks, block[2])
		}
	}
	require.NotEmpty(t, blocks, language)
	return blocks
}

// A line of a manifest or unit that has an option.
var optionLine = regexp.MustCompile(`(?m)^ +(?:- )?--([a-z-]+)(?:[= ](\S+))?(?: \\)?$`)

// The program takes the options of compose, of Kubernetes and of the unit, without those of
// coderd's environment.
func TestQuickstartOptions(t *testing.T) {
	found := 0
	for _, block := range append(quickstart(t, "yaml"), quickstart(t, "ini")...) {
		if !strings.Contains(block, "all-in-one") {
			continue
		}
		found++
		b := new(bridgeConfig)
		options := b.allInOneOptions()
		require.NoError(t, options.SetDefaults())
		for _, line := range optionLine.FindAllStringSubmatch(block, -1) {
			o := options.ByFlag(line[1])
			require.NotNil(t, o, "--%s", line[1])
			require.NoError(t, o.Value.Set(cmp.Or(line[2], "true")), "--%s", line[1])
		}
		require.NoError(t, b.validateAllInOne(), block)
		require.Equal(t, strings.Count(block, " --"), len(optionLine.FindAllString(block, -1)), "lines of options that are not read")
		require.Less(t, b.stopTimeout()+b.config.stopTimeout(), time.Minute, "the time that it has to stop")
		require.Regexp(t, `stop_grace_period: 60s|terminationGracePeriodSeconds: 60|TimeoutStopSec=60`, block)
		require.NotEmpty(t, b.upstream)
		require.NotEmpty(t, b.coderURL)
		require.NotEmpty(t, b.coderdMetricsURLs)
	}
	require.Equal(t, 3, found)
	for _, block := range quickstart(t, "yaml") {
		var document yaml.Node
		decoder := yaml.NewDecoder(strings.NewReader(block))
		require.NoError(t, decoder.Decode(&document), block)
	}
	var known []string
	for _, options := range []serpent.OptionSet{new(config).options(), new(bridgeConfig).options()} {
		for _, o := range options {
			known = append(known, o.Env)
		}
	}
	for _, variable := range []string{"CODER_PROMETHEUS_ENABLE", "CODER_PROMETHEUS_ADDRESS", "CODER_PROMETHEUS_COLLECT_AGENT_STATS", "CODER_PROMETHEUS_AGGREGATE_AGENT_STATS_BY"} {
		require.Contains(t, known, variable)
	}
}

// nginx and Caddy, as the quickstart has them, send agents' connections to the bridge and the
// rest to coderd. Those that are not installed are left out.
func TestQuickstartProxies(t *testing.T) {
	for _, program := range []string{"nginx", "caddy"} {
		t.Run(program, func(t *testing.T) {
			path, err := exec.LookPath(program)
			if err != nil {
				t.Skip(err)
			}
			const token = "0b9d4c36-3f7f-4f7e-9a3e-0d7a1a2b3c4d"
			rpc := new(codertest.RPC)
			rpc.Add(codertest.Agent{ID: uuid.New(), Token: token, Manifest: []byte("manifest")})
			bridge := httptest.NewServer(rpc)
			defer bridge.Close()
			coderd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("coderd")) }))
			defer coderd.Close()
			dir, addr := t.TempDir(), freeport.Addr()
			places := strings.NewReplacer(
				"127.0.0.1:2114", bridge.Listener.Addr().String(), "127.0.0.1:3000", coderd.Listener.Addr().String(), "coder.example.com", "http://"+addr)
			var text string
			var cmd *exec.Cmd
			file := filepath.Join(dir, "config")
			if program == "nginx" {
				block := quickstart(t, "nginx")[0]
				text = fmt.Sprintf("daemon off; error_log stderr; pid %[1]s/pid; events {}\nhttp { access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;"+
					"fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;\nserver { listen %[2]s;\n%[3]s\nlocation / { proxy_pass http://127.0.0.1:3000; }\n}}", dir, addr, block)
				cmd = exec.CommandContext(t.Context(), path, "-p", dir, "-c", file)
			} else {
				text = "{\n\tadmin off\n\tauto_https off\n}\n" + quickstart(t, "caddy")[0]
				cmd = exec.CommandContext(t.Context(), path, "run", "--adapter", "caddyfile", "--config", file)
				cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
			}
			require.NoError(t, os.WriteFile(file, []byte(places.Replace(text)), 0o600))
			output := new(lockedBuffer)
			cmd.Stdout, cmd.Stderr = output, output
			cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
			require.NoError(t, cmd.Start())
			defer func() {
				_ = cmd.Process.Signal(os.Interrupt)
				_ = cmd.Wait()
			}()
			require.Eventually(t, func() bool {
				body, _ := get("http://" + addr + "/")
				return body == "coderd"
			}, 20*time.Second, 10*time.Millisecond, "%s", output)
			session, err := codertest.Dial(t.Context(), addr, token, codertest.DialOptions{})
			require.NoError(t, err, output.String())
			defer func() { _ = session.Close() }()
			answer, err := session.Call(t.Context(), codertest.GetManifest, nil)
			require.NoError(t, err)
			require.Equal(t, "manifest", string(answer))
			require.Contains(t, rpc.Headers()[0].Get("X-Forwarded-For"), "127.0.0.1")
		})
	}
}
