package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	client_golang "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/client"
)

// coderd is one life of a coderd instance, written with plain client_golang.
type coderd struct {
	registry *client_golang.Registry
	requests *client_golang.CounterVec
	jobs     *client_golang.HistogramVec
	created  *client_golang.HistogramVec
	waits    client_golang.Summary
	active   client_golang.Gauge

	conn *grpc.ClientConn
	stop context.CancelFunc
	done chan struct{}
}

// totals are what instances have counted in all their lives.
type totals struct {
	requests, jobs, created, waits float64
	jobSeconds                     float64
}

func newCoderd() *coderd {
	c := &coderd{
		registry: client_golang.NewRegistry(),
		requests: client_golang.NewCounterVec(client_golang.CounterOpts{
			Name: "coderd_api_requests_processed_total", Help: "The total number of processed API requests",
		}, []string{"code", "method", "path"}),
		jobs: client_golang.NewHistogramVec(client_golang.HistogramOpts{
			Name: "coderd_provisionerd_job_timings_seconds", Help: "The provisioner job time duration in seconds.",
			Buckets: []float64{1, 10, 30, 60, 300, 600, 1800, 3600},
		}, []string{"provisioner", "status"}),
		created: client_golang.NewHistogramVec(client_golang.HistogramOpts{
			Name: "coderd_workspace_creation_duration_seconds", Help: "Time to create a workspace by organization, template, preset, and type (regular or prebuild).",
			Buckets:                     []float64{1, 10, 30, 60, 300, 600, 1800, 3600},
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}, []string{"organization_name", "preset_name", "template_name", "type"}),
		// Newer than the documented table.
		waits: client_golang.NewSummary(client_golang.SummaryOpts{Name: "coderd_queue_wait_seconds", Help: "Time in the queue.", Objectives: map[float64]float64{0.5: 0.05, 0.9: 0.01}}),
		active: client_golang.NewGauge(client_golang.GaugeOpts{
			Name: "coderd_api_active_users_duration_hour", Help: "The number of users that have been active within the last hour.",
		}),
	}
	c.registry.MustRegister(c.requests, c.jobs, c.created, c.waits, c.active,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return c
}

// work counts something, and adds it to what the test knows.
func (c *coderd) work(sum *totals) {
	code := []string{"200", "404", "500"}[rand.IntN(3)]
	n := float64(1 + rand.IntN(9))
	c.requests.WithLabelValues(code, "GET", "/api/v2/workspaces").Add(n)
	sum.requests += n
	seconds := float64(1 + rand.IntN(2000))
	c.jobs.WithLabelValues("terraform", "success").Observe(seconds)
	sum.jobs++
	sum.jobSeconds += seconds
	c.created.WithLabelValues("default", "", "docker", "regular").Observe(rand.Float64() * 100)
	sum.created++
	c.waits.Observe(1)
	sum.waits++
	c.active.Set(7)
}

// push begins to push to the service.
func (c *coderd) push(t *testing.T, s *service) {
	t.Helper()
	var err error
	c.conn, err = client.Dial(s.grpcAddr, client.DialOptions{TokenFile: s.tokenFile(), Plaintext: true})
	require.NoError(t, err)
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.Background())
	c.done = make(chan struct{})
	go func() {
		defer close(c.done)
		_ = client.PushGatherer(ctx, c.conn, c.registry, client.PushOptions{Interval: time.Second})
	}()
}

// crash ends the life without a last push.
func (c *coderd) crash() {
	_ = c.conn.Close()
	c.stop()
	<-c.done
}

// leave ends the life as a restart by an operator does.
func (c *coderd) leave() {
	c.stop()
	<-c.done
	_ = c.conn.Close()
}

// served returns the totals in a scrape.
func served(t *testing.T, s *service) totals {
	t.Helper()
	var sum totals
	families := gather(t, s)
	for _, m := range families["coderd_api_requests_processed_total"].GetMetric() {
		sum.requests += m.GetCounter().GetValue()
	}
	for _, m := range families["coderd_provisionerd_job_timings_seconds"].GetMetric() {
		sum.jobs += float64(m.GetHistogram().GetSampleCount())
		sum.jobSeconds += m.GetHistogram().GetSampleSum()
	}
	for _, m := range families["coderd_workspace_creation_duration_seconds"].GetMetric() {
		sum.created += float64(m.GetHistogram().GetSampleCount())
	}
	for _, m := range families["coderd_queue_wait_seconds"].GetMetric() {
		sum.waits += float64(m.GetSummary().GetSampleCount())
	}
	return sum
}

// awaitServed waits until a scrape has exactly the totals.
func awaitServed(t *testing.T, s *service, want totals) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		got := served(t, s)
		if got == want {
			return
		}
		require.True(t, time.Now().Before(deadline), "served %+v, pushed %+v", got, want)
		time.Sleep(50 * time.Millisecond)
	}
}

// TestPushedCountersNeverFall kills one of two coderd instances 20 times and the
// service 5 times. No sum that Prometheus sees falls. Each ends at what the instances
// counted in all their lives.
func TestPushedCountersNeverFall(t *testing.T) {
	beside(t)
	s := newService(t)
	s.start(t)
	p := startPrometheus(t, s.httpAddr, job{name: "native", settings: []string{"scrape_native_histograms: true", "always_scrape_classic_histograms: true"}})

	var sum totals
	steady := newCoderd()
	steady.push(t, s)
	const restarts = 20
	for life := range restarts + 1 {
		c := newCoderd()
		for range 20 {
			c.work(&sum)
			steady.work(&sum)
		}
		c.push(t, s)
		if life%4 == 3 {
			s.kill()
			s.start(t)
		}
		awaitServed(t, s, sum)
		if life%2 == 0 {
			c.crash()
		} else {
			c.leave()
		}
	}
	steady.leave()
	awaitServed(t, s, sum)
	p.awaitScrapes(t, 1, 2)

	now := time.Now()
	for _, counter := range []string{
		"coderd_api_requests_processed_total",
		"coderd_provisionerd_job_timings_seconds_bucket", "coderd_provisionerd_job_timings_seconds_count", "coderd_provisionerd_job_timings_seconds_sum",
		"coderd_workspace_creation_duration_seconds", "coderd_workspace_creation_duration_seconds_bucket",
		"coderd_queue_wait_seconds_count", "coderd_queue_wait_seconds_sum",
	} {
		resets := p.query(t, `resets(`+counter+`[10m])`, now)
		require.NotEmpty(t, resets, counter)
		for _, s := range resets {
			require.Zero(t, s.F, "%s%s falls", counter, s.Metric)
		}
	}
	for expr, want := range map[string]float64{
		`sum(coderd_api_requests_processed_total)`:                          sum.requests,
		`sum(coderd_provisionerd_job_timings_seconds_count)`:                sum.jobs,
		`sum(coderd_provisionerd_job_timings_seconds_bucket{le="+Inf"})`:    sum.jobs,
		`sum(coderd_provisionerd_job_timings_seconds_sum)`:                  sum.jobSeconds,
		`sum(histogram_count(coderd_workspace_creation_duration_seconds))`:  sum.created,
		`sum(coderd_workspace_creation_duration_seconds_bucket{le="+Inf"})`: sum.created,
		`sum(coderd_queue_wait_seconds_count)`:                              sum.waits,
	} {
		v := p.query(t, expr, now)
		require.Len(t, v, 1, expr)
		require.Equal(t, want, v[0].F, expr)
	}
}

// TestPushEqualsScrape compares what Prometheus sees of a coderd that it scrapes
// itself with what it sees of it through the service.
func TestPushEqualsScrape(t *testing.T) {
	beside(t)
	s := newService(t)
	s.start(t)
	c := newCoderd()
	var sum totals
	for range 100 {
		c.work(&sum)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	direct := &http.Server{Handler: promhttp.HandlerFor(c.registry, promhttp.HandlerOpts{}), ReadHeaderTimeout: time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = direct.Serve(lis) })
	t.Cleanup(func() {
		_ = direct.Close()
		serving.Wait()
	})
	c.push(t, s)
	t.Cleanup(c.leave)
	awaitServed(t, s, sum)

	for _, accept := range []string{acceptText, acceptProtobuf} {
		req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://%s/", lis.Addr()), nil)
		require.NoError(t, err)
		req.Header.Set("Accept", accept)
		want := pushedOnly(parse(t, get(t, req), accept))
		_, body := s.scrape(t, "/metrics", "Accept", accept)
		got := pushedOnly(parse(t, body, accept))
		require.Greater(t, len(want), 17)
		requireSameSamples(t, want, got)
		if accept == acceptProtobuf {
			native := nativeHistograms(t, get(t, req))
			require.Len(t, native, 1)
			require.Equal(t, native, nativeHistograms(t, body))
		}
	}
}

// nativeHistograms returns the native histograms of the test's coderd in an
// exposition in protobuf, by their series.
func nativeHistograms(t *testing.T, body []byte) map[string]string {
	t.Helper()
	p, err := textparse.New(body, acceptProtobuf, labels.NewSymbolTable(), textparse.ParserOptions{})
	require.NoError(t, err)
	found := make(map[string]string)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		require.NoError(t, err)
		if entry != textparse.EntryHistogram {
			continue
		}
		_, _, h, _ := p.Histogram()
		var l labels.Labels
		p.Labels(&l)
		if l.Get(model.MetricNameLabel) == "coderd_workspace_creation_duration_seconds" {
			found[l.WithoutEmpty().String()] = h.String()
		}
	}
}

// pushedOnly keeps the families of the test's coderd that are not the service's.
func pushedOnly(samples map[string]float64) map[string]float64 {
	kept := make(map[string]float64)
	for series, v := range samples {
		for _, family := range []string{
			"coderd_api_requests_processed_total", "coderd_provisionerd_job_timings_seconds",
			"coderd_workspace_creation_duration_seconds", "coderd_queue_wait_seconds", "coderd_api_active_users_duration_hour",
		} {
			if strings.Contains(series, `__name__="`+family) {
				kept[series] = v
			}
		}
	}
	return kept
}

func get(t *testing.T, req *http.Request) []byte {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return body
}
