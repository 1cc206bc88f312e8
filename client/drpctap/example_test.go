package drpctap_test

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"storj.io/drpc"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcserver"

	"github.com/coder/agentstatsd/client/drpctap"
)

// What a coderd has by itself.
var (
	ctx                  = context.Background()
	logger               = slog.Default()
	registry             = prometheus.NewRegistry()
	agentID, workspaceID uuid.UUID
	createdAt            time.Time
	// registerAgent is what dRPC generates to register coderd's handlers.
	registerAgent = func(drpc.Mux) error { return nil }
)

// A coderd pushes its registry, and relays what its handlers accept of one agent. The
// module examples/coderd has all of it.
func ExampleOpen() {
	tap, err := drpctap.Open("agentstatsd://stats:2113?token_file=/etc/coder/token", drpctap.OpenOptions{Gatherer: registry, Logger: logger})
	if err != nil {
		logger.Error("agentstatsd", "error", err)
		return
	}
	defer func() { _ = tap.Close() }()

	// For each connection of an agent, whose end is that of ctx.
	mux := tap.Mux(ctx, drpcmux.New(), drpctap.Connection{
		AgentID: agentID, Role: "agent", AgentName: "main", CreatedAt: createdAt,
		WorkspaceID: workspaceID, WorkspaceName: "dev", OwnerName: "alice", TemplateName: "docker",
	})
	if err := registerAgent(mux); err != nil {
		logger.Error("agent API", "error", err)
		return
	}
	_ = drpcserver.New(mux) // which serves the connection
}
