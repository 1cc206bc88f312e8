package bridge_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bridge"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const apiToken = "abcdefghij-0123456789abcdefghijkl"

// restOf has agent n in coderd's REST API.
func restOf(n int) *codertest.Workspace {
	return &codertest.Workspace{
		ID: edgetest.ID(10_000 + n), Name: fmt.Sprintf("ws%d", n), Owner: "ada",
		Build: codertest.Build{ID: edgetest.ID(40_000 + n), CreatedAt: edgetest.Day, Transition: "start", Job: "succeeded", Agents: []codertest.WorkspaceAgent{{
			ID: edgetest.ID(n), Name: "main", CreatedAt: edgetest.Day, Status: "connecting", Lifecycle: "starting",
			Apps: []codertest.App{{ID: edgetest.ID(50_000 + n), Slug: "code", Health: "initializing"}},
		}}},
	}
}

// Registrations take other options while they are, all or none.
func TestReconfigureRegistrations(t *testing.T) {
	conn, err := client.Dial("127.0.0.1:1", client.DialOptions{Plaintext: true})
	require.NoError(t, err)
	defer conn.Close()
	opts := bridge.RegistrationsOptions{
		CoderURL: "http://coder.test", TokenFile: codertest.TokenFile(t, apiToken), MaxRequestsPerSecond: 7, SyncInterval: time.Minute,
	}
	r, err := bridge.NewRegistrations(conn, opts, prometheus.NewPedanticRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.Equal(t, opts, r.Options())
	for _, wrong := range []bridge.RegistrationsOptions{
		{MaxRequestsPerSecond: 9, SyncInterval: time.Second}, {MaxRequestsPerSecond: -1, SyncInterval: time.Hour},
	} {
		require.ErrorContains(t, r.Reconfigure(wrong), "bridge options: ")
		require.Equal(t, opts, r.Options())
	}
	opts.MaxRequestsPerSecond, opts.SyncInterval = 9, time.Hour
	require.NoError(t, r.Reconfigure(opts))
	require.Equal(t, opts, r.Options())
}

// An agent of a stock Coder that nobody registered is served once it connects through the
// bridge: its registration comes from REST, the rest from what it says.
func TestAgentIsRegisteredWhenItConnects(t *testing.T) {
	var mu sync.Mutex
	var registrations *bridge.Registrations
	r := start(t, bridge.Options{Connected: func(agentID, workspaceID uuid.UUID) {
		mu.Lock()
		defer mu.Unlock()
		registrations.Connected(agentID, workspaceID)
	}})
	rest := codertest.NewREST()
	rest.SetToken(apiToken, codertest.Token{})
	api := httptest.NewServer(rest)
	defer api.Close()
	conn, err := client.Dial(r.service.Addr, client.DialOptions{Plaintext: true, Token: edgetest.CoderdToken})
	require.NoError(t, err)
	defer conn.Close()
	reg := prometheus.NewPedanticRegistry()
	mu.Lock()
	registrations, err = bridge.NewRegistrations(conn, bridge.RegistrationsOptions{
		CoderURL: api.URL, TokenFile: codertest.TokenFile(t, apiToken), MaxRequestsPerSecond: 1000,
	}, reg, slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	mu.Unlock()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { require.NoError(t, registrations.Run(ctx)) })
	defer running.Wait()
	defer cancel()
	r.until("sync", func() bool { return rest.Requests("list") == 1 && len(registrations.Warnings()) == 0 })

	rest.Put(restOf(1))
	r.coderd.Add(codertest.Agent{ID: edgetest.ID(1), Token: edgetest.Token(1), Manifest: codertest.Manifest{
		AgentID: edgetest.ID(1), WorkspaceID: edgetest.ID(10_001), AgentName: "main", OwnerUsername: "ada", Secret: secret,
		Apps: []codertest.ManifestApp{{ID: edgetest.ID(50_001), Slug: "code", Health: int(pb.AppHealth_APP_HEALTH_HEALTHY)}},
	}.Encode()})
	s := r.dial(1, codertest.DialOptions{})
	_, err = s.Call(t.Context(), codertest.GetManifest, nil)
	require.NoError(t, err)
	const labels = `username="ada",workspace_name="ws1"`
	r.await(`coderd_agents_up{template_name="docker",` + labels + `} 1`)
	r.await(`coderd_agents_connections{agent_name="main",lifecycle_state="starting",status="connected",tailnet_node="unknown",` + labels + `} 1`)
	r.await(`coderd_agents_apps{agent_name="main",app_name="code",health="healthy",` + labels + `} 1`)
	require.Equal(t, 1, rest.Requests("workspace"))
	require.Equal(t, 1, rest.Requests("list"))

	// Without the bridge between, REST says what it is. The service goes on by that.
	require.NoError(t, s.Close())
	r.await(`coderd_agents_connections{agent_name="main",lifecycle_state="starting",status="disconnected",tailnet_node="unknown",` + labels + `} 1`)
	rest.Change(edgetest.ID(10_001), func(w *codertest.Workspace) {
		w.Build.Agents[0].Status, w.Build.Agents[0].Lifecycle, w.Build.Agents[0].ReadyAt = "connected", "ready", edgetest.Day
	})
	r.until("coderd is asked again", func() bool {
		registrations.Unknown(edgetest.ID(1), edgetest.ID(10_001))
		return rest.Requests("workspace") > 1
	})
	r.await(`coderd_agents_connections{agent_name="main",lifecycle_state="ready",status="connected",tailnet_node="unknown",` + labels + `} 1`)

	for _, text := range []string{secret, codertest.Secret, apiToken} {
		require.NotContains(t, r.log.String(), text)
		require.NotContains(t, r.service.Log.String(), text)
	}
}
