package integration

import (
	"context"
	"database/sql"
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

	"github.com/coder/agentstatsd/internal/freeport"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// The commands of docs/scaling.md start replicas, and a simulation that says that each agent
// is served once.
func TestDocumentedReplicas(t *testing.T) {
	beside(t)
	postgres := postgrestest.Shared(t)
	dir := t.TempDir()
	var one, two string
	for _, block := range blocks(t, "scaling.md", "sh") {
		switch {
		case strings.Contains(block, "--data-dir two"):
			two = block
		case strings.Contains(block, "--pubsub-url"):
			one = block
		}
	}

	// One line starts each replica.
	writeCertificate(t, dir)
	token := filepath.Join(dir, "coderd-token")
	require.NoError(t, os.WriteFile(token, []byte(uuid.NewString()), 0o600))
	s := newService(t)
	s.args = strings.Fields(replaced(t, strings.ReplaceAll(strings.TrimPrefix(one, "agentstatsd serve "), "\\\n", ""),
		"postgres://agentstatsd@db/agentstatsd", postgres.CreateDatabase(t), "nats://nats:4222", startNATS(t), "/etc/agentstatsd/token", token,
		" :2113", " "+s.grpcAddr, "--tls-cert-file ...", "--tls-cert-file "+filepath.Join(dir, "tls.crt"), "--tls-key-file ...", "--tls-key-file "+filepath.Join(dir, "tls.key")))
	s.start(t)
	_, err := s.stop(syscall.SIGTERM)
	require.NoError(t, err)

	// A block shows two of them on one machine. All that it starts ends with it.
	http, grpc := freeport.Addr(), freeport.Addr()
	second, secondGRPC := freeport.Addr(), freeport.Addr()
	script := replaced(t, two, "postgres://agentstatsd@localhost/agentstatsd", postgres.CreateDatabase(t), " &\n", " & started=\"$started $!\"\n",
		"127.0.0.1:2114", second, "127.0.0.1:2115", secondGRPC, "localhost:2112", http, "localhost:2113", grpc, "localhost:2114", second, "localhost:2115", secondGRPC,
		"--churn 20s --duration 1m", "--churn 3s --duration 4s --check-interval 500ms")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script+"\nstatus=$?\nkill $started\nwait\nexit $status")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"), "CODER_PROMETHEUS_ADDRESS="+http, "AGENTSTATSD_GRPC_ADDRESS="+grpc,
		"AGENTSTATSD_METADATA_FLUSH_INTERVAL=100ms", "AGENTSTATSD_DRAIN_TIMEOUT=1s")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Regexp(t, `\nserved twice +0,`, string(out))
	require.Regexp(t, `\nchecks +[0-9]+, of [1-9][0-9]* agents in sum\n`, string(out))
}

// Statements of SQL, and settings of a role, within a text.
var (
	inlineSQL     = regexp.MustCompile("`((?:CREATE|ALTER|SELECT|GRANT|SET) [^`]+)`")
	inlineSetting = regexp.MustCompile("`([a-z_]+ = [^` ]+)`")
)

// PostgreSQL takes the statements of the documents, and the settings of their role.
func TestDocumentedSQL(t *testing.T) {
	beside(t)
	db, err := sql.Open("pgx", postgrestest.Shared(t).CreateDatabase(t))
	require.NoError(t, err)
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil) // roles are of all databases
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback()) }()
	_, err = tx.ExecContext(t.Context(), "CREATE ROLE agentstatsd")
	require.NoError(t, err)
	pages, err := filepath.Glob("../docs/*.md")
	require.NoError(t, err)
	var run int
	for _, page := range append(pages, "../README.md", "../SECURITY.md", "../CONTRIBUTING.md", "../deploy/kubernetes/README.md") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		var statements []string
		for _, m := range inlineSQL.FindAllStringSubmatch(string(text), -1) {
			statements = append(statements, m[1])
		}
		for _, m := range inlineSetting.FindAllStringSubmatch(string(text), -1) {
			statements = append(statements, "ALTER ROLE agentstatsd SET "+m[1])
		}
		for _, statement := range statements {
			run++
			_, err := tx.ExecContext(t.Context(), statement)
			require.NoError(t, err, "%s: %s", page, statement)
		}
	}
	require.GreaterOrEqual(t, run, 5)
}

// replaced returns a text with what a test has in place of what a document has: all of it
// is there.
func replaced(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		require.Contains(t, text, pairs[i])
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}
