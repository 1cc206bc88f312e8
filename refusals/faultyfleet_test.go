package refusals_test

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	"github.com/coder/agentstatsd/internal/listening"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/refusals"
)

// registrations are those of a fleet.
type registrations struct{ fleet *fleet.Fleet }

func (r registrations) Registration(id agent.ID) *agent.Registration {
	info, err := r.fleet.Agent(id)
	if err != nil {
		return nil
	}
	return info.Registration
}

// exhausted is a listener of a process without descriptors.
type exhausted struct{ net.Listener }

func (exhausted) Accept() (net.Conn, error) {
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
}

func (exhausted) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2113} }

// series is a report of so many gauges of one family.
func series(n int) *pb.Stats {
	report := &pb.Stats{}
	for i := range n {
		metric := edgetest.Gauge("my_series", 1).GetMetrics()[0]
		metric.Labels = []*pb.Stats_Metric_Label{{Name: "n", Value: fmt.Sprint(i)}}
		report.Metrics = append(report.Metrics, metric)
	}
	return report
}

// One agent sends too many series, one bad names, all agents of one template twice as many
// series as before, and there are no descriptors. Each is named within a minute, in the
// log and in metrics, in at most a line a minute. Nobody else is.
func TestFaultyFleet(t *testing.T) {
	const (
		greedy, wrong = 1, 2
		healthy       = 3   // the first of those of the template docker
		doubled       = 100 // the first of those of the template that doubled
		agents        = 10  // of each
		minutes       = 4
	)
	bubble.Test(t, func(t *testing.T) {
		out, reg := &edgetest.Log{}, prometheus.NewPedanticRegistry()
		log := slog.New(slog.NewTextHandler(out, nil))
		s := edgetest.Start(t, edgetest.Settings{ChangeAgents: func(c *agentapi.Components) {
			r, err := refusals.New(registrations{c.Fleet}, refusals.Options{}, reg, log)
			require.NoError(t, err)
			go func() { _ = r.Run(t.Context()) }()
			c.Refusals = r
		}})
		lis, err := listening.New(exhausted{}, "grpc", reg, log)
		require.NoError(t, err)
		reports := map[int]func(minute int) *pb.Stats{
			greedy: func(int) *pb.Stats { return series(1500) },
			wrong:  func(int) *pb.Stats { return edgetest.Gauge("bad-name", 1) },
		}
		for n := range agents {
			reports[healthy+n] = func(int) *pb.Stats { return series(50) }
			reports[doubled+n] = func(minute int) *pb.Stats { return series(600 << min(minute, 1)) }
		}
		streams := make(map[int]*edgetest.Stream)
		set := &pb.RegisterAgentsRequest{}
		for n := range reports {
			registration := edgetest.Registration(n)
			registration.Workspace.OwnerUsername = fmt.Sprint("owner", n)
			if n >= doubled {
				registration.Workspace.Template.Name = "doubled"
			}
			set.Agents = append(set.Agents, registration)
		}
		_, err = s.Coderd().RegisterAgents(s.AsCoderd(), set)
		require.NoError(t, err)
		for n := range reports {
			c := s.Connect(edgetest.Session{Agent: n})
			streams[n] = c
			go func() {
				for err := error(nil); err == nil; _, err = c.Recv() {
				}
			}()
		}

		var lines []string // of each minute
		for minute := range minutes {
			for range 2 {
				for n, report := range reports {
					streams[n].SendNext(edgetest.Stats(report(minute)))
				}
				for range 30 {
					_, err := lis.Accept()
					require.ErrorIs(t, err, syscall.EMFILE)
					time.Sleep(time.Second)
				}
			}
			synctest.Wait()
			lines = append(lines, out.String()[len(strings.Join(lines, "")):])
		}

		named := func(minute int, parts ...string) int {
			n := 0
			for line := range strings.Lines(lines[minute]) {
				all := true
				for _, part := range parts {
					all = all && strings.Contains(line, part)
				}
				if all {
					n++
				}
			}
			return n
		}
		for minute := range minutes {
			require.Equal(t, 1, named(minute, "level=WARN", "agent="+edgetest.ID(greedy).String(), "workspace=ws1 ", "owner=owner1 ", "template=docker ", "reason=too_many_agent_series", "1000 series (--max-series-per-agent), its report has 1500"), lines[minute])
			require.Equal(t, 1, named(minute, "level=WARN", "agent="+edgetest.ID(wrong).String(), "workspace=ws2 ", "owner=owner2 ", "reason=invalid_name", "names=bad-name"), lines[minute])
			require.Equal(t, 1, named(minute, "level=WARN", "connections cannot be accepted", "listener=grpc", "reason=descriptors"), lines[minute])
			template := named(minute, "level=WARN", "template=doubled reason=too_many_agent_series agents=10 owners=10 ")
			if minute == 0 {
				require.Zero(t, template, "600 series are few enough")
			} else {
				require.Equal(t, 1, template, lines[minute])
			}
			require.Equal(t, 3+template, strings.Count(lines[minute], "\n"), "nobody else is named: %s", lines[minute])
		}
		values := gather(t, reg)
		require.Equal(t, 500.0*2*minutes, values["agentstatsd_refused_items_total docker too_many_agent_series"])
		require.Equal(t, 2.0*minutes, values["agentstatsd_refused_items_total docker invalid_name"])
		require.Equal(t, 200.0*2*(minutes-1)*agents, values["agentstatsd_refused_items_total doubled too_many_agent_series"])
		require.Equal(t, 60.0*minutes, values["agentstatsd_accept_errors_total grpc descriptors"])
		require.Equal(t, 2.0+agents, values["agentstatsd_usage refused_agents"])
	})
}

// gather returns the counters and gauges by their names and the values of their labels.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	families, err := reg.Gather()
	require.NoError(t, err)
	values := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, label := range []string{"listener", "template", "reason", "what"} {
				for _, l := range m.GetLabel() {
					if l.GetName() == label {
						name += " " + l.GetValue()
					}
				}
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}
