package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/simulate"
)

// Copies are made while a fleet reports, and one is restored after a kill: all that was
// acked as durable before a copy began is in it. The fleet goes on with it, and sends
// again what changes.
func TestBackup(t *testing.T) {
	beside(t)
	s := newService(t, "--report-interval", "1s", "--ack-delay", "50ms", "--metadata-flush-interval", "500ms")
	s.start(t)
	dir := t.TempDir()
	journalFile := filepath.Join(dir, "journal")
	require.NoError(t, os.WriteFile(journalFile, nil, 0o600))
	sim := startSimulation(t, s, "--agents", "60", "--metrics-per-agent", "10", "--metadata-keys", "10",
		"--metadata-interval", "500ms", "--journal", journalFile, "--keep")
	var copied string
	var acked values
	for _, name := range []string{"one", "two", "three"} {
		before := len(acked)
		for len(acked) == before && before < 600 {
			time.Sleep(20 * time.Millisecond)
			acked = journal(t, journalFile)
		}
		copied = filepath.Join(dir, name)
		run(t, binary, "backup", copied, "--data-dir", s.dataDir)
		requireDurable(t, acked, stored(t, copied))
	}
	s.kill()
	run(t, binary, "restore", copied, "--data-dir", s.dataDir)
	requireDurable(t, acked, stored(t, s.database()))
	s.start(t)
	for before := journal(t, journalFile); !allAbove(before, journal(t, journalFile)); {
		time.Sleep(100 * time.Millisecond)
	}
	require.NoError(t, sim.stop())
	var summary simulate.Summary
	require.NoError(t, json.Unmarshal(sim.stdout.Bytes(), &summary))
	require.Zero(t, summary.Errors)
	require.Equal(t, summary.MetadataSent, summary.MetadataAcked)
	_, err := s.stop(syscall.SIGTERM)
	require.NoError(t, err)
	require.Equal(t, journal(t, journalFile), stored(t, s.database()))
}

// allAbove reports whether each key has a newer value now.
func allAbove(before, now values) bool {
	for k, n := range before {
		if now[k] <= n {
			return false
		}
	}
	return true
}

// run runs a program to its end, and returns what it printed.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}
