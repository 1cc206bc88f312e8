//go:build soak

package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Replicas of the program before the newest migration and of today's run beside one
// another over one database, agents move between them, and each is upgraded and taken back
// while the fleet reports. No value that was acked is lost, and no agent is served twice. It
// needs the history of the repository, so it has a build tag.
func TestUpgrade(t *testing.T) {
	names, err := filepath.Glob("../store/internal/schema/migrations/sqlite/*.sql")
	require.NoError(t, err)
	newest := filepath.Base(names[len(names)-1])
	previous := strings.TrimLeft(filepath.Base(names[len(names)-2])[:5], "0")
	old := buildBefore(t, newest)

	size := sizeOf(t)
	r := startReplicas(t, 2, false, "--report-interval", size.reportInterval.String())
	restart := func(i int, program string) {
		_, err := r.services[i].stop(syscall.SIGTERM)
		require.NoError(t, err)
		r.services[i].program = program
		r.services[i].start(t)
		time.Sleep(size.step)
	}
	migrate := func(version string) {
		run(t, binary, "migrate", "--to", version, "--database-url", r.url, "--lease-duration", lease.String())
	}
	for _, s := range r.services {
		_, err := s.stop(syscall.SIGTERM)
		require.NoError(t, err)
		s.program = old
	}
	migrate(previous)
	for _, s := range r.services {
		s.start(t)
	}
	journalFile := filepath.Join(t.TempDir(), "journal")
	sim := r.simulate(t, size.args(journalFile)...)
	time.Sleep(size.step)
	restart(0, binary) // it migrates under the other one
	restart(1, binary)
	// Back: an older program does not start on the newer schema.
	for _, s := range r.services {
		_, err := s.stop(syscall.SIGTERM)
		require.NoError(t, err)
		s.program = old
	}
	acked := journal(t, journalFile)
	migrate(previous)
	requireDurable(t, acked, r.stored(t))
	for _, s := range r.services {
		s.start(t)
	}
	time.Sleep(size.step)
	ended(t, sim)
	require.Equal(t, journal(t, journalFile), r.stored(t))
}

// buildBefore builds the program of the commit before the one that added a migration.
func buildBefore(t *testing.T, migration string) string {
	t.Helper()
	git := func(args ...string) []byte {
		cmd := exec.Command("git", args...)
		cmd.Dir = ".."
		out, err := cmd.Output()
		require.NoError(t, err, "the repository's history is needed")
		return out
	}
	// It may have come with another number at first.
	commits := strings.Fields(string(git("log", "--format=%H", "--diff-filter=A", "--", "*/[0-9]*"+migration[5:])))
	require.NotEmpty(t, commits)
	archive := git("archive", commits[len(commits)-1]+"~1")
	dir := t.TempDir()
	unpack := exec.Command("tar", "-x", "-C", dir)
	unpack.Stdin = bytes.NewReader(archive)
	require.NoError(t, unpack.Run())
	program := filepath.Join(dir, "agentstatsd-before")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "./cmd/agentstatsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
	build.Dir, build.Stderr = dir, os.Stderr
	require.NoError(t, build.Run())
	return program
}
