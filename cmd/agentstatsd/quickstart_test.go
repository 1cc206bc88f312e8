package main

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// quickstart returns the blocks of a language in docs/quickstart-coder.md.
func quickstart(t *testing.T, language string) (blocks []string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "quickstart-coder.md"))
	require.NoError(t, err)
	for _, block := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		blocks = append(blocks, block[1])
	}
	require.NotEmpty(t, blocks, language)
	return blocks
}

// A line of a manifest or unit that has an option.
var optionLine = regexp.MustCompile(`(?m)^ +(?:- )?--([a-z-]+)(?:[= ](\S+))?(?: \\)?$`)

// setOptions sets those that a manifest or unit has.
func setOptions(t *testing.T, options serpent.OptionSet, block string) {
	t.Helper()
	require.NoError(t, options.SetDefaults())
	for _, line := range optionLine.FindAllStringSubmatch(block, -1) {
		o := options.ByFlag(line[1])
		require.NotNil(t, o, "--%s", line[1])
		require.NoError(t, o.Value.Set(cmp.Or(line[2], "true")), "--%s", line[1])
	}
	require.Equal(t, strings.Count(block, " --"), len(optionLine.FindAllString(block, -1)), "lines of options that are not read")
}

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
		setOptions(t, b.allInOneOptions(), block)
		require.NoError(t, b.validateAllInOne(), block)
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

// The program takes the options of the example for compose, and stops in the time that it
// has there.
func TestComposeOptions(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "examples", "compose", "compose.yaml"))
	require.NoError(t, err)
	var compose struct {
		Services map[string]struct {
			Command         []string
			StopGracePeriod time.Duration `yaml:"stop_grace_period"`
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &compose))
	options := func(name string, set serpent.OptionSet) time.Duration {
		s := compose.Services[name]
		setOptions(t, set, "  "+strings.Join(s.Command[1:], "\n  "))
		return s.StopGracePeriod
	}
	c, b := new(config), new(bridgeConfig)
	grace := options("agentstatsd", c.options())
	require.NoError(t, c.validate())
	require.Less(t, c.stopTimeout(), grace)
	grace = options("bridge", b.options())
	require.NoError(t, b.validate())
	require.Less(t, b.stopTimeout()+endpointStop, grace)
}
