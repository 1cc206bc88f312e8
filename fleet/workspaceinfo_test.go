package fleet

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// The template's version of a workspace is that of its newest build, for as long as the
// workspace is registered. A workspace has one, however many agents it has.
func TestWorkspaceInfo(t *testing.T) {
	built := func(id, build int, version string) agent.Registration {
		r := registration(id, 1, build)
		r.Workspace.Organization, r.Workspace.Template.Version = "research", version
		return r
	}
	for _, on := range []bool{false, true} {
		p := loaded(t, Options{WorkspaceInfo: on}, built(1, 1, "v1"))
		expect := func(versions ...string) {
			t.Helper()
			var want, got []string
			for _, version := range versions {
				if on {
					want = append(want, "agentstatsd_workspace_info{organization_name=research,template_name=docker,template_version="+version+",username=ada,workspace_name=ws1} 1")
				}
			}
			for _, line := range p.states.all() {
				if strings.HasPrefix(line, "agentstatsd_") {
					got = append(got, line)
				}
			}
			require.Equal(t, want, got)
		}
		expect("v1")
		connect(t, p, 1)
		expect("v1")
		_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{built(2, 2, "v2")}})
		require.NoError(t, err)
		expect("v2")
		_, err = p.Deregister(t.Context(), ids(2), nil)
		require.NoError(t, err)
		expect("v2")
		_, err = p.Deregister(t.Context(), nil, ids(1001))
		require.NoError(t, err)
		expect()
	}
}
