package coderd

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	after "github.com/coder/agentstatsd/examples/coderd/after"
	"github.com/coder/agentstatsd/examples/coderd/agentproto"
	"github.com/coder/agentstatsd/examples/coderd/agents"
)

// The environment of a process of the tests' binary that is a coderd: the service's URL,
// and the ids of the agent and its workspace.
const (
	processEnv   = "EXAMPLE_CODERD_STATS_URL"
	agentEnv     = "EXAMPLE_CODERD_AGENT"
	workspaceEnv = "EXAMPLE_CODERD_WORKSPACE"
)

// runProcess is a coderd until SIGINT. Its collectors hang, and forward. It prints its
// address.
func runProcess() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(forwarding, collector(func(chan<- prometheus.Metric) { select {} }))
	fmt.Println(listener.Addr())
	err = after.Run(ctx, after.Config{
		Listener: listener, Registry: registry, StatsURL: os.Getenv(processEnv), Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Database: agents.NewDatabase(map[string]*agents.Agent{token: {
			ID: uuid.MustParse(os.Getenv(agentEnv)), Name: "main", CreatedAt: time.Now().Add(-time.Minute),
			WorkspaceID: uuid.MustParse(os.Getenv(workspaceEnv)), WorkspaceName: "dev", OwnerName: "alice", TemplateName: "docker",
		}}),
	})
	if err != nil {
		panic(err)
	}
}

// A process of a coderd ends within 5 s of SIGINT, while its collectors hang, with the
// service and without. What it accepted until then is not lost if the service is there.
func TestProcessEndsInTime(t *testing.T) {
	for name, isRunning := range map[string]bool{"service": true, "no service": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startService(t)
			if !isRunning {
				s.stop()
			}
			agentID := uuid.New()
			process := exec.Command(os.Args[0])
			process.Env = append(os.Environ(), processEnv+"="+s.url(), agentEnv+"="+agentID.String(), workspaceEnv+"="+uuid.NewString())
			var log lockedBuffer
			process.Stderr = &log
			out, err := process.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, process.Start())
			t.Cleanup(func() {
				_ = process.Process.Kill()
				_ = process.Wait()
				if t.Failed() {
					t.Logf("log of coderd:\n%s", log.String())
				}
			})
			address, err := bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			a := connect(t, &coderd{addr: strings.TrimSpace(address)}, token, "")
			require.NoError(t, a.updateLifecycle(agentproto.Lifecycle_STARTING))
			if isRunning {
				await(t, "the agent is relayed", func() bool { return s.isServed(t, "coderd_agents_connections", `lifecycle_state="starting"`) })
			}
			require.NoError(t, a.updateMetadata("cpu", "1"))
			require.NoError(t, a.updateStats(&agentproto.Stats{Metrics: []*agentproto.Stats_Metric{
				{Name: "work_total", Type: agentproto.Stats_Metric_COUNTER, Value: 7},
			}}))
			require.NoError(t, a.updateLifecycle(agentproto.Lifecycle_READY))
			began := time.Now()
			require.NoError(t, process.Process.Signal(syscall.SIGINT))
			require.NoError(t, process.Wait())
			require.Less(t, time.Since(began), 5*time.Second)
			if !isRunning {
				return
			}
			require.True(t, s.isServed(t, "work_total", " 7"))
			require.True(t, s.isServed(t, "coderd_agents_connections", `lifecycle_state="ready"`))
			await(t, "metadata is stored", func() bool { return s.metadata(t, agentID, "cpu") == "1" })
		})
	}
}
