package coderdapi_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// What is refused of a coderd is a line when it changes, at most one a minute.
func TestRefusedFamiliesAreLogged(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		p := openPush(s, pushHello(1, "coderd-0"))
		snapshot := int64(0)
		push := func(refused ...agent.PushRefusal) {
			s.Pushes.Refuse = refused
			snapshot++
			p.end(&pb.PushEnd{Snapshot: snapshot})
			p.answer()
			time.Sleep(15 * time.Second)
		}
		lines := func(text string) int { return strings.Count(s.Log.String(), text) }
		push()
		require.Zero(t, lines("of a coderd are"))
		series := agent.PushRefusal{Name: "coderd_x", Reason: "too_many_series", Message: "series: want at most 3, got 5"}
		for range 20 {
			push(agent.PushRefusal{Name: "go_goroutines", Reason: "owned_by_service"}, series, agent.PushRefusal{Name: "x", Reason: "name_collision"}, series)
		}
		require.Equal(t, 1, lines(`level=WARN msg="families of a coderd are refused" replica=coderd-0 families=3 reasons="name_collision: 1, too_many_series: 2" first=coderd_x problem="series: want at most 3, got 5"`), s.Log.String())
		for range 20 { // by turns
			push(series)
			push()
		}
		require.LessOrEqual(t, lines("of a coderd are"), 1+20*30/60+1)
		for range 10 {
			push()
		}
		require.GreaterOrEqual(t, lines(`level=INFO msg="all families of a coderd are taken in again" replica=coderd-0`), 1, s.Log.String())
		require.True(t, strings.HasSuffix(s.Log.String(), "taken in again\" replica=coderd-0\n"))
	})
}
