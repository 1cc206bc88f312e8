package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestStopIsBelowTheGracePeriod holds the sum of the stages' timeouts below the
// time after which Kubernetes kills the process.
func TestStopIsBelowTheGracePeriod(t *testing.T) {
	c, err := parse(t, "", nil)
	require.NoError(t, err)
	var b bridgeConfig
	options := b.options()
	require.NoError(t, options.SetDefaults())
	for file, stop := range map[string]time.Duration{"single.yaml": c.stopTimeout(), "replicated.yaml": c.stopTimeout(), "bridge.yaml": b.stopTimeout()} {
		manifest, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", file))
		require.NoError(t, err)
		found := regexp.MustCompile(`terminationGracePeriodSeconds: (\d+)`).FindSubmatch(manifest)
		require.NotNil(t, found, file)
		grace, err := strconv.Atoi(string(found[1]))
		require.NoError(t, err)
		require.Less(t, stop, time.Duration(grace)*time.Second, file)
	}
}

// TestStopIsBelowTheUnitsTimeouts holds the same below the time after which systemd does.
func TestStopIsBelowTheUnitsTimeouts(t *testing.T) {
	serve, err := parse(t, "", nil)
	require.NoError(t, err)
	bridge := new(bridgeConfig)
	options := bridge.options()
	require.NoError(t, options.SetDefaults())
	for unit, stop := range map[string]time.Duration{"agentstatsd": serve.stopTimeout(), "agentstatsd-bridge": bridge.stopTimeout() + endpointStop} {
		text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "packages", "systemd", unit+".service"))
		require.NoError(t, err)
		found := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindSubmatch(text)
		require.NotNil(t, found)
		limit, err := strconv.Atoi(string(found[1]))
		require.NoError(t, err)
		require.Less(t, stop, time.Duration(limit)*time.Second, unit)
		require.Contains(t, string(text), strconv.Itoa(int(stop.Seconds()))+" s", "%s says how long it takes", unit)
	}
}
