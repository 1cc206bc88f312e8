package bridge_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// look has the workspace of agent n read again, as a sync does.
func (u *unregistered) look(n int) {
	before := u.rest.Requests("workspace")
	u.until("coderd is asked again", func() bool {
		u.registrations.Unknown(edgetest.ID(n), edgetest.ID(10_000+n))
		return u.rest.Requests("workspace") > before
	})
}

// change changes agent n in coderd, as what it says does.
func (u *unregistered) change(n int, change func(*codertest.WorkspaceAgent)) {
	u.rest.Change(edgetest.ID(10_000+n), func(w *codertest.Workspace) { change(&w.Build.Agents[0]) })
}

// awaitLifecycle waits until agent n is served connected with a lifecycle.
func (u *unregistered) awaitLifecycle(n int, state string) {
	u.Helper()
	u.await(fmt.Sprintf(`coderd_agents_connections{agent_name="main",lifecycle_state=%q,status="connected",tailnet_node="unknown",username="ada",workspace_name="ws%d"} 1`, state, n))
}

// Agents do not repeat their lifecycle. What they said while no bridge listened comes from
// REST, also to a service that begins anew. What they say to a bridge counts more than what
// coderd showed before.
func TestLifecycleAfterRestarts(t *testing.T) {
	u := startUnregistered(t)
	u.run()
	s := u.connect(1)
	u.call(s, codertest.UpdateLifecycle, 1, &pb.Lifecycle{State: pb.Lifecycle_STATE_STARTING})
	u.awaitLifecycle(1, "starting")

	// The connection breaks with the bridge, and with it what the agent says then.
	require.NoError(t, u.stop())
	u.change(1, func(a *codertest.WorkspaceAgent) { a.Status, a.Lifecycle, a.ReadyAt = "connected", "ready", time.Now() })
	u.begin(u.opts)
	s = u.dial(1, codertest.DialOptions{})
	u.call(s, codertest.GetManifest, 1)
	u.awaitLifecycle(1, "starting")
	u.look(1)
	u.awaitLifecycle(1, "ready")

	// Its next connection repeats nothing.
	require.NoError(t, s.Close())
	s = u.dial(1, codertest.DialOptions{})
	u.call(s, codertest.GetManifest, 1)
	u.awaitLifecycle(1, "ready")
	u.call(s, codertest.UpdateLifecycle, 1, &pb.Lifecycle{State: pb.Lifecycle_STATE_SHUTTING_DOWN})
	u.awaitLifecycle(1, "shutting_down")
	u.look(1) // which is older
	u.call(s, codertest.UpdateStats, 1, &pb.Stats{RxBytes: 5})
	u.await(`coderd_agentstats_rx_bytes{agent_name="main",username="ada",workspace_name="ws1"} 5`)
	u.awaitLifecycle(1, "shutting_down")

	// To a service that knows nothing, an agent says nothing of it either.
	u.rest.Put(restOf(2))
	u.change(2, func(a *codertest.WorkspaceAgent) { a.Status, a.Lifecycle = "connected", "starting" })
	u.coderd.Add(codertest.Agent{ID: edgetest.ID(2), Token: edgetest.Token(2), Manifest: codertest.Manifest{
		AgentID: edgetest.ID(2), WorkspaceID: edgetest.ID(10_002), AgentName: "main", OwnerUsername: "ada",
		Apps: []codertest.ManifestApp{{ID: edgetest.ID(50_002), Slug: "code", Health: int(pb.AppHealth_APP_HEALTH_UNHEALTHY)}},
	}.Encode()})
	u.call(u.dial(2, codertest.DialOptions{}), codertest.GetManifest, 1)
	u.awaitLifecycle(2, "starting")
	u.await(`coderd_agents_apps{agent_name="main",app_name="code",health="unhealthy",username="ada",workspace_name="ws2"} 1`)
	u.change(2, func(a *codertest.WorkspaceAgent) { a.Lifecycle, a.ReadyAt = "ready", time.Now() })
	u.look(2)
	u.awaitLifecycle(2, "ready")
}
