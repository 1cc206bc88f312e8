package stock

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/codertest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// statsWindow is what the gauges of reports are made of.
	statsWindow = time.Minute
	// forwardedExpiry is how long a forwarded series stays at least, and the time between
	// two removals.
	forwardedExpiry = 2 * time.Minute
	// ForwardedHelp is that of all families that a coderd forwards for its agents.
	ForwardedHelp = "Metrics are forwarded from workspace agents connected to this instance of coderd."
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	upDesc          = desc("coderd_agents_up", "The number of active agents per workspace.", "username", "workspace_name", "template_name", "template_version")
	connectionsDesc = desc("coderd_agents_connections", "Agent connections with statuses.", "agent_name", "username", "workspace_name", "status", "lifecycle_state", "tailnet_node")
	latenciesDesc   = desc("coderd_agents_connection_latencies_seconds", "Agent connection latencies in seconds.", "agent_name", "username", "workspace_name", "derp_region", "preferred")
	appsDesc        = desc("coderd_agents_apps", "Agent applications with statuses.", "agent_name", "username", "workspace_name", "app_name", "health")
)

// statsDescs are those of the gauges of reports, in the order of statsValues.
var statsDescs = func() (all []*prometheus.Desc) {
	for _, f := range [][2]string{
		{"coderd_agentstats_rx_bytes", "Agent Rx bytes"},
		{"coderd_agentstats_tx_bytes", "Agent Tx bytes"},
		{"coderd_agentstats_connection_count", "The number of established connections by agent"},
		{"coderd_agentstats_connection_median_latency_seconds", "The median agent connection latency in seconds"},
		{"coderd_agentstats_session_count_vscode", "The number of session established by VSCode"},
		{"coderd_agentstats_session_count_jetbrains", "The number of session established by JetBrains"},
		{"coderd_agentstats_session_count_reconnecting_pty", "The number of session established by reconnecting PTY"},
		{"coderd_agentstats_session_count_ssh", "The number of session established by SSH"},
	} {
		all = append(all, desc(f[0], f[1], "agent_name", "username", "workspace_name"))
	}
	return all
}()

func gauge(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

// stateSeries returns the series of the agents' state.
func (c *Coderd) stateSeries(now time.Time) (all []prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.workspaces {
		all = append(all, gauge(upDesc, float64(len(w.agents)), w.owner, w.name, codertest.TemplateName, codertest.TemplateVersion))
		for _, a := range w.agents {
			node := "unknown"
			if a.node != nil {
				node = "nodeid:" + strconv.FormatUint(uint64(a.node.ID), 16)
			}
			all = append(all, gauge(connectionsDesc, 1, a.name, w.owner, w.name, a.status(now), a.lifecycle, node))
			for _, l := range a.latencies() {
				all = append(all, gauge(latenciesDesc, l.seconds, a.name, w.owner, w.name, l.region, strconv.FormatBool(l.preferred)))
			}
			count := make(map[codertest.App]float64)
			for _, app := range a.apps {
				count[codertest.App{DisplayName: app.DisplayName, Health: app.Health}]++
			}
			for app, n := range count {
				all = append(all, gauge(appsDesc, n, a.name, w.owner, w.name, app.DisplayName, app.Health))
			}
		}
		c.showLocked(w) // a status may depend on the time
	}
	return all
}

// statsSeries returns the gauges of the agents' reports: none of an agent without a measured
// latency.
func (c *Coderd) statsSeries(now time.Time) (all []prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.agents {
		var rx, tx int64
		var newest *agentstatsv1.Stats
		for _, r := range a.reports {
			if now.Sub(r.At) >= statsWindow {
				continue
			}
			rx, tx = rx+r.Stats.GetRxBytes(), tx+r.Stats.GetTxBytes()
			if r.Stats.GetConnectionMedianLatencyMs() > 0 {
				newest = r.Stats
			}
		}
		if newest == nil {
			continue
		}
		for i, value := range append([]float64{float64(rx), float64(tx)}, Newest(newest)...) {
			all = append(all, gauge(statsDescs[i], value, a.name, a.workspace.owner, a.workspace.name))
		}
	}
	return all
}

// sessionFamilies of apps, by the names that simulated agents say.
var sessionFamilies = map[string]int{"vscode": 2, "cursor": 2, "windsurf": 2, "jetbrains": 3, "reconnecting_pty": 4, "ssh": 5}

// Newest returns the gauges of a report that no other report counts for: its connections,
// their latency in seconds, and the sessions of VS Code, JetBrains, the web terminal and SSH.
func Newest(s *agentstatsv1.Stats) []float64 {
	values := []float64{float64(s.GetConnectionCount()), s.GetConnectionMedianLatencyMs() / 1000, 0, 0, 0, 0}
	counts, sum := s.GetSessionCounts(), int64(0)
	for app, n := range counts {
		if family, known := sessionFamilies[app]; known && n > 0 {
			values[family] += float64(n)
			sum += n
		}
	}
	if sum == 0 {
		values[2], values[3] = float64(s.GetSessionCountVscode()), float64(s.GetSessionCountJetbrains())
		values[4], values[5] = float64(s.GetSessionCountReconnectingPty()), float64(s.GetSessionCountSsh())
	}
	return values
}

// forwarded is a series that an agent forwards.
type forwarded struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	labels []string
	value  float64
	expiry time.Time
}

func (f *forwarded) metric() prometheus.Metric {
	return prometheus.MustNewConstMetric(f.desc, f.kind, f.value, f.labels...)
}

// forward takes in what an agent forwards.
func (m *metrics) forward(a *agent, s *agentstatsv1.Stats, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, metric := range s.GetMetrics() {
		labels := slices.DeleteFunc(slices.Clone(metric.GetLabels()), func(l *agentstatsv1.Stats_Metric_Label) bool { return l.GetValue() == "" })
		slices.SortFunc(labels, func(a, b *agentstatsv1.Stats_Metric_Label) int { return cmp.Compare(a.GetName(), b.GetName()) })
		names := []string{"username", "workspace_name", "agent_name", "template_name"}
		values := []string{a.workspace.owner, a.workspace.name, a.name, codertest.TemplateName}
		for _, l := range labels {
			names, values = append(names, l.GetName()), append(values, l.GetValue())
		}
		key := fmt.Sprintf("%s %s %s", metric.GetName(), strings.Join(names, ","), strings.Join(values, "|"))
		f := m.forwarded[key]
		if f == nil {
			f = &forwarded{desc: desc(metric.GetName(), ForwardedHelp, names...), kind: prometheus.GaugeValue, labels: values}
			if metric.GetType() == agentstatsv1.Stats_Metric_TYPE_COUNTER {
				f.kind = prometheus.CounterValue
			}
			m.forwarded[key] = f
		}
		f.value, f.expiry = metric.GetValue(), now.Add(forwardedExpiry)
	}
}
