package bridge_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bridge"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/edgetest"
)

// unregistered is a rig whose agents nobody but the bridge registers.
type unregistered struct {
	*rig
	rest          *codertest.REST
	service       *client.Coderd
	registrations *bridge.Registrations
	run           func()
}

// startUnregistered starts a bridge with both legs. Registrations run once run is called.
func startUnregistered(t *testing.T) *unregistered {
	u := &unregistered{rest: codertest.NewREST()}
	var registrations atomic.Pointer[bridge.Registrations]
	u.rig = start(t, bridge.Options{
		Connected: func(agentID, workspaceID uuid.UUID) { registrations.Load().Connected(agentID, workspaceID) },
		Backoff:   client.Backoff{Min: 100 * time.Millisecond, Max: 100 * time.Millisecond},
		Unknown:   func(agentID, workspaceID uuid.UUID) { registrations.Load().Unknown(agentID, workspaceID) },
	})
	u.rest.SetToken(apiToken, codertest.Token{})
	api := httptest.NewServer(u.rest)
	t.Cleanup(api.Close)
	conn, err := client.Dial(u.rig.service.Addr, client.DialOptions{Plaintext: true, Token: edgetest.CoderdToken})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	u.service, err = client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	r, err := bridge.NewRegistrations(conn, bridge.RegistrationsOptions{
		CoderURL: api.URL, TokenFile: codertest.TokenFile(t, apiToken), MaxRequestsPerSecond: 1000,
	}, prometheus.NewPedanticRegistry(), slog.New(slog.NewTextHandler(u.log, nil)))
	require.NoError(t, err)
	registrations.Store(r)
	u.registrations = r
	u.run = func() {
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { require.NoError(t, r.Run(ctx)) })
		t.Cleanup(func() {
			cancel()
			running.Wait()
		})
	}
	return u
}

// connect has coderd know agent n, and the agent connect.
func (u *unregistered) connect(n int) *codertest.Session {
	u.rest.Put(restOf(n))
	u.coderd.Add(codertest.Agent{ID: edgetest.ID(n), Token: edgetest.Token(n), Manifest: codertest.Manifest{
		AgentID: edgetest.ID(n), WorkspaceID: edgetest.ID(10_000 + n), AgentName: "main", OwnerUsername: "ada",
	}.Encode()})
	s := u.dial(n, codertest.DialOptions{})
	_, err := s.Call(u.Context(), codertest.GetManifest, nil)
	require.NoError(u, err)
	return s
}

func up(workspace string) string {
	return fmt.Sprintf(`coderd_agents_up{template_name="docker",username="ada",workspace_name=%q} 1`, workspace)
}

// An agent that no sync has seen is looked up by one call when it connects. So is one that
// the service has forgotten since, though it is known here, and only while it is connected.
func TestUnknownAgentIsLookedUp(t *testing.T) {
	u := startUnregistered(t)
	u.run()
	u.until("sync", func() bool { return u.rest.Requests("list") == 1 && len(u.registrations.Warnings()) == 0 })
	s := u.connect(1)
	u.await(up("ws1"))
	require.Equal(t, 1, u.rest.Requests("workspace"))

	for reads := 2; reads < 4; reads++ {
		_, err := u.service.Deregister(t.Context(), []uuid.UUID{edgetest.ID(1)}, nil)
		require.NoError(t, err)
		u.until("it is looked up again", func() bool { return u.rest.Requests("workspace") == reads })
		u.await(up("ws1"))
	}
	require.NoError(t, s.Close())
	require.Equal(t, 1, u.rest.Requests("list"))
	require.Equal(t, 3, u.rest.Requests("workspace"))
}

// Many agents that connect to a bridge that has just begun are one list.
func TestManyUnknownAgentsAreOneList(t *testing.T) {
	const agents = 25
	u := startUnregistered(t)
	listed, list := make(chan struct{}), make(chan struct{})
	var once sync.Once
	u.rest.OnRequest = func(*http.Request) *codertest.Answer {
		once.Do(func() { close(listed) })
		<-list
		return nil
	}
	u.run()
	<-listed
	for n := range agents {
		u.connect(n + 1)
	}
	close(list)
	for n := range agents {
		u.await(up(fmt.Sprintf("ws%d", n+1)))
	}
	require.Equal(t, 1, u.rest.Requests("list"))
	require.Zero(t, u.rest.Requests("workspace"))
}
