package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

// The commands of docs/operations.md copy a PostgreSQL database while a fleet reports, and
// restore it into an empty one: what was acked as durable before is there, and the service
// goes on with it.
func TestPostgresBackup(t *testing.T) {
	beside(t)
	text, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	command := func(program string) string {
		found := regexp.MustCompile("(?m)(?:^|`)(" + program + " [^`\n]*)").FindSubmatch(text)
		require.NotNil(t, found, program)
		return string(found[1])
	}
	postgres := postgrestest.Shared(t)
	from, to := postgres.CreateDatabase(t), postgres.CreateDatabase(t)
	dir := t.TempDir()
	token, journalFile := filepath.Join(dir, "token"), filepath.Join(dir, "journal")
	require.NoError(t, os.WriteFile(token, []byte(uuid.NewString()), 0o600))
	require.NoError(t, os.WriteFile(journalFile, nil, 0o600))
	s := newService(t, "--database-url", from, "--coderd-token-file", token, "--metadata-flush-interval", "500ms")
	s.start(t)
	sim := runSimulation(t, "--target", s.grpcAddr, "--coderd-token-file", token, "--json", "--agents", "20", "--metadata-keys", "5",
		"--metadata-interval", "500ms", "--journal", journalFile, "--keep")
	var acked values
	for len(acked) < 50 {
		time.Sleep(20 * time.Millisecond)
		acked = journal(t, journalFile)
	}
	shell := func(line, url string) {
		path, err := filepath.Glob("/usr/lib/postgresql/*/bin")
		require.NoError(t, err)
		cmd := exec.Command("sh", "-c", line)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "AGENTSTATSD_DATABASE_URL="+url, "PATH="+strings.Join(append(path, os.Getenv("PATH")), ":"))
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	shell(command("pg_dump"), from)
	require.NoError(t, sim.stop())
	_, err = s.stop(syscall.SIGTERM)
	require.NoError(t, err)

	shell(command("pg_restore"), to)
	requireDurable(t, acked, (&replicas{url: to}).stored(t))
	s.args[1] = to
	s.start(t)
	require.Contains(t, s.log.tail(64<<10), "database is a copy: it belongs to a new deployment")
	_, err = s.stop(syscall.SIGTERM)
	require.NoError(t, err)
}
