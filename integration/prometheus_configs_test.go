package integration

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/stretchr/testify/require"
)

// readmeJob returns the configuration that README.md shows.
func readmeJob(t *testing.T) string {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	block := regexp.MustCompile("(?s)```yaml\n(scrape_configs:\n.*?)```").FindSubmatch(readme)
	require.NotNil(t, block)
	return string(block[1])
}

// Each configuration is loaded, with its rules, by the kinds of Prometheus that it is for. A
// Prometheus 3 scrapes all families by it; the one for 3.8 brings native histograms.
func TestPrometheusConfigurations(t *testing.T) {
	beside(t)
	s := startDemo(t)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join("../deploy/prometheus", name))
		require.NoError(t, err)
		return string(text)
	}
	const rules = "agentstatsd.rules.yml"
	for _, c := range []struct {
		name, text         string
		two, rules, native bool
	}{
		{name: "README.md", text: readmeJob(t), two: true},
		{name: "prometheus-2.yml", text: read("prometheus-2.yml"), two: true, rules: true},
		{name: "prometheus.yml", text: read("prometheus.yml"), rules: true, native: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "prometheus.yml")
			require.NoError(t, os.WriteFile(file, []byte(c.text), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, rules), []byte(read(rules)), 0o600))
			cfg, err := config.LoadFile(file, false, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			if c.rules {
				require.Equal(t, []string{filepath.Join(dir, rules)}, cfg.RuleFiles)
			}
			out, err := exec.Command(debian(t, "promtool"), "check", "config", file).CombinedOutput()
			if c.two {
				require.NoError(t, err, "%s", out)
				require.Equal(t, c.rules, strings.Contains(string(out), " rules found"), "%s", out)
			} else {
				require.Error(t, err, "%s", out)
			}

			text := strings.NewReplacer("15s", "1s", "10s", "1s").Replace(c.text)
			if !strings.HasPrefix(text, "global:") && !strings.Contains(text, "\nglobal:\n") {
				text = "global: {scrape_interval: 1s, scrape_timeout: 1s}\n" + text
			}
			p := startConfigured(t, text, map[string][]*targetgroup.Group{
				"agentstatsd": {{Targets: []model.LabelSet{{model.AddressLabel: model.LabelValue(s.httpAddr)}}}},
			})
			const histogram = "coderd_template_workspace_build_duration_seconds"
			found := func(query string) int { return len(p.query(t, query, time.Now())) }
			require.Eventually(t, func() bool {
				return found(`coderd_agents_up{job="agentstatsd"}`) > 0 && found(histogram+"_bucket") > 0
			}, time.Minute, 50*time.Millisecond, "dashboards ask for classic buckets")
			require.Equal(t, c.native, found("histogram_count("+histogram+")") > 0)
		})
	}
}
