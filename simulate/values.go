package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// series is one forwarded series: all agents share its name and labels.
type series struct {
	name   string
	typ    agentstatsv1.Stats_Metric_Type
	labels []*agentstatsv1.Stats_Metric_Label
	// scale is the greatest step from report to report.
	scale float64
}

func label(name, value string) []*agentstatsv1.Stats_Metric_Label {
	return []*agentstatsv1.Stats_Metric_Label{{Name: name, Value: value}}
}

const (
	counter = agentstatsv1.Stats_Metric_TYPE_COUNTER
	gauge   = agentstatsv1.Stats_Metric_TYPE_GAUGE
)

// rxBytesTotal is a counter of all that an agent received: what the service's
// gauge of bytes is made of, for those who check it.
const rxBytesTotal = "agent_sim_rx_bytes_total"

// seriesOfAgents returns n series: the documented ones first, then counters as
// the agent's network stack keeps them, then gauges and counters of its own.
func seriesOfAgents(n int) []series {
	all := []series{
		{"agent_scripts_executed_total", counter, label("success", "true"), 2},
		{"coderd_agentstats_startup_script_seconds", gauge, label("success", "true"), 0},
		{"coderd_agentstats_currently_reachable_peers", gauge, label("connection_type", "p2p"), 2},
		{"coderd_agentstats_currently_reachable_peers", gauge, label("connection_type", "derp"), 1},
		{rxBytesTotal, counter, nil, 0},
	}
	for _, name := range []string{
		"magicsock_send_udp", "magicsock_send_derp", "magicsock_send_data", "magicsock_recv_data_ipv4",
		"magicsock_recv_data_ipv6", "magicsock_recv_data_derp", "magicsock_disco_sent_udp", "magicsock_disco_recv_ping",
		"magicsock_disco_recv_pong", "magicsock_netcheck_conn_other", "magicsock_rebind_calls", "magicsock_restun_calls",
		"netcheck_report", "netcheck_report_full", "portmap_pmp_sent", "portmap_upnp_received",
	} {
		all = append(all, series{name, counter, nil, 1000})
	}
	for _, path := range []string{"home", "tmp"} {
		all = append(all, series{"agent_sim_disk_used_bytes", gauge, label("path", path), 1 << 24})
	}
	for i := len(all); i < n; i++ {
		if i%2 == 0 {
			all = append(all, series{fmt.Sprintf("agent_sim_requests_%d_total", i), counter, label("code", "200"), 50})
		} else {
			all = append(all, series{fmt.Sprintf("agent_sim_temperature_%d_celsius", i), gauge, nil, 3})
		}
	}
	return all[:n]
}

// generator makes up what one agent reports. It is for one goroutine.
type generator struct {
	series []series
	random *rand.Rand
	stats  *agentstatsv1.Stats
	// activity of the user, from 0 to 1.
	activity float64
	// newer agents count sessions by app, older ones by family.
	newer bool
}

// newGenerator makes the generator of one life of an agent.
func newGenerator(all []series, seed, life uint64) *generator {
	g := &generator{
		series: all,
		random: rand.New(rand.NewPCG(seed, life)),
		stats:  &agentstatsv1.Stats{},
		newer:  life%3 != 2,
	}
	g.activity = g.random.Float64()
	for _, s := range all {
		m := &agentstatsv1.Stats_Metric{Name: s.name, Type: s.typ, Labels: s.labels}
		if s.scale == 0 && s.typ == gauge {
			m.Value = math.Round(100*(1+20*g.random.Float64())) / 100
		}
		g.stats.Metrics = append(g.stats.Metrics, m)
	}
	return g
}

// next returns the next report, which is the same message each time.
func (g *generator) next() *agentstatsv1.Stats {
	r := g.random
	g.activity = min(1, max(0, g.activity+0.2*(r.Float64()-0.5)))
	for i, m := range g.stats.Metrics {
		scale := g.series[i].scale
		if m.Type == counter {
			m.Value += math.Floor(scale * g.activity * r.Float64())
		} else {
			m.Value = math.Floor(max(0, m.Value+2*scale*(r.Float64()-0.5))*100) / 100
		}
	}
	g.stats.RxBytes = int64(g.activity * float64(r.Int64N(4<<20)))
	for _, m := range g.stats.Metrics {
		if m.Name == rxBytesTotal {
			m.Value += float64(g.stats.GetRxBytes())
		}
	}
	busy := r.Float64() < g.activity
	sessions := int64(0)
	if busy {
		sessions = 1 + r.Int64N(3)
	}
	s := g.stats
	s.TxBytes = int64(g.activity * float64(r.Int64N(16<<20)))
	s.RxPackets, s.TxPackets = s.GetRxBytes()/900, s.GetTxBytes()/1100
	s.ConnectionCount = sessions * 2
	s.ConnectionsByProto = map[string]int64{"TCP": sessions * 2}
	// Latency is unknown as long as nobody is connected.
	s.ConnectionMedianLatencyMs = -1
	if busy {
		s.ConnectionMedianLatencyMs = 5 + 60*r.Float64()
	}
	g.setSessions(sessions)
	return s
}

// sessionApps are the names that newer agents count sessions by.
var sessionApps = []string{"vscode", "cursor", "windsurf", "jetbrains", "ssh", "reconnecting_pty"}

// setSessions spreads open sessions over apps.
func (g *generator) setSessions(n int64) {
	s := g.stats
	if g.newer {
		if s.SessionCounts == nil {
			s.SessionCounts = make(map[string]int64, len(sessionApps))
		}
		clear(s.SessionCounts)
		for range n {
			s.SessionCounts[pick(g.random, sessionApps)]++
		}
		return
	}
	s.SessionCountVscode, s.SessionCountSsh = 0, 0
	s.SessionCountJetbrains, s.SessionCountReconnectingPty = 0, 0
	switch g.random.IntN(4) {
	case 0:
		s.SessionCountVscode = n
	case 1:
		s.SessionCountSsh = n
	case 2:
		s.SessionCountJetbrains = n
	default:
		s.SessionCountReconnectingPty = n
	}
}

var metadataKeys = []string{
	"0_cpu_usage", "1_ram_usage", "2_home_disk", "3_load_average", "4_processes", "5_uptime", "6_git_branch",
	"7_gpu_usage", "8_cpu_usage_host", "9_ram_usage_host",
}

// metadataKey returns the name of the i-th key.
func metadataKey(i int) string {
	if i < len(metadataKeys) {
		return metadataKeys[i]
	}
	return fmt.Sprintf("%d_custom", i)
}

// metadataValue makes up the n-th value of the i-th key, or an error text. Both
// end in their number, from 1, so that of two the newer is known.
func metadataValue(r *rand.Rand, i int, n int64, up time.Duration) (value, err string) {
	switch i {
	case 0, 8:
		value = fmt.Sprintf("%.1f%%", 100*r.Float64())
	case 1, 9:
		value = fmt.Sprintf("%.1f/16 GiB", 16*r.Float64())
	case 2:
		value = fmt.Sprintf("%d/50 GiB", 10+n%40)
	case 3:
		value = fmt.Sprintf("%.2f %.2f %.2f", 4*r.Float64(), 3*r.Float64(), 2*r.Float64())
	case 4:
		value = fmt.Sprint(80 + r.IntN(200))
	case 5:
		value = up.Truncate(time.Second).String()
	case 6:
		value = "main"
	case 7:
		return "", fmt.Sprintf("nvidia-smi: command not found #%d", n)
	default:
		value = strconv.FormatUint(uint64(r.Uint32()), 16)
	}
	return fmt.Sprintf("%s #%d", value, n), ""
}

var regions = []string{"Frankfurt", "Virginia", "Singapore"}

// network makes up the view that an agent has of the network.
func network(r *rand.Rand, node uint64) *agentstatsv1.Network {
	n := &agentstatsv1.Network{NodeId: node}
	best := math.Inf(1)
	for i, name := range regions {
		region := &agentstatsv1.Network_Region{Id: int64(i + 1), Name: name}
		// The third region is not always measured.
		if i < 2 || r.IntN(2) == 0 {
			ms := 5 + 150*r.Float64()
			region.Latency = durationOfMS(ms)
			if ms < best {
				best = ms
				n.PreferredRegionId = region.GetId()
			}
		}
		n.Regions = append(n.Regions, region)
	}
	return n
}
