package departed_test

import (
	"encoding/binary"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/departed"
	"github.com/coder/agentstatsd/fleet/internal/kept"
)

// The 5,000 that were removed last are known, each once, as it was removed last.
func TestAgents(t *testing.T) {
	agents, err := departed.New()
	require.NoError(t, err)
	began := time.Unix(1000, 0)
	note := func(n int, name string) {
		reg := &agent.Registration{Name: name, Workspace: agent.Workspace{Name: "ws", OwnerUsername: "ada"}}
		binary.BigEndian.PutUint32(reg.ID[:], uint32(n))
		reg.Workspace.ID[0] = 7
		agents.Note(reg, began.Add(time.Duration(n)*time.Second))
	}
	for n := range 6000 {
		note(n, "main")
	}
	note(2000, "again")
	list := agents.List()
	require.Equal(t, 5000, len(list))
	require.Equal(t, began.Add(1000*time.Second), list[0].At)
	last := list[len(list)-1]
	require.Equal(t, agent.Identity{Username: "ada", WorkspaceName: "ws", AgentName: "again"}, last.Identity)
	require.Equal(t, agent.ID{7}, last.WorkspaceID)
	require.Equal(t, began.Add(2000*time.Second), last.At)
}

// What is remembered keeps nothing of a registration in memory: as it is kept, its texts are
// parts of longer ones.
func TestTextsAreCopies(t *testing.T) {
	texts := kept.NewTexts()
	w := agent.Workspace{Name: "ws", OwnerUsername: "ada", Template: agent.Template{Name: "docker", Version: "1"}}
	reg := texts.Registration(&agent.Registration{Name: "main", MetadataKeys: []string{"cpu", "ram"}}, texts.Workspace(&w)).Value(agent.ID{1})
	agents, err := departed.New()
	require.NoError(t, err)
	agents.Note(reg, time.Unix(1, 0))
	is, was := agents.List()[0].Identity, reg.Identity()
	require.Equal(t, was, is)
	for _, text := range [][2]string{
		{was.Username, is.Username}, {was.WorkspaceName, is.WorkspaceName}, {was.AgentName, is.AgentName}, {was.TemplateName, is.TemplateName},
	} {
		require.NotSame(t, unsafe.StringData(text[0]), unsafe.StringData(text[1]), text[0])
	}
}
