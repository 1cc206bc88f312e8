package integration

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
)

// prometheus is a Prometheus without its process: its scrape manager, its
// database and its query engine.
type prometheus struct {
	db     *tsdb.DB
	engine *promql.Engine
	scrape *scrape.Manager
}

// job is one scrape job of startPrometheus.
type job struct {
	name string
	// settings are further lines of its configuration.
	settings []string
	// targets are what it scrapes; none: what startPrometheus is given. labels are theirs.
	targets []string
	labels  model.LabelSet
}

// protocol is a job that scrapes in one protocol and is named like it.
func protocol(p config.ScrapeProtocol) job {
	return job{name: string(p), settings: []string{fmt.Sprintf("scrape_protocols: [%s]", p)}}
}

// startPrometheus scrapes addr, or what a job has, each second in each of the jobs.
func startPrometheus(t *testing.T, addr string, jobs ...job) *prometheus {
	t.Helper()
	var yaml strings.Builder
	yaml.WriteString("scrape_configs:\n")
	targets := make(map[string][]*targetgroup.Group)
	for _, j := range jobs {
		fmt.Fprintf(&yaml, "  - job_name: %q\n    scrape_interval: 1s\n    scrape_timeout: 1s\n", j.name)
		for _, line := range j.settings {
			fmt.Fprintf(&yaml, "    %s\n", line)
		}
		group := &targetgroup.Group{Labels: j.labels}
		if j.targets == nil {
			j.targets = []string{addr}
		}
		for _, target := range j.targets {
			group.Targets = append(group.Targets, model.LabelSet{model.AddressLabel: model.LabelValue(target)})
		}
		targets[j.name] = []*targetgroup.Group{group}
	}
	return startConfigured(t, yaml.String(), targets)
}

// startConfigured scrapes targets by job, in the place of those of the configuration.
func startConfigured(t *testing.T, configuration string, targets map[string][]*targetgroup.Group) *prometheus {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	p := &prometheus{engine: promql.NewEngine(promql.EngineOpts{Logger: log, MaxSamples: 10_000_000, Timeout: time.Minute})}
	var err error
	p.db, err = tsdb.Open(t.TempDir(), log, nil, tsdb.DefaultOptions(), nil)
	require.NoError(t, err)
	p.scrape, err = scrape.NewManager(&scrape.Options{DiscoveryReloadInterval: model.Duration(10 * time.Millisecond)}, log, nil, nil, p.db, client.NewRegistry())
	require.NoError(t, err)

	cfg, err := config.Load(configuration, log)
	require.NoError(t, err)
	require.NoError(t, p.scrape.ApplyConfig(cfg))
	sets := make(chan map[string][]*targetgroup.Group, 1)
	sets <- targets
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.scrape.Run(sets)
	}()
	t.Cleanup(func() {
		p.scrape.Stop()
		<-done
		_ = p.engine.Close()
		_ = p.db.Close()
	})
	return p
}

// query evaluates expr at ts. A failing query fails the test.
func (p *prometheus) query(t *testing.T, expr string, ts time.Time) promql.Vector {
	t.Helper()
	q, err := p.engine.NewInstantQuery(t.Context(), p.db, nil, expr, ts)
	require.NoError(t, err)
	defer q.Close()
	v, err := q.Exec(t.Context()).Vector()
	require.NoError(t, err, expr)
	out := slices.Clone(v)
	return out
}

// awaitScrapes waits until every target was scraped n times from now on.
func (p *prometheus) awaitScrapes(t *testing.T, jobs, n int) {
	t.Helper()
	from := time.Now()
	deadline := from.Add(time.Duration(n)*time.Second + 20*time.Second)
	for {
		v := p.query(t, fmt.Sprintf("count_over_time(up[%dms])", max(1, time.Since(from).Milliseconds())), time.Now())
		done := 0
		for _, s := range v {
			if s.F >= float64(n) {
				done++
			}
		}
		if done == jobs {
			return
		}
		require.True(t, time.Now().Before(deadline), "%d of %d jobs scraped %d times", done, jobs, n)
		time.Sleep(50 * time.Millisecond)
	}
}

// classicOnly reads native histograms as classic ones, which is all that text has.
var classicOnly = textparse.ParserOptions{IgnoreNativeHistograms: true}

// eachSample calls f with the samples of an exposition, as Prometheus's own
// parser reads it.
func eachSample(t *testing.T, body []byte, contentType string, f func(labels.Labels, float64)) {
	t.Helper()
	p, err := textparse.New(body, contentType, labels.NewSymbolTable(), classicOnly)
	require.NoError(t, err)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		if entry != textparse.EntrySeries {
			continue
		}
		_, _, value := p.Series()
		var l labels.Labels
		p.Labels(&l)
		f(l.WithoutEmpty(), value) // a label without a value is none, to Prometheus
	}
}

// parse returns the samples of an exposition by their series. A series that
// stands twice fails the test.
func parse(t *testing.T, body []byte, contentType string) map[string]float64 {
	t.Helper()
	out := make(map[string]float64)
	eachSample(t, body, contentType, func(l labels.Labels, value float64) {
		require.NotContains(t, out, l.String(), "a series stands twice")
		out[l.String()] = value
	})
	return out
}

const (
	acceptText     = "text/plain;version=0.0.4"
	acceptProtobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)

// agentsOnly drops what changes by itself from one scrape to the next.
func agentsOnly(samples map[string]float64) map[string]float64 {
	out := maps.Clone(samples)
	maps.DeleteFunc(out, func(series string, _ float64) bool {
		for _, own := range []string{
			"go_", "process_", "promhttp_", "grpc_", "agentstatsd_",
			"coderd_metrics_collector_agents_execution_seconds", // each second
		} {
			if strings.Contains(series, `__name__="`+own) {
				return true
			}
		}
		return false
	})
	return out
}

// TestPrometheusScrapes scrapes the service with a real Prometheus in both formats
// while agents come and report. When the agents are quiet, it compares the formats
// sample by sample.
func TestPrometheusScrapes(t *testing.T) {
	beside(t)
	s := newService(t, "--report-interval", "1s", "--metadata-flush-interval", "1s")
	s.start(t)
	p := startPrometheus(t, s.httpAddr, protocol(config.PrometheusText0_0_4), protocol(config.PrometheusProto))
	sim := startSimulation(t, s, "--agents", "25", "--metrics-per-agent", "20", "--metadata-keys", "5",
		"--report-interval", "1s", "--metadata-interval", "1s", "--duration", "6s", "--keep")
	require.NoError(t, sim.wait())
	p.awaitScrapes(t, 2, 2)

	now := time.Now()
	for _, s := range p.query(t, "min_over_time(up[1m])", now) {
		require.EqualValues(t, 1, s.F, "every scrape of %s succeeded", s.Metric)
	}
	require.Len(t, p.query(t, "up", now), 2)
	for _, family := range []string{
		"coderd_agentstats_rx_bytes", "coderd_agentstats_tx_bytes", "coderd_agentstats_connection_count",
		"coderd_agentstats_session_count_vscode", "coderd_agentstats_session_count_ssh",
		"coderd_agentstats_session_count_jetbrains", "coderd_agentstats_session_count_reconnecting_pty",
		"coderd_agentstats_currently_reachable_peers", "coderd_agentstats_startup_script_seconds",
		"agent_scripts_executed_total",
	} {
		v := p.query(t, fmt.Sprintf("count by (job) (count by (job, username, workspace_name, agent_name) (%s))", family), now)
		require.Len(t, v, 2, family)
		for _, s := range v {
			require.EqualValues(t, 25, s.F, "%s has all agents in %s", family, s.Metric)
		}
	}
	require.Len(t, p.query(t, `coderd_agentapi_metadata_flushed_total > 0`, now), 2)

	header, text := s.scrape(t, "/metrics", "Accept", acceptText)
	require.Contains(t, header.Get("Content-Type"), "version=0.0.4")
	header, proto := s.scrape(t, "/", "Accept", acceptProtobuf)
	require.Contains(t, header.Get("Content-Type"), "proto=io.prometheus.client.MetricFamily")
	fromText := agentsOnly(parse(t, text, acceptText))
	fromProto := agentsOnly(parse(t, proto, acceptProtobuf))
	require.Greater(t, len(fromText), 25*20)
	requireSameSamples(t, fromText, fromProto)
}

// requireSameSamples compares two expositions, NaN equal to NaN.
func requireSameSamples(t *testing.T, want, got map[string]float64) {
	t.Helper()
	require.ElementsMatch(t, slices.Collect(maps.Keys(want)), slices.Collect(maps.Keys(got)))
	for series, v := range want {
		w := got[series]
		require.True(t, v == w || math.IsNaN(v) && math.IsNaN(w), "%s: %v and %v", series, v, w)
	}
}
