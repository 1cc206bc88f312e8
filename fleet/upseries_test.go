package fleet

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// The version of the template is a label if it is asked for, also where coderd
// told none.
func TestUpSeriesTemplateVersion(t *testing.T) {
	w := agent.Workspace{Name: "ws", OwnerUsername: "ann", Template: agent.Template{Name: "go", Version: "v1"}}
	label := func(name, value string) agent.Label { return agent.Label{Name: name, Value: value} }
	plain := []agent.Label{label("template_name", "go"), label("username", "ann"), label("workspace_name", "ws")}
	require.Equal(t, []agent.Series{{Family: familyUp, Labels: plain, Value: 2}}, upSeries(&w, 2, false))
	for version, want := range map[string]string{"v1": "v1", "": "unknown"} {
		w.Template.Version = version
		labels := []agent.Label{plain[0], label("template_version", want), plain[1], plain[2]}
		require.Equal(t, []agent.Series{{Family: familyUp, Labels: labels, Value: 2}}, upSeries(&w, 2, true))
	}
}
