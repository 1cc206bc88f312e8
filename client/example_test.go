package client_test

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// What a coderd or an agent has by itself.
var (
	ctx                    = context.Background()
	logger                 = slog.Default()
	agentID, appID         uuid.UUID
	registrations          []*agentstatsv1.AgentRegistration
	sinceLastCall          func(context.Context) *agentstatsv1.Stats
	statsFromAgent         *agentstatsv1.Stats
	agentsURL              = "agentstatsd://stats:2113?token_file=/run/agent-token&balancer=pick_first"
	coderdURL              = "agentstatsd://stats:2113?token_file=/etc/coder/token"
	workspacesWithoutAgent []*agentstatsv1.Workspace
)

// An agent sends its stats each report interval, and what changes as it changes.
func ExampleAgent() {
	conn, err := client.DialURL(agentsURL)
	if err != nil {
		logger.Error("agentstatsd", "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	agent, err := client.NewAgent(conn, client.AgentOptions{Collect: sinceLastCall, Logger: logger})
	if err != nil {
		logger.Error("agentstatsd", "error", err)
		return
	}
	go func() { _ = agent.Run(ctx) }()

	// Any of these may be called at any time, connected or not.
	agent.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
	if err := agent.SetAppHealth(appID, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY); err != nil {
		logger.Warn("app health", "error", err)
	}
	if err := agent.UpdateMetadata(client.Metadata{Key: "cpu_usage", Value: "12%"}); err != nil {
		logger.Warn("metadata", "error", err)
	}

	// At the end the agent says goodbye, and its series are gone.
	ending, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := agent.Close(ending); err != nil {
		logger.Warn("agentstatsd", "error", err)
	}
}

// coderd registers agents, relays for one that cannot dial the service itself,
// and watches what they say.
func ExampleCoderd() {
	conn, err := client.DialURL(coderdURL)
	if err != nil {
		logger.Error("agentstatsd", "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{Logger: logger})
	if err != nil {
		logger.Error("agentstatsd", "error", err)
		return
	}

	// Whenever workspaces are built; and all of them from time to time, by Sync.
	if _, err := coderd.Register(ctx, registrations, workspacesWithoutAgent); err != nil {
		logger.Warn("register agents", "error", err)
	}

	// One for each coderd. At its end, Close sends what is pending.
	relays, err := coderd.Relays(client.RelaysOptions{Logger: logger})
	if err != nil {
		logger.Error("agentstatsd", "error", err)
		return
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = relays.Close(ending)
	}()

	// What the agent says on its connection to coderd goes on to the service.
	relayed, err := relays.Connect(agentID, "agent")
	if err != nil {
		logger.Warn("relay", "error", err) // coderd serves the agent all the same
	}
	defer relayed.Disconnect()
	relayed.Report(statsFromAgent)

	// The watch survives restarts of the service.
	err = coderd.WatchMetadata(ctx, []uuid.UUID{agentID}, func(r *agentstatsv1.WatchMetadataResponse) {
		for _, agent := range r.GetAgents() {
			for _, v := range agent.GetValues() {
				fmt.Println(v.GetKey(), v.GetValue())
			}
		}
	})
	if err != nil {
		logger.Warn("watch metadata", "error", err)
	}
}

// A coderd pushes all its families, which Prometheus then sees at the service.
func ExamplePushGatherer() {
	conn, err := client.DialURL(coderdURL)
	if err != nil {
		logger.Error("agentstatsd", "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	// coderd has a registry of its own, which its endpoint serves.
	registry := prometheus.NewRegistry()
	// It returns once ctx has ended and the last snapshot is sent.
	if err := client.PushGatherer(ctx, conn, registry, client.PushOptions{Logger: logger}); err != nil {
		logger.Error("push metrics", "error", err)
	}
}
