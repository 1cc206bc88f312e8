package load

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestTemplate(t *testing.T) {
	for _, unknown := range []bool{false, true} {
		template, err := NewTemplate(5, 30, unknown)
		require.NoError(t, err)
		var first *agentstatsv1.Stats
		for round := range 3 {
			sequence := int64(100 + round)
			text := template.Append(nil, sequence, round)
			require.LessOrEqual(t, len(text), template.Size())
			var req agentstatsv1.ConnectRequest
			require.NoError(t, proto.Unmarshal(text, &req))
			require.Equal(t, sequence, req.GetSequence())
			stats := req.GetStats()
			require.Len(t, stats.GetMetrics(), 30)
			for i, m := range stats.GetMetrics() {
				require.InDelta(t, 5+i+round, m.GetValue(), 0)
				require.Len(t, m.GetLabels(), 2)
				m.Value = 0
			}
			require.Equal(t, unknown, len(stats.ProtoReflect().GetUnknown()) > 0)
			if first == nil {
				first = stats
			}
			require.True(t, proto.Equal(first, stats), "nothing but the values changes")
		}
	}
}

func TestHello(t *testing.T) {
	text, err := Hello(7, 1)
	require.NoError(t, err)
	var req agentstatsv1.ConnectRequest
	require.NoError(t, proto.Unmarshal(text, &req))
	require.Len(t, req.GetHello().GetInstanceId(), 16)
}

func TestRegistrationsDiffer(t *testing.T) {
	a, b := Registration(1), Registration(2)
	require.NotEqual(t, a.GetId(), b.GetId())
	require.NotEqual(t, a.GetTokenSha256(), b.GetTokenSha256())
	require.NotEqual(t, a.GetWorkspace().GetId(), b.GetWorkspace().GetId())
	require.NotEqual(t, a.GetWorkspace().GetOwnerId(), b.GetWorkspace().GetOwnerId())
}

func TestRoundsChangeEverything(t *testing.T) {
	r := NewReport(3, Forwarded)
	values := func() []float64 {
		s := r.stats
		v := []float64{
			float64(s.RxBytes), float64(s.TxBytes), float64(s.ConnectionCount), s.MedianLatencyMS,
			float64(s.Sessions.VSCode), float64(s.Sessions.JetBrains), float64(s.Sessions.ReconnectingPTY), float64(s.Sessions.SSH),
		}
		for _, sample := range r.samples {
			v = append(v, sample.Value)
		}
		return v
	}
	last := values()
	for round := 1; round < 20; round++ {
		r.Set(round)
		next := values()
		for i := range next {
			require.NotEqual(t, last[i], next[i], "value %d in round %d", i, round)
		}
		last = next
	}
}

func TestFamilies(t *testing.T) { require.Len(t, Families(), PerAgent) }
