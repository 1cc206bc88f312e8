package pushed

import (
	"context"
	"io"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// coderdRegistry is of the size of a busy coderd: 50 routes with requests and
// latencies, workspaces and builds, about 2,000 series with the buckets.
func coderdRegistry(t fataler) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewRegistry()
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coderd_api_requests_processed_total"}, []string{"code", "method", "path"})
	latencies := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "coderd_api_request_latencies_seconds", Buckets: []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10, 30},
	}, []string{"method", "path"})
	hider := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "coderd_prebuilt_workspace_claim_duration_seconds", Buckets: []float64{1, 5, 10, 20, 30, 60, 120, 180, 240, 300},
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
	}, []string{"organization_name", "preset_name", "template_name"})
	builds := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coderd_workspace_builds_total"}, []string{"action", "workspace_name"})
	latest := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "coderd_workspace_latest_build_status"}, []string{"status", "template_name"})
	reg.MustRegister(requests, latencies, hider, builds, latest)
	for i := range 50 {
		path := "/api/v2/route/" + strconv.Itoa(i)
		for _, code := range []string{"200", "400", "404", "500"} {
			requests.WithLabelValues(code, "GET", path).Add(float64(i))
		}
		latencies.WithLabelValues("GET", path).Observe(float64(i) / 100)
		latest.WithLabelValues("succeeded", path).Set(1)
	}
	for i := range 20 {
		c := hider.WithLabelValues("default", "preset", "template-"+strconv.Itoa(i))
		for j := range 100 {
			c.Observe(float64(j*j) / 50)
		}
	}
	for i := range 800 {
		builds.WithLabelValues("start", "workspace-"+strconv.Itoa(i)).Inc()
	}
	return reg
}

// A push of a coderd beside nine others, of which six are gone.
func BenchmarkPush(b *testing.B) {
	reg := coderdRegistry(b)
	in, err := reg.Gather()
	require.NoError(b, err)
	raw := serialize(b, in...)
	f := open(b, new(memory), Options{})
	push := func(id byte, snapshot int64, final bool) {
		refused, err := f.Push(context.Background(), time.Now(), agent.Push{
			Instance: instanceID(id), Snapshot: snapshot, Interval: time.Minute, Final: final, Families: raw,
		})
		if err != nil || len(refused) > 0 {
			b.Fatal(err, refused)
		}
	}
	for id := range byte(9) {
		push(2+id, 1, id < 6)
	}
	snapshot := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		snapshot++
		push(1, snapshot, false)
	}
	v := f.view.Load()
	b.ReportMetric(float64(v.series/v.instances), "series/instance")
	b.ReportMetric(float64(v.rowBytes/v.instances), "row-bytes")
}

func BenchmarkWriteText(b *testing.B) {
	f := open(b, new(memory), Options{})
	in, err := coderdRegistry(b).Gather()
	require.NoError(b, err)
	_, err = f.Push(context.Background(), time.Now(), agent.Push{Instance: instanceID(1), Snapshot: 1, Families: serialize(b, in...)})
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if err := f.WriteText(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
