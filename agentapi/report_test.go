package agentapi

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestSessionsOf(t *testing.T) {
	many := func(more map[string]int64) map[string]int64 {
		for i := range 100 {
			more[fmt.Sprintf("app%03d", i)] = 1
		}
		return more
	}
	old := func(counts map[string]int64) *agentstatsv1.Stats {
		return &agentstatsv1.Stats{
			SessionCounts:      counts,
			SessionCountVscode: 1, SessionCountJetbrains: 2, SessionCountReconnectingPty: 3, SessionCountSsh: 4,
		}
	}
	older := agent.Sessions{VSCode: 1, JetBrains: 2, ReconnectingPTY: 3, SSH: 4}
	for _, c := range []struct {
		name     string
		stats    *agentstatsv1.Stats
		want     agent.Sessions
		overflow int
	}{
		{"older fields", old(nil), older, 0},
		{"a map without positive entries", old(map[string]int64{"ssh": 0, "vscode": -5}), older, 0},
		{"a positive entry wins", old(map[string]int64{"ssh": 7}), agent.Sessions{SSH: 7}, 0},
		{"families", old(map[string]int64{
			"vscode": 1, "cursor": 2, "windsurf": 4, "VSCodium": 8, "vscode-insiders": 16,
			"jetbrains": 32, "reconnecting_pty": 64, "reconnecting-pty": 1, "ssh": 128, "emacs": 256, "ssh\t": -3,
		}), agent.Sessions{VSCode: 31, JetBrains: 32, ReconnectingPTY: 65, SSH: 128}, 0},
		{"only unknown names", old(map[string]int64{"emacs": 1}), agent.Sessions{}, 0},
		{"the known ones are looked at first", old(many(map[string]int64{"ssh": 1, "zzz": 1, "windsurf": 2})), agent.Sessions{SSH: 1, VSCode: 2}, 39},
		{"no overflow of the sum", old(map[string]int64{"vscode": math.MaxInt64, "cursor": 5}), agent.Sessions{VSCode: math.MaxInt64}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newMessageReport(c.stats)
			defer r.release()
			require.Equal(t, c.want, r.Stats().Sessions)
			require.Equal(t, c.overflow, r.overflow)
			families := make(map[string]int64)
			var all int64
			for app, n := range r.Stats().Apps {
				family := agent.SessionApps[app].Family
				families[family] = saturatingAdd(families[family], n)
				all = saturatingAdd(all, n)
			}
			require.Equal(t, c.want, agent.Sessions{VSCode: families["vscode"], JetBrains: families["jetbrains"], ReconnectingPTY: families["reconnecting_pty"], SSH: families["ssh"]})
			var said int64
			for _, n := range c.stats.GetSessionCounts() {
				said = saturatingAdd(said, max(0, n))
			}
			if said > 0 {
				require.Equal(t, said, all, "no session is left out")
			}
		})
	}
}

func TestReport(t *testing.T) {
	message := &agentstatsv1.Stats{
		RxBytes: 1, TxBytes: 2, ConnectionCount: 3, ConnectionMedianLatencyMs: 4, SessionCountSsh: 5,
		Metrics: []*agentstatsv1.Stats_Metric{
			{Name: "a", Type: agentstatsv1.Stats_Metric_TYPE_COUNTER, Value: 1, Labels: []*agentstatsv1.Stats_Metric_Label{{Name: "x", Value: "1"}, {Name: "y", Value: "2"}}},
			{Name: "b", Type: agentstatsv1.Stats_Metric_TYPE_GAUGE, Value: math.Inf(1)},
			{Name: "c", Type: 77, Labels: []*agentstatsv1.Stats_Metric_Label{{Name: "z"}}},
		},
	}
	r := newMessageReport(message)
	require.Equal(t, agent.Stats{RxBytes: 1, TxBytes: 2, ConnectionCount: 3, MedianLatencyMS: 4, Sessions: agent.Sessions{SSH: 5}, Apps: agent.AppCounts{agent.AppSSH: 5}}, r.Stats())
	require.Equal(t, []string{"{a 1 1 [{x 1} {y 2}]}", "{b 2 +Inf []}", "{c 3 0 [{z }]}"}, samplesOf(r))
	labels := r.labels[:cap(r.labels)]
	r.release()
	for _, l := range labels {
		require.Zero(t, l, "nothing of the message is kept")
	}
}

// samplesOf returns the samples of a report in words.
func samplesOf(r agent.Report) []string {
	var all []string
	for i := range r.Len() {
		all = append(all, fmt.Sprint(*r.Sample(i)))
	}
	return all
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{
		{"abc", 3, "abc"},
		{"abcd", 3, "abc"},
		{"aé", 2, "a"},
		{"é", 1, ""},
		{"a\xff", 5, "a\uFFFD"},
	} {
		require.Equal(t, c.want, cut(c.text, c.limit))
	}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		limit := rapid.IntRange(0, 20).Draw(t, "limit")
		got := cut(text, limit)
		require.True(t, utf8.ValidString(got))
		require.True(t, strings.HasPrefix(text, got))
		require.LessOrEqual(t, len(got), limit)
		require.Greater(t, len(got)+utf8.UTFMax, min(len(text), limit))
	})
}

func TestRefusalMessageIsBounded(t *testing.T) {
	long := strings.Repeat("é", 5000)
	names := make([]string, 100)
	for i := range names {
		names[i] = long
	}
	own := ownRefusals([]agent.Refusal{{Kind: agent.RefusedStore, Reason: "r", Message: long, Names: names, Count: 100}})
	require.Len(t, names[0], 10000, "the names are copies")
	m := refusalMessage(&fleet.Refusal{Sequence: 5, Refusal: own[0]})
	require.Equal(t, agentstatsv1.RefusalCode_REFUSAL_CODE_STORE, m.GetCode())
	require.Len(t, m.GetNames(), agent.MaxRefusalNames)
	require.Len(t, m.GetNames()[0], maxNameBytes)
	require.Len(t, m.GetMessage(), maxRefusalText)
	require.Equal(t, int64(100), m.GetCount())
}

func TestTimeThatIsAbsent(t *testing.T) {
	for name, at := range map[string]*timestamppb.Timestamp{
		"absent": nil, "the zero of protobuf": {}, "the zero of Go": timestamppb.New(time.Time{}),
	} {
		got, err := timeOf(at)
		require.NoError(t, err, name)
		require.True(t, got.IsZero(), name)
	}
}

func TestEnumsAreWhole(t *testing.T) {
	require.Len(t, lifecycleStates, len(agentstatsv1.Lifecycle_State_name)-1)
	require.Len(t, appHealths, len(agentstatsv1.AppHealth_name)-1)
	require.Len(t, transitions, len(agentstatsv1.Build_Transition_name))
	require.Len(t, refusalCodes, len(agentstatsv1.RefusalCode_name)-1)
	for number, state := range lifecycleStates {
		require.Equal(t, "STATE_"+strings.ToUpper(string(state)), number.String())
	}
	for number, health := range appHealths {
		require.Equal(t, "APP_HEALTH_"+strings.ToUpper(string(health)), number.String())
	}
}
