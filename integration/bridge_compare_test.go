package integration

import (
	"context"
	"encoding/json"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/codertest/stock"
	"github.com/coder/agentstatsd/internal/freeport"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/simulate"
	"github.com/coder/agentstatsd/simulate/coderagent"
)

const (
	// longestLag is how long the service may take to have what coderd accepted, and coderd
	// to have it in its gauges: a scrape, a round, and what of reports waits for others.
	longestLag = 4 * time.Second
	// bytesWindow is that of the gauges of bytes.
	bytesWindow = time.Minute
)

// identity is what agents' series are told apart by.
type identity struct{ owner, workspace, agent string }

func identityOf(l labels.Labels) identity {
	return identity{l.Get("username"), l.Get("workspace_name"), l.Get("agent_name")}
}

// point is a sample of one side; nil: it has none.
type point *float64

// moment is what both sides serve at one time, and what the stand-in knows of its agents then.
type moment struct {
	at           time.Time
	labels       map[string]labels.Labels
	ours, theirs map[string]float64
	agents       map[identity]stock.Agent
}

// difference is a row of the table in docs/metrics.md that says what differs through the
// bridge.
type difference struct {
	series string // the first column of the table
	// of returns whether it is about a series; nil: it is about those that the column names.
	of func(labels.Labels) bool
	// explains returns whether the samples of a series may be these.
	explains func(m *moment, l labels.Labels, ours, theirs point) bool
}

func always(*moment, labels.Labels, point, point) bool { return true }

func onlyHere(_ *moment, _ labels.Labels, _, theirs point) bool { return theirs == nil }

var differences = []difference{
	{series: "`agentstatsd_*`, `grpc_server_*`, `coderd_metrics_collector_agents_execution_seconds*`", explains: onlyHere},
	{series: "`go_*`, `process_*`, `promhttp_*`", explains: always},
	{series: "`coderd_agents_up`", explains: explainsUp},
	{series: "`coderd_agents_apps`", explains: explainsApps},
	{series: "`coderd_agentstats_rx_bytes`, `coderd_agentstats_tx_bytes`", explains: explainsBytes},
	{series: "`coderd_agentstats_connection_*`, `coderd_agentstats_session_count_*`", explains: explainsNewest},
	{series: "`coderd_agentstats_session_count`, `coderd_agentstats_session_counts_overflow_total`", explains: onlyHere},
	{series: "what an agent reported and forwarded that is not connected", of: isReported, explains: explainsAbsent},
	{series: "`coderd_agentapi_metadata_*`", explains: always},
}

// explainsUp: coderd counts all agents of the latest build, the service those that are
// connected.
func explainsUp(m *moment, l labels.Labels, ours, theirs point) bool {
	all, connected := 0, 0
	for id, a := range m.agents {
		if id.owner == l.Get("username") && id.workspace == l.Get("workspace_name") {
			all++
			if a.Connected {
				connected++
			}
		}
	}
	return ours != nil && theirs != nil && *ours == float64(connected) && *theirs == float64(all)
}

// explainsApps: apps without a display name have their slugs.
func explainsApps(m *moment, l labels.Labels, ours, theirs point) bool {
	unnamed := 0
	for _, app := range m.agents[identityOf(l)].Apps {
		if app.DisplayName != "" || app.Health != l.Get("health") {
			continue
		}
		if unnamed++; l.Get("app_name") == app.Slug {
			return theirs == nil && ours != nil && *ours == 1
		}
	}
	return l.Get("app_name") == "" && ours == nil && theirs != nil && *theirs == float64(unnamed)
}

// candidates are the reports of an agent that may be the newest one here.
func candidates(m *moment, l labels.Labels) []stock.Report {
	reports := m.agents[identityOf(l)].Reports
	first := len(reports) - 1
	for first > 0 && m.at.Sub(reports[first].At) < longestLag {
		first--
	}
	return reports[max(0, first):]
}

// explainsBytes: those of the minute before the newest report.
func explainsBytes(m *moment, l labels.Labels, ours, theirs point) bool {
	if ours == nil {
		return false
	}
	if theirs == nil && !explainsNoLatency(m, l) {
		return false
	}
	of := (*agentstatsv1.Stats).GetRxBytes
	if strings.Contains(l.Get(model.MetricNameLabel), "tx") {
		of = (*agentstatsv1.Stats).GetTxBytes
	}
	all := m.agents[identityOf(l)].Reports
	return slices.ContainsFunc(candidates(m, l), func(newest stock.Report) bool {
		var least, most float64
		for _, r := range all {
			switch age := newest.At.Sub(r.At); {
			case age < 0:
			case age < bytesWindow-longestLag:
				least += float64(of(r.Stats))
				most += float64(of(r.Stats))
			case age < bytesWindow+longestLag:
				most += float64(of(r.Stats))
			}
		}
		return least <= *ours && *ours <= most
	})
}

// explainsNoLatency: coderd has nothing of an agent without a measured latency in a minute.
func explainsNoLatency(m *moment, l labels.Labels) bool {
	return !slices.ContainsFunc(m.agents[identityOf(l)].Reports, func(r stock.Report) bool {
		age := m.at.Sub(r.At)
		return r.Stats.GetConnectionMedianLatencyMs() > 0 && age > longestLag && age < bytesWindow-longestLag
	})
}

// explainsNewest: the newest report counts, whether it has a latency or not.
func explainsNewest(m *moment, l labels.Labels, ours, theirs point) bool {
	if theirs == nil && !explainsNoLatency(m, l) {
		return false
	}
	i := slices.IndexFunc([]string{
		"coderd_agentstats_connection_count", "coderd_agentstats_connection_median_latency_seconds", "coderd_agentstats_session_count_vscode",
		"coderd_agentstats_session_count_jetbrains", "coderd_agentstats_session_count_reconnecting_pty", "coderd_agentstats_session_count_ssh",
	}, func(name string) bool { return name == l.Get(model.MetricNameLabel) })
	return i >= 0 && slices.ContainsFunc(candidates(m, l), func(r stock.Report) bool {
		value := stock.Newest(r.Stats)[i]
		if i == 1 && value <= 0 {
			return ours == nil
		}
		return ours != nil && same(*ours, value)
	})
}

// isReported reports whether agents report or forward a series.
func isReported(l labels.Labels) bool {
	return strings.HasPrefix(l.Get(model.MetricNameLabel), "coderd_agentstats_") || l.Has("agent_name") && l.Has("template_name")
}

// explainsAbsent: what an agent reported goes at once here when it says that it is off, and at
// its TTL else. In coderd it takes some minutes.
func explainsAbsent(m *moment, l labels.Labels, _, _ point) bool {
	return !m.agents[identityOf(l)].Connected
}

// same compares whole numbers exactly, and others within a nanosecond or two.
func same(a, b float64) bool {
	whole := a == math.Trunc(a) && b == math.Trunc(b)
	return a == b || math.IsNaN(a) && math.IsNaN(b) || !whole && math.Abs(a-b) <= 2e-9*max(math.Abs(a), math.Abs(b), 1)
}

// is reports whether the difference is about a series.
func (d *difference) is(l labels.Labels) bool {
	if d.of != nil {
		return d.of(l)
	}
	for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(d.series, -1) {
		if ok, _ := path.Match(name[1], l.Get(model.MetricNameLabel)); ok {
			return true
		}
	}
	return false
}

// agrees returns whether a series is equal on both sides, or differs as is documented.
func (m *moment) agrees(key string) bool {
	var ours, theirs point
	if v, ok := m.ours[key]; ok {
		ours = &v
	}
	if v, ok := m.theirs[key]; ok {
		theirs = &v
	}
	if ours != nil && theirs != nil && same(*ours, *theirs) {
		return true
	}
	l := m.labels[key]
	return slices.ContainsFunc(differences, func(d difference) bool { return d.is(l) && d.explains(m, l, ours, theirs) })
}

// stockCoderd is a stand-in with metrics, whose addresses others reach.
type stockCoderd struct {
	*stock.Coderd
	addr, metricsAddr string
}

func newStockCoderd(t *testing.T, o stock.Options) *stockCoderd {
	t.Helper()
	coderd, err := stock.New(o)
	require.NoError(t, err)
	coderd.SetAPIToken(apiToken)
	c := &stockCoderd{coderd, freeport.Addr(), freeport.Addr()}
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	for addr, handler := range map[string]http.Handler{c.addr: coderd.API(), c.metricsAddr: coderd.Metrics()} {
		lis, err := net.Listen("tcp", addr)
		require.NoError(t, err)
		server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
		running.Go(func() { _ = server.Serve(lis) })
		t.Cleanup(func() { _ = server.Close() })
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	running.Go(func() { _ = coderd.Run(ctx) })
	return c
}

// compared are a stand-in for a coderd and the service behind bridges to it.
type compared struct {
	t       *testing.T
	coderd  *stockCoderd
	service *service
}

// look scrapes both sides.
func (c *compared) look() *moment {
	m := &moment{labels: make(map[string]labels.Labels), ours: make(map[string]float64), theirs: make(map[string]float64), agents: make(map[identity]stock.Agent)}
	for addr, side := range map[string]map[string]float64{c.service.httpAddr: m.ours, c.coderd.metricsAddr: m.theirs} {
		_, body := (&service{httpAddr: addr}).scrape(c.t, "/metrics", "Accept", acceptText)
		eachSample(c.t, body, acceptText, func(l labels.Labels, value float64) {
			if l.Get(model.MetricNameLabel) == "coderd_agents_up" {
				l = labels.NewBuilder(l).Del("template_version").Labels() // an option of the service
			}
			key := l.String()
			m.labels[key], side[key] = l, value
		})
	}
	m.at = time.Now()
	for _, a := range c.coderd.Agents() {
		m.agents[identity{a.Owner, a.Workspace, a.Name}] = a
	}
	return m
}

// requireEqual compares both sides until each series has agreed once, and none is on one side
// only: values move while they are looked at.
func (c *compared) requireEqual(phase string) {
	c.t.Helper()
	agreed := make(map[string]bool)
	began := time.Now()
	for {
		m := c.look()
		var open []string
		for key := range m.labels {
			_, here := m.ours[key]
			_, there := m.theirs[key]
			switch {
			case m.agrees(key):
				agreed[key] = true
			case !agreed[key] || here != there:
				open = append(open, key)
			}
		}
		if len(open) == 0 {
			c.t.Logf("%s: %d series agree after %s", phase, len(m.labels), time.Since(began).Round(100*time.Millisecond))
			return
		}
		if time.Since(began) > longestPhase {
			slices.Sort(open)
			for _, key := range open[:min(len(open), 20)] {
				ours, here := m.ours[key]
				theirs, there := m.theirs[key]
				c.t.Logf("%s: here %v (%t), in coderd %v (%t)", key, ours, here, theirs, there)
			}
			c.t.Fatalf("%s: %d of %d series do not agree", phase, len(open), len(m.labels))
		}
		time.Sleep(50*time.Millisecond + rand.N(200*time.Millisecond))
	}
}

// requireServed waits until the service serves a sample, and returns how long that took.
func (c *compared) requireServed(value float64, name string, labelled map[string]string) time.Duration {
	c.t.Helper()
	began := time.Now()
	require.Eventually(c.t, func() bool {
		_, body := c.service.scrape(c.t, "/metrics", "Accept", acceptText)
		found := false
		eachSample(c.t, body, acceptText, func(l labels.Labels, v float64) {
			if l.Get(model.MetricNameLabel) != name || v != value {
				return
			}
			for label, want := range labelled {
				if l.Get(label) != want {
					return
				}
			}
			found = true
		})
		return found
	}, time.Minute, 10*time.Millisecond, "%s %v", name, labelled)
	return time.Since(began)
}

// requirePrompt has an agent say things through a bridge, and measures when the service
// serves each. The agent stays connected.
func (c *compared) requirePrompt(bridge string, a stock.Agent) {
	c.t.Helper()
	s, err := codertest.Dial(c.t.Context(), bridge, a.Token, codertest.DialOptions{})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = s.Close() })
	call := func(name string, request []byte) {
		_, err := s.Call(c.t.Context(), name, request)
		require.NoError(c.t, err)
	}
	agentLabels := map[string]string{"username": a.Owner, "workspace_name": a.Workspace, "agent_name": a.Name}
	with := func(name, value string) map[string]string {
		all := maps.Clone(agentLabels)
		all[name] = value
		return all
	}
	call(codertest.GetManifest, nil)
	took := []time.Duration{c.requireServed(1, "coderd_agents_connections", with("status", "connected"))}
	states := []agentstatsv1.Lifecycle_State{agentstatsv1.Lifecycle_STATE_STARTING, agentstatsv1.Lifecycle_STATE_READY}
	for _, state := range states {
		request, err := coderagent.LifecycleRequest(&agentstatsv1.Lifecycle{State: state, ChangedAt: timestamppb.Now()})
		require.NoError(c.t, err)
		call(codertest.UpdateLifecycle, request)
		name := strings.ToLower(strings.TrimPrefix(state.String(), "STATE_"))
		took = append(took, c.requireServed(1, "coderd_agents_connections", with("lifecycle_state", name)))
	}
	for n := range 20 {
		health, name := agentstatsv1.AppHealth_APP_HEALTH_HEALTHY, "healthy"
		if n%2 == 0 {
			health, name = agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY, "unhealthy"
		}
		call(codertest.BatchUpdateAppHealths, coderagent.AppHealthsRequest(appIDs(a), health))
		took = append(took, c.requireServed(1, "coderd_agents_apps", with("health", name)))
	}
	slices.Sort(took)
	c.t.Logf("served after a call: %s median, %s at most, of %d", took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), len(took))
	require.Less(c.t, took[len(took)/2], time.Second)
}

func appIDs(a stock.Agent) (ids []uuid.UUID) {
	for _, app := range a.Apps {
		ids = append(ids, app.ID)
	}
	return ids
}

// TestBridgedSeries compares what a stock coderd serves with what the service serves through
// bridges, series by series, while agents report, workspaces are built again and stopped, a
// bridge goes, and all agents end. What differs has to be in docs/metrics.md.
func TestBridgedSeries(t *testing.T) {
	o := stock.Options{Workspaces: 12, Unreachable: 2, ReportInterval: 3 * time.Second, Round: 2 * time.Second}
	if *soak {
		o = stock.Options{Workspaces: 400, Unreachable: 20, ReportInterval: 10 * time.Second, Round: 2 * time.Second}
	}
	beside(t)
	requireDocumented(t)
	c := &compared{t: t, coderd: newStockCoderd(t, o), service: newService(t, "--report-interval", "1s")}
	c.service.start(t)
	var bridges []*bridgeProcess
	for range 2 {
		b := newBridge(t, &standIn{addr: c.coderd.addr}, c.service, "--coderd-metrics-url", "http://"+c.coderd.metricsAddr+"/", "--scrape-interval", "1s",
			"--drain-delay", "0s", "--drain-timeout", "2s")
		b.start(t)
		bridges = append(bridges, b)
	}
	tokens := c.coderd.Tokens()
	file := filepath.Join(t.TempDir(), "agent-tokens")
	require.NoError(t, os.WriteFile(file, []byte(strings.Join(tokens[1:], "\n")+"\n"), 0o600))
	sim := runSimulation(t, "--coder-url", "http://"+bridges[0].addr+",http://"+bridges[1].addr,
		"--agent-tokens-file", file, "--steady", "--metadata-interval", "5s", "--json")
	own := c.coderd.Agents()[0]
	require.Equal(t, tokens[0], own.Token)
	require.Eventually(t, func() bool {
		return !slices.ContainsFunc(c.coderd.Agents(), func(a stock.Agent) bool {
			return a.Reachable && a.ID != own.ID && (a.Lifecycle == "created" || a.Lifecycle == "starting")
		})
	}, 2*time.Minute, 100*time.Millisecond, "not all agents have started")
	c.requireEqual("all agents report")
	want := documentedFamilies(t)
	awaitFamilies(t, c.service, want, time.Minute, func(f *dto.MetricFamily) bool { return len(f.GetMetric()) > 0 })
	t.Logf("%d of %d documented families", len(want), len(want))

	c.requirePrompt(bridges[0].addr, own)
	// Agents of builds that are over survive, and are nobody's.
	c.coderd.Rebuild(3)
	c.coderd.Stop(5)
	c.requireEqual("a workspace was built again, one stopped")
	if *soak {
		bridges[1].kill()
	} else {
		_ = bridges[1].cmd.Process.Signal(syscall.SIGTERM)
		<-bridges[1].exited // with an error: what survivors say is delivered to nobody
		bridges[1].cmd = nil
	}
	c.requireEqual("one bridge is gone")
	bridges[0].requireWhole(t)
	err := sim.stop()
	var summary simulate.Summary
	require.NoError(t, json.Unmarshal(sim.stdout.Bytes(), &summary), "%v", err)
	require.Equal(t, len(tokens)-1, summary.Agents)
	require.Zero(t, summary.Refused)
	c.requireEqual("all agents have ended")
	t.Logf("%+v", summary)
}

// requireWhole checks that nothing was left out of what agents said.
func (b *bridgeProcess) requireWhole(t *testing.T) {
	t.Helper()
	for _, name := range []string{"agentstatsd_bridge_decoders_given_up_total", "agentstatsd_bridge_relay_errors_total", "agentstatsd_bridge_calls_skipped_total"} {
		require.Zero(t, b.total(t, name), name)
	}
}

// requireDocumented compares the differences with the table in docs/metrics.md.
func requireDocumented(t *testing.T) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "docs", "metrics.md"))
	require.NoError(t, err)
	_, section, found := strings.Cut(string(page), "\n## Through the bridge\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	var rows, want []string
	for _, row := range regexp.MustCompile(`(?m)^\| (.+?) \|`).FindAllStringSubmatch(section, -1) {
		rows = append(rows, row[1])
	}
	for _, d := range differences {
		want = append(want, d.series)
	}
	require.Equal(t, want, rows[2:], "the first column, below its head")
}
