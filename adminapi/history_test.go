package adminapi_test

import (
	"context"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// The charts have the last hour, step by step: what was before the start is not known, and
// what is older is forgotten.
func TestHistory(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		series := prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_series"})
		entries := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "agentstatsd_metadata_entries_total"}, []string{"outcome"})
		used := prometheus.NewCounter(prometheus.CounterOpts{Name: "process_cpu_seconds_total"})
		scrapes := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "agentstatsd_scrape_duration_seconds"}, []string{"format"})
		entries.WithLabelValues("flushed")
		reg.MustRegister(series, entries, used, scrapes)
		s := edgetest.Start(t, edgetest.Settings{ChangeAdmin: func(c *adminapi.Components) { c.Metrics = reg }})
		get := func() (charts map[string][]float64, resp *pb.GetHistoryResponse) {
			resp, err := s.Operators().GetHistory(s.AsOperator(), &pb.GetHistoryRequest{})
			require.NoError(t, err)
			charts = make(map[string][]float64)
			for _, c := range resp.GetCharts() {
				require.Len(t, c.GetValues(), 240, c.GetName())
				charts[c.GetName()] = c.GetValues()
			}
			return charts, resp
		}
		charts, resp := get()
		require.Nil(t, resp.GetEnd(), "nothing was taken yet")
		for name, values := range charts {
			for _, v := range values {
				require.True(t, math.IsNaN(v), name)
			}
		}

		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { require.NoError(t, s.Admin.Run(ctx)) })
		defer running.Wait()
		defer cancel()
		synctest.Wait()
		began := time.Now()
		step := func(n int) { // as many go by, and in each something happens
			for range n {
				series.Inc()
				entries.WithLabelValues("flushed").Add(30)
				entries.WithLabelValues("received").Add(45)
				used.Add(3)
				time.Sleep(15 * time.Second)
				synctest.Wait()
			}
		}
		scrapes.WithLabelValues("text").Observe(2)
		scrapes.WithLabelValues("protobuf").Observe(4)
		step(3)
		charts, resp = get()
		require.Equal(t, began.Add(45*time.Second).UTC(), resp.GetEnd().AsTime())
		require.Equal(t, 15*time.Second, resp.GetStep().AsDuration())
		require.Equal(t, []float64{0, 1, 2, 3}, charts["series"][236:])
		require.True(t, math.IsNaN(charts["series"][235]), "before it ran")
		require.True(t, math.IsNaN(charts["flushed_per_second"][236]), "the first rise is not known")
		require.Equal(t, []float64{2, 2, 2}, charts["flushed_per_second"][237:])
		require.Equal(t, []float64{3, 3, 3}, charts["received_per_second"][237:])
		require.InDeltaSlice(t, []float64{.2, .2, .2}, charts["cores"][237:], 1e-9)
		require.Equal(t, []float64{3, 3, 3}, charts["scrape_seconds"][237:], "the mean of a minute")
		require.True(t, math.IsNaN(charts["pending"][239]), "there is no such metric here")

		status, err := s.Operators().GetStatus(s.AsOperator(), &pb.GetStatusRequest{})
		require.NoError(t, err)
		require.InDelta(t, .2, status.GetReplicas()[0].GetCores(), 1e-9)
		used.Add(5)
		time.Sleep(5 * time.Second)
		status, err = s.Operators().GetStatus(s.AsOperator(), &pb.GetStatusRequest{})
		require.NoError(t, err)
		require.InDelta(t, 1, status.GetReplicas()[0].GetCores(), 1e-9, "since the last step")

		step(245)
		charts, _ = get()
		for i, v := range charts["series"] {
			require.Equal(t, float64(248-239+i), v)
		}
		require.True(t, math.IsNaN(charts["scrape_seconds"][239]), "none for a minute")
	})
}
