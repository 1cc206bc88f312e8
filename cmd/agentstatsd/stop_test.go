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
	manifest, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", "deployment.yaml"))
	require.NoError(t, err)
	found := regexp.MustCompile(`terminationGracePeriodSeconds: (\d+)`).FindSubmatch(manifest)
	require.NotNil(t, found)
	grace, err := strconv.Atoi(string(found[1]))
	require.NoError(t, err)
	c, err := parse(t, "", nil)
	require.NoError(t, err)
	require.Less(t, c.stopTimeout(), time.Duration(grace)*time.Second)
}
