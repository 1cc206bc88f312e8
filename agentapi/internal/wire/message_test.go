package wire

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
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
	r := NewMessageReport(message)
	require.Equal(t, agent.Stats{RxBytes: 1, TxBytes: 2, ConnectionCount: 3, MedianLatencyMS: 4, Sessions: agent.Sessions{SSH: 5}, Apps: agent.AppCounts{agent.AppSSH: 5}}, r.Stats())
	require.Equal(t, []string{"{a 1 1 [{x 1} {y 2}]}", "{b 2 +Inf []}", "{c 3 0 [{z }]}"}, samplesOf(r))
	labels := r.labels[:cap(r.labels)]
	r.Release()
	for _, l := range labels {
		require.Zero(t, l, "nothing of the message is kept")
	}
}

func TestReportOfManyApps(t *testing.T) {
	message := &agentstatsv1.Stats{SessionCounts: map[string]int64{"ssh": 1}, SessionCountVscode: 9}
	for i := range 100 {
		message.SessionCounts[fmt.Sprint("app", i)] = 1
	}
	r := NewMessageReport(message)
	defer r.Release()
	require.Equal(t, 37, r.Overflow)
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
