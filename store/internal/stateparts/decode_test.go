package stateparts

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// What is stored is decoded as encoding/json does, and a part of a text is refused.
func TestDecode(t *testing.T) {
	text := rapid.String()
	stamp := rapid.Custom(func(t *rapid.T) time.Time { return time.Unix(0, rapid.Int64().Draw(t, "nanos")).UTC() })
	app := rapid.Custom(func(t *rapid.T) App {
		return App{
			ID:   agent.ID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id")),
			Slug: text.Draw(t, "slug"), DisplayName: text.Draw(t, "display name"), Health: agent.AppHealth(text.Draw(t, "health")),
		}
	})
	network := rapid.Custom(func(t *rapid.T) Network {
		region := rapid.Custom(func(t *rapid.T) Region {
			return Region{rapid.Int64().Draw(t, "id"), text.Draw(t, "name"), time.Duration(rapid.Int64().Draw(t, "latency"))}
		})
		return Network{rapid.Uint64().Draw(t, "node"), rapid.Int64().Draw(t, "preferred"), rapid.SliceOf(region).Draw(t, "regions")}
	})
	t.Run("apps", rapid.MakeCheck(func(t *rapid.T) { checkDecode(t, rapid.SliceOf(app).Draw(t, "apps")) }))
	t.Run("keys", rapid.MakeCheck(func(t *rapid.T) { checkDecode(t, rapid.SliceOf(text).Draw(t, "keys")) }))
	t.Run("network", rapid.MakeCheck(func(t *rapid.T) { checkDecode(t, network.Draw(t, "network")) }))
	t.Run("lifecycle", rapid.MakeCheck(func(t *rapid.T) {
		checkDecode(t, Lifecycle{agent.LifecycleState(text.Draw(t, "state")), stamp.Draw(t, "changed at")})
	}))
	t.Run("started", rapid.MakeCheck(func(t *rapid.T) { checkDecode(t, Started{stamp.Draw(t, "started at")}) }))
	t.Run("ready", rapid.MakeCheck(func(t *rapid.T) {
		checkDecode(t, Ready{stamp.Draw(t, "started at"), stamp.Draw(t, "ready at"), agent.LifecycleState(text.Draw(t, "result"))})
	}))
	t.Run("health", rapid.MakeCheck(func(t *rapid.T) { checkDecode(t, agent.AppHealth(text.Draw(t, "health"))) }))
	t.Run("observed", rapid.MakeCheck(func(t *rapid.T) {
		checkDecode(t, observed{
			stamp.Draw(t, "at"), agent.Status(text.Draw(t, "status")),
			Lifecycle{agent.LifecycleState(text.Draw(t, "state")), stamp.Draw(t, "changed at")}, network.Draw(t, "network"),
		})
	}))
}

func checkDecode[T any](t *rapid.T, v T) {
	text, err := json.Marshal(v)
	require.NoError(t, err)
	var want, got T
	require.NoError(t, json.Unmarshal(text, &want))
	require.NoError(t, Decode(text, &got))
	require.Equal(t, want, got)
	part := text[:rapid.IntRange(0, len(text)-1).Draw(t, "length")]
	require.Error(t, Decode(part, new(T)), "%s", part)
}
