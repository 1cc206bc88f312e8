package refusallog

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestRefusalsAreALineAMinute(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	l, now := new(Log), time.Now()
	refuse := func(agent int, reason string) {
		l.Refused(t.Context(), log.With("agent", agent), now, &agentstatsv1.Refusal{
			Reason: reason, Message: "want fewer", Names: []string{"a", "b"}, Count: 3,
		})
	}
	for second := range 150 {
		for agent := range 100 {
			refuse(agent, "too_many_agent_series")
		}
		refuse(7, "invalid_name")
		require.Equal(t, 2*(second/60+1), strings.Count(out.String(), "\n"), "second %d", second)
		now = now.Add(time.Second)
	}
	require.Contains(t, out.String(), `level=WARN msg="the service refuses something of an agent" agent=0 reason=too_many_agent_series count=3 problem="want fewer" names="a, b"`+"\n")
	require.Contains(t, out.String(), fmt.Sprintf("left_out=%d", 3*(60*100-1)))
	for i := range 1000 {
		refuse(i, fmt.Sprint("reason ", i))
	}
	require.LessOrEqual(t, len(l.reasons), maxReasons+1)
	l.Refused(t.Context(), slog.New(slog.DiscardHandler), now, &agentstatsv1.Refusal{})
}
