package wire

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/reports"
)

// wireStats has n samples with two labels each.
func wireStats(n, round int) *agentstatsv1.Stats {
	m := &agentstatsv1.Stats{RxBytes: 1, ConnectionMedianLatencyMs: 2, SessionCounts: map[string]int64{"vscode": 1, "ssh": 2}}
	for i := range n {
		m.Metrics = append(m.Metrics, &agentstatsv1.Stats_Metric{
			Name: fmt.Sprint("agent_metric_", i), Type: agentstatsv1.Stats_Metric_TYPE_GAUGE, Value: float64(i + round),
			Labels: []*agentstatsv1.Stats_Metric_Label{{Name: "kind", Value: "p2p"}, {Name: "success", Value: "true"}},
		})
	}
	return m
}

// ingester takes in encoded requests of one agent as a stream does.
type ingester struct {
	series *aggregator.Aggregator
	agent  agent.ID
	frame  Frame
}

func newIngester(t testing.TB) *ingester {
	series, err := aggregator.New(aggregator.Options{MaxFamiliesPerAgent: 1000,
		ReportInterval: 30 * time.Second, SeriesTTL: 2 * time.Minute, MaxSeries: 10_000, MaxSeriesPerAgent: 1000,
	}, prometheus.NewRegistry())
	require.NoError(t, err)
	in := &ingester{series: series, agent: agent.ID{1}, frame: testFrame()}
	series.Open(in.agent, agent.Identity{Username: "u", WorkspaceName: "w", AgentName: "a"}, agent.Session{Epoch: 1})
	return in
}

// take takes in a plain request of stats.
func (in *ingester) take(t testing.TB, now time.Time, data []byte) {
	f := &in.frame
	if err := f.UnmarshalMessage(mem.BufferSlice{mem.SliceBuffer(data)}); err != nil || f.Stats == nil {
		t.Fatal("not plain", err)
	}
	if refused, _ := in.series.Report(in.agent, 1, now, f.Stats); len(refused) > 0 {
		t.Fatal(refused)
	}
	f.encodings = f.Stats.encodings(f.encodings)
	f.Release()
}

// takeDecoded takes in a request of stats that the generated code decodes.
func (in *ingester) takeDecoded(t testing.TB, now time.Time, data []byte) {
	request := &agentstatsv1.ConnectRequest{}
	if err := proto.Unmarshal(data, request); err != nil {
		t.Fatal(err)
	}
	report := NewMessageReport(request.GetStats())
	if refused, _ := in.series.Report(in.agent, 1, now, report); len(refused) > 0 {
		t.Fatal(refused)
	}
	report.Release()
}

// What was taken in holds nothing of the bytes that it was read from.
func TestReportKeepsNothingOfTheWire(t *testing.T) {
	in := newIngester(t)
	for round := range 3 {
		data := encoded(t, statsRequest(int64(round+1), wireStats(3, round)))
		in.take(t, time.Now(), data)
		for i := range data {
			data[i] = 'X'
		}
		var text writer
		require.NoError(t, in.series.WriteText(&text))
		require.NotContains(t, string(text), "XX")
		require.Contains(t, string(text), fmt.Sprintf("agent_metric_2{agent_name=\"a\",kind=\"p2p\",success=\"true\",username=\"u\",workspace_name=\"w\"}    %d\n", 2+round))
	}
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}

// BenchmarkReport30 takes in reports of 30 samples from their bytes, read from
// the wire and decoded by the generated code.
func BenchmarkReport30(b *testing.B) {
	for _, c := range []struct {
		name string
		take func(*ingester, testing.TB, time.Time, []byte)
	}{
		{"wire", (*ingester).take},
		{"generated", (*ingester).takeDecoded},
	} {
		b.Run(c.name, func(b *testing.B) {
			in := newIngester(b)
			var rounds [8][]byte
			for i := range rounds {
				rounds[i] = encoded(b, statsRequest(int64(i+1), wireStats(30, i)))
			}
			now := time.Now()
			i := 0
			b.SetBytes(int64(len(rounds[0])))
			b.ReportAllocs()
			for b.Loop() {
				c.take(in, b, now, rounds[i%8])
				i++
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/30, "ns/sample")
		})
	}
}

// BenchmarkReadStats reads an encoded report of 30 samples.
func BenchmarkReadStats(b *testing.B) {
	data := encoded(b, wireStats(30, 1))
	var r Report
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if !r.read(data, nil) {
			b.Fatal("not plain")
		}
	}
}

// BenchmarkWatchedReport is the cost of a report of 30 samples from the wire to those who
// watch reports: with nobody, and with a subscription.
func BenchmarkWatchedReport(b *testing.B) {
	encoded, err := proto.Marshal(wireStats(30, 0))
	require.NoError(b, err)
	for name, watched := range map[string]bool{"nobody": false, "subscription": true} {
		b.Run(name, func(b *testing.B) {
			kept, err := reports.New(oneSubscription{has: watched}, reports.Options{MaxPending: 1000}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
			require.NoError(b, err)
			require.NoError(b, kept.Load(b.Context()))
			var r Report
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				if !r.read(encoded, nil) {
					b.Fatal("it is not plain")
				}
				if kept.Wanted() {
					sum := contract.SumOf(r.Stats(), time.Unix(1, 0))
					sum.Agent[0], sum.Agent[1], sum.Data = byte(n%4), byte(n), r.Rest()
					n++
					kept.Add(&sum)
				}
			}
		})
	}
}

// oneSubscription is a database with one, or none.
type oneSubscription struct {
	has bool
	reports.Store
}

func (oneSubscription) RecordReportWriterHeartbeat(context.Context, agent.ID) error { return nil }

func (oneSubscription) ConfirmSubscriptions(context.Context, agent.ID, []int64) error { return nil }

func (s oneSubscription) Subscriptions(context.Context) ([]agent.Subscription, error) {
	if !s.has {
		return nil, nil
	}
	return []agent.Subscription{{ID: 1, Name: "a", Incarnation: 1}}, nil
}
