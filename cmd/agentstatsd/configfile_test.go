package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
)

func TestConfigFileErrors(t *testing.T) {
	for name, tc := range map[string]struct{ yaml, want string }{
		"misspelt key":          {"metadata:\n  flush_intervall: 5s\n", "line 2: metadata has no key flush_intervall: want one of batch_size, flush_interval"},
		"misspelt group":        {"metdata:\n  flush_interval: 5s\n", "line 1: no group is named metdata: want one of agents, grpc"},
		"key without its group": {"flush_interval: 5s\n", "line 1: no group is named flush_interval"},
		"key twice":             {"agents:\n  max_series: 1\n  max_series: 2\n", "line 3: max_series stands in agents already, in line 2"},
		"group twice":           {"agents:\n  max_series: 1\nagents:\n  series_ttl: 5m\n", "line 3: agents stands in the file already, in line 1"},
		"no unit":               {"metadata:\n  flush_interval: 5\n", "line 2: metadata.flush_interval: want a time such as 30s, 5m or 1h30m, got \"5\""},
		"fraction":              {"agents:\n  max_series: 12.7\n", `line 2: agents.max_series: want a whole number, got "12.7"`},
		"leading zero":          {"agents:\n  max_agents: 010\n", "line 2: agents.max_agents: want a number without leading zeros, got 010: some readers of YAML take it for octal"},
		"bool":                  {"prometheus:\n  enable: maybe\n", `line 2: prometheus.enable: want true or false, got "maybe"`},
		"below the limit":       {"prometheus:\n  max_concurrent_scrapes: 0\n", "line 2: prometheus.max_concurrent_scrapes: 0 is below the least value 1"},
		"duration of nothing":   {"prometheus:\n  scrape_timeout: 0s\n", "line 2: prometheus.scrape_timeout: 0s is not longer than 0s"},
		"enum":                  {"logging:\n  level: loud\n", "line 2: logging.level: "},
		"key without a value":   {"agents:\n  series_ttl:\n", "line 2: agents.series_ttl: want a value, got none"},
		"text without a value":  {"storage:\n  data_dir: ~\n", "line 2: storage.data_dir: want a value, got none"},
		"empty number":          {"agents:\n  max_series: \"\"\n", "line 2: agents.max_series: want a value, got an empty text"},
		"list for a number":     {"agents:\n  max_series: [1]\n", "line 2: agents.max_series: want a "},
		"mapping for a text":    {"storage:\n  data_dir: {a: b}\n", "line 2: storage.data_dir: want a "},
		"list of lists":         {"prometheus:\n  aggregate_agent_stats_by: [[a]]\n", "want a list of texts"},
		"group that is a text":  {"agents: 5\n", "line 1: want agents to be a mapping"},
		"file that is a list":   {"[1, 2]\n", "line 1: want the file to be a mapping"},
		"two documents":         {"agents:\n  max_series: 1\n---\nagents:\n  max_series: 2\n", "want one YAML document"},
		"tab":                   {"agents:\n\tmax_series: 1\n", "line 2"},
		"whole":                 {"agents:\n  series_ttl: 59s\n", "--series-ttl 59s is below twice --report-interval 30s"},
		"large":                 {strings.Repeat("# nothing\n", 1<<20/10+1), "is larger than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(t, tc.yaml, nil)
			require.ErrorContains(t, err, tc.want)
		})
	}
	_, err := parse(t, "", nil, "--config", filepath.Join(t.TempDir(), "none.yaml"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// A start does not wait for the writer of a FIFO, and takes no file that others can
// write. The file has passwords, and names what the service trusts.
func TestConfigFileIsChecked(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	_, err := parse(t, "", nil, "--config", fifo)
	require.ErrorContains(t, err, "config.yaml is a FIFO, want a regular file")

	open := filepath.Join(t.TempDir(), "open.yaml")
	require.NoError(t, os.WriteFile(open, nil, 0o600))
	require.NoError(t, os.Chmod(open, 0o666))
	_, err = parse(t, "", nil, "--config", open)
	require.ErrorContains(t, err, "others can write "+open)
}

func TestConfigFileReportsAllMistakes(t *testing.T) {
	_, err := parse(t, "agents:\n  max_series: x\n  nope: 1\nlogging:\n  level: loud\n", nil)
	for _, want := range []string{"agents.max_series", "no key nope", "logging.level"} {
		require.ErrorContains(t, err, want)
	}
}

func TestConfigFileWithoutOptions(t *testing.T) {
	for name, yaml := range map[string]string{
		"comments only": "# nothing yet\n", "blank": "\n", "null": "~\n", "mark": "---\n",
		"groups of comments": "agents:\n  # max_series: 1\nlogging:\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parse(t, yaml, nil)
			require.NoError(t, err)
			want, err := parse(t, "", nil)
			require.NoError(t, err)
			want.configFile = c.configFile
			want.sources, c.sources = sources{}, sources{}
			require.Equal(t, want, c, "the defaults")
		})
	}
	path := filepath.Join(t.TempDir(), "empty.yaml")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err := parse(t, "", nil, "--config", path)
	require.NoError(t, err)
}

func TestConfigFileForms(t *testing.T) {
	for name, tc := range map[string]struct {
		yaml string
		want []string
	}{
		"list":            {"prometheus:\n  aggregate_agent_stats_by: [username, template_name]\n", []string{"username", "template_name"}},
		"list in lines":   {"prometheus:\n  aggregate_agent_stats_by:\n    - username\n", []string{"username"}},
		"as flags are":    {"prometheus:\n  aggregate_agent_stats_by: username,template_name\n", []string{"username", "template_name"}},
		"empty list":      {"prometheus:\n  aggregate_agent_stats_by: []\n", nil},
		"byte order mark": {"\ufeffprometheus:\n  aggregate_agent_stats_by: [username]\n", []string{"username"}},
		"CRLF":            {"prometheus:\r\n  aggregate_agent_stats_by: [username]\r\n", []string{"username"}},
		"alias":           {"prometheus:\n  address: &a 127.0.0.1:1\n  aggregate_agent_stats_by: [username]\ngrpc:\n  address: *a\n", []string{"username"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parse(t, tc.yaml, nil)
			require.NoError(t, err)
			require.Equal(t, tc.want, c.aggregateBy)
		})
	}
}

func TestConfigListsAreNotAddedUp(t *testing.T) {
	env := []serpent.EnvVar{{Name: "CODER_PROMETHEUS_AGGREGATE_AGENT_STATS_BY", Value: "username"}}
	file := "prometheus:\n  aggregate_agent_stats_by: [agent_name]\n"
	c, err := parse(t, file, env, "--prometheus-aggregate-agent-stats-by", "template_name")
	require.NoError(t, err)
	require.Equal(t, []string{"template_name"}, c.aggregateBy)
	c, err = parse(t, file, env)
	require.NoError(t, err)
	require.Equal(t, []string{"username"}, c.aggregateBy)
}

func TestConfigVariables(t *testing.T) {
	set := func(name string) []serpent.EnvVar { return []serpent.EnvVar{{Name: name, Value: "1"}} }
	for _, name := range []string{"AGENTSTATSD_SERIES_TLL", "AGENTSTATSD_", "AGENTSTATSD_PORT_X", "AGENTSTATSD_SERVICE"} {
		_, err := parse(t, "", set(name))
		require.ErrorContains(t, err, name+" is in the environment and no option has that variable")
	}
	// What Kubernetes sets for Services named agentstatsd and agentstatsd-metrics.
	for _, name := range []string{
		"AGENTSTATSD_SERVICE_HOST", "AGENTSTATSD_SERVICE_PORT", "AGENTSTATSD_SERVICE_PORT_GRPC", "AGENTSTATSD_PORT",
		"AGENTSTATSD_PORT_2113_TCP", "AGENTSTATSD_PORT_2113_TCP_PROTO", "AGENTSTATSD_PORT_2113_TCP_PORT", "AGENTSTATSD_PORT_2113_TCP_ADDR",
		"AGENTSTATSD_METRICS_SERVICE_HOST", "AGENTSTATSD_METRICS_PORT_2112_TCP", "OTHER",
	} {
		_, err := parse(t, "", set(name))
		require.NoError(t, err, name)
	}
	_, err := parse(t, "", []serpent.EnvVar{{Name: "AGENTSTATSD_SERIES_TTL", Value: "300"}})
	require.ErrorContains(t, err, "AGENTSTATSD_SERIES_TTL")
}
