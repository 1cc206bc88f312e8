package agentapi

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

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

func TestReportOfManyApps(t *testing.T) {
	message := &agentstatsv1.Stats{SessionCounts: map[string]int64{"ssh": 1}, SessionCountVscode: 9}
	for i := range 100 {
		message.SessionCounts[fmt.Sprint("app", i)] = 1
	}
	r := newMessageReport(message)
	defer r.release()
	require.Equal(t, 37, r.overflow)
	require.Equal(t, agent.Sessions{SSH: 1}, r.Stats().Sessions)
	require.Equal(t, agent.AppCounts{agent.AppUnknown: 100, agent.AppSSH: 1}, r.Stats().Apps)
}

// samplesOf returns the samples of a report in words.
func samplesOf(r agent.Report) []string {
	var all []string
	for i := range r.Len() {
		all = append(all, fmt.Sprint(*r.Sample(i)))
	}
	return all
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
