package integration

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/freeport"
)

// Debian's Prometheus takes the configuration for it, and scrapes the service with it.
func TestDebianPrometheus(t *testing.T) {
	beside(t)
	s := newService(t, "--report-interval", "1s")
	s.start(t)
	sim := startSimulation(t, s, "--agents", "20", "--report-interval", "1s", "--duration", "2s", "--keep")
	require.NoError(t, sim.wait())

	text, err := os.ReadFile("../deploy/prometheus/prometheus-2.yml")
	require.NoError(t, err)
	// Beside it the job of docs/scaling.md that scrapes in parts.
	_, shards, found := strings.Cut(blocks(t, "scaling.md", "yaml")[0], "scrape_configs:\n")
	require.True(t, found)
	text = append(text, shards...)
	// And README's.
	_, job, _ := strings.Cut(readmeJob(t), "scrape_configs:\n")
	text = append(text, "\n"+strings.Replace(job, "job_name: agentstatsd\n", "job_name: agentstatsd-readme\n", 1)...)
	places := strings.NewReplacer("localhost:2112", s.httpAddr, "15s", "3s", "10s", "3s")
	dir, addr := t.TempDir(), freeport.Addr()
	file := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(file, []byte(places.Replace(string(text))), 0o600))
	rules, err := os.ReadFile("../deploy/prometheus/agentstatsd.rules.yml")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "agentstatsd.rules.yml"), rules, 0o600))
	out, err := exec.Command(debian(t, "promtool"), "check", "config", file).CombinedOutput()
	require.NoError(t, err, "%s", out)

	cmd, output := exec.Command(debian(t, "prometheus"), "--config.file="+file, "--storage.tsdb.path="+dir, "--web.listen-address="+addr), new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = output, output
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	count := func(query string) string {
		resp, err := http.Get("http://" + addr + "/api/v1/query?query=" + url.QueryEscape(query))
		if err != nil {
			return ""
		}
		defer func() { _ = resp.Body.Close() }()
		var answer struct {
			Data struct {
				Result []struct{ Value [2]any }
			}
		}
		if json.NewDecoder(resp.Body).Decode(&answer) != nil || len(answer.Data.Result) != 1 {
			return ""
		}
		text, _ := answer.Data.Result[0].Value[1].(string)
		return text
	}
	// A scrape that takes too long on a slow machine is followed by another one.
	await := func(want, query string) {
		t.Helper()
		require.Eventually(t, func() bool { return count(query) == want }, 30*time.Second, 50*time.Millisecond, "%s\n%s", query, output)
	}
	await("6", "sum(up)")
	await("1", `count(coderd_agents_up{job="agentstatsd"}) > bool 10`)
	for _, job := range []string{"agentstatsd-readme", "agentstatsd-shards"} {
		await("1", `count(coderd_agents_up{shard="",job="`+job+`"}) == bool count(coderd_agents_up{job="agentstatsd"})`)
	}
	// The four parts together are the whole.
	all := `{__name__=~"coderd_.*|agent_.*|go_.*",job="agentstatsd"}`
	await("0", `count(`+all+` unless ignoring(job) `+strings.ReplaceAll(all, `agentstatsd"`, `agentstatsd-shards"`)+`) or (count(`+all+`) > bool 0) - 1`)
	resp, err := http.Get("http://" + addr + "/api/v1/rules?type=alert")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	loaded, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, strings.Count(string(rules), "- alert: "), strings.Count(string(loaded), `"type":"alerting"`), "%s", loaded)
}

// debian returns a program of a package that make servers downloads.
func debian(t *testing.T, program string) string {
	t.Helper()
	found, err := filepath.Glob("../bin/debian/usr/*bin/" + program)
	require.NoError(t, err)
	require.Len(t, found, 1, "make servers downloads it")
	return found[0]
}
