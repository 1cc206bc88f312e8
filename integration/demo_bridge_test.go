package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/freeport"
)

// TestDemoBridge runs what `make demo-bridge` does: a stand-in for a stock coderd, all-in-one
// beside it, and agents that speak Coder's own protocol through the bridge. All documented
// families are served, and all of it ends when it is interrupted.
func TestDemoBridge(t *testing.T) {
	beside(t)
	s, dir := startDemoBridge(t)
	awaitFamilies(t, s, documentedFamilies(t), time.Minute, func(f *dto.MetricFamily) bool { return len(f.GetMetric()) > 0 })
	require.Eventually(t, func() bool { return s.total(t, "coderd_agents_up") == 24 }, time.Minute, 50*time.Millisecond)
	tokens, err := os.ReadFile(filepath.Join(dir, "agent-tokens"))
	require.NoError(t, err)
	require.Len(t, strings.Fields(string(tokens)), 24)
	_, err = s.stop(syscall.SIGTERM)
	require.NoError(t, err)
}

// startDemoBridge starts what `make demo-bridge` does, and waits until the service is ready. dir
// has the files of the stand-in.
func startDemoBridge(t *testing.T) (s *service, dir string) {
	t.Helper()
	dir = t.TempDir()
	stand := filepath.Join(dir, "stockcoderd")
	build := exec.Command("go", "build", "-o", stand, "./internal/codertest/stockcoderd")
	build.Dir = ".."
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	s = &service{httpAddr: freeport.Addr(), log: new(lockedBuffer), exited: make(chan error, 1)}
	s.cmd = exec.Command(stand, "--dir", dir, "--listen", freeport.Addr(), "--metrics", freeport.Addr(), "--bridge", freeport.Addr(),
		"--report-interval", "1s", "--round", "1s", binary, "--prometheus-address", s.httpAddr, "--grpc-address", freeport.Addr(), "--scrape-interval", "1s")
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	require.NoError(t, s.cmd.Start())
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(s.cmd, s.exited)
	t.Cleanup(func() {
		if s.cmd != nil {
			_, _ = s.stop(syscall.SIGTERM)
		}
		if t.Failed() {
			t.Logf("%s", s.log.tail(8<<10))
		}
	})
	s.waitReady(t)
	return s, dir
}

// The program has nothing of what is for tests.
func TestProgramLinksNoTests(t *testing.T) {
	parallel(t)
	list := exec.Command("go", "list", "-deps", "./cmd/agentstatsd")
	list.Dir = ".."
	out, err := list.Output()
	require.NoError(t, err)
	packages := strings.Fields(string(out))
	require.Contains(t, packages, "github.com/coder/agentstatsd/simulate/coderagent")
	for _, name := range packages {
		require.NotRegexp(t, `agentstatsd/internal/[a-z]*test(/|$)|testify`, name)
	}
}
