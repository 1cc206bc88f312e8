package refusals

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// registered knows agents by their number: agent n has the template and the owner that
// the functions return.
type registered struct {
	template, owner func(n int) string
}

func idOf(n int) (id agent.ID) {
	binary.BigEndian.PutUint32(id[:], uint32(n+1))
	return id
}

func (r registered) Registration(id agent.ID) *agent.Registration {
	n := int(binary.BigEndian.Uint32(id[:])) - 1
	if n < 0 {
		return nil
	}
	return &agent.Registration{
		ID: id, Name: "main",
		Workspace: agent.Workspace{
			Name: fmt.Sprint("ws", n), OwnerUsername: r.owner(n), Template: agent.Template{Name: r.template(n)},
		},
	}
}

// always returns a text whatever the number.
func always(text string) func(int) string { return func(int) string { return text } }

func newRefusals(t require.TestingT, agents Agents, opts Options, log *slog.Logger) (*Refusals, *prometheus.Registry) {
	reg := prometheus.NewPedanticRegistry()
	r, err := New(agents, opts, reg, log)
	require.NoError(t, err)
	return r, reg
}

func refusal(reason string, count int, names ...string) []agent.Refusal {
	return []agent.Refusal{{Reason: reason, Message: "field: want less (" + reason + ")", Names: names, Count: count}}
}

// What is kept is bounded, the newest of it, and what it has is what was refused last.
func TestKeptRefusals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		opts := Options{MaxAgents: rapid.IntRange(1, 8).Draw(t, "max agents"), MaxBytes: 1 << 20, MaxSums: 3}
		small := rapid.Bool().Draw(t, "small")
		if small {
			opts.MaxBytes = 20_000
		}
		r, _ := newRefusals(t, registered{func(n int) string { return fmt.Sprint("t", n%5) }, func(n int) string { return fmt.Sprint("o", n%7) }}, opts, slog.New(slog.DiscardHandler))
		var order []int // the newest last
		last := make(map[int]agent.Refusal)
		total := int64(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n := rapid.IntRange(0, 11).Draw(t, "agent")
			name := strings.Repeat("x", rapid.IntRange(0, 3000).Draw(t, "bytes"))
			refused := refusal(fmt.Sprint("reason", rapid.IntRange(0, 12).Draw(t, "reason")), rapid.IntRange(1, 9).Draw(t, "count"), name, name, name, name, name, name)
			r.Refused(idOf(n), "", refused)
			order = append(slices.DeleteFunc(order, func(o int) bool { return o == n }), n)
			last[n] = refused[0]
			total += int64(refused[0].Count)

			all := r.Newest(100)
			require.LessOrEqual(t, len(all), opts.MaxAgents)
			require.True(t, r.bytes <= opts.MaxBytes || len(all) == 1)
			if !small {
				require.Len(t, all, min(len(order), opts.MaxAgents))
			}
			bytes := 0
			for i, l := range all {
				of := order[len(order)-1-i]
				require.Equal(t, idOf(of), l.Agent, "the newest first")
				require.Equal(t, fmt.Sprint("ws", of), l.Workspace)
				require.Equal(t, last[of].Reason, l.Refusals[0].Reason)
				require.Equal(t, last[of].Message, l.Refusals[0].Problem)
				require.Len(t, l.Refusals[0].Names, maxNames)
				require.LessOrEqual(t, len(l.Refusals), maxReasons)
				again, found := r.Of(l.Agent)
				require.True(t, found)
				require.Equal(t, l, again)
				s, _ := r.slots.Peek(l.Agent)
				bytes += s.size()
			}
			require.Equal(t, bytes, r.bytes)
			for by := range groups {
				sums, others := r.Sums(by)
				require.LessOrEqual(t, len(sums), opts.MaxSums)
				items := others
				for _, s := range sums {
					items += s.Items
					reasons := int64(0)
					for _, n := range s.Reasons {
						reasons += n
					}
					require.Equal(t, s.Items, reasons)
				}
				require.Equal(t, total, items, "nothing is lost of the sums")
			}
		}
	})
}

// 50,000 agents that are refused something take what 10,000 do.
func TestManyAgentsAreRefused(t *testing.T) {
	r, reg := newRefusals(t, registered{always("docker"), func(n int) string { return fmt.Sprint("o", n/10) }}, Options{}, slog.New(slog.DiscardHandler))
	for n := range 50_000 {
		r.Refused(idOf(n), "v2.1", refusal("invalid_name", 1, "a-b"))
	}
	require.Len(t, r.Newest(1<<20), 10_000)
	require.Less(t, r.bytes, 16<<20)
	sums, others := r.Sums(ByOwner)
	require.Len(t, sums, 1000)
	require.EqualValues(t, 40_000, others)
	sums, _ = r.Sums(ByVersion)
	require.Equal(t, "v2.1", sums[0].Name)
	require.EqualValues(t, 50_000, sums[0].Items)
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP agentstatsd_refused_items_total What agents were refused, and what of them expired, by the template of the first 20 templates and by reason; the log names the agents.
# TYPE agentstatsd_refused_items_total counter
agentstatsd_refused_items_total{reason="invalid_name",template="docker"} 50000
agentstatsd_refused_items_total{reason="other",template="other"} 0
# HELP agentstatsd_refused_agents_forgotten_total Agents whose last refusals were forgotten to make room.
# TYPE agentstatsd_refused_agents_forgotten_total counter
agentstatsd_refused_agents_forgotten_total 40000
`), "agentstatsd_refused_items_total", "agentstatsd_refused_agents_forgotten_total"))
}

// Metrics have labels of their own for few templates.
func TestTemplatesInMetricsAreBounded(t *testing.T) {
	r, reg := newRefusals(t, registered{func(n int) string { return fmt.Sprint("t", n) }, always("ada")}, Options{MaxTemplateLabels: 2}, slog.New(slog.DiscardHandler))
	for n := range 10 {
		r.Refused(idOf(n), "", refusal("invalid_name", 1))
	}
	r.Refused(agent.ID{}, "", refusal("limit", 1)) // of nobody that is registered
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP agentstatsd_refused_items_total What agents were refused, and what of them expired, by the template of the first 20 templates and by reason; the log names the agents.
# TYPE agentstatsd_refused_items_total counter
agentstatsd_refused_items_total{reason="invalid_name",template="other"} 8
agentstatsd_refused_items_total{reason="invalid_name",template="t0"} 1
agentstatsd_refused_items_total{reason="invalid_name",template="t1"} 1
agentstatsd_refused_items_total{reason="limit",template="other"} 1
agentstatsd_refused_items_total{reason="other",template="other"} 0
`), "agentstatsd_refused_items_total"))
}

func TestOptions(t *testing.T) {
	_, err := New(nil, Options{MaxLines: -1}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.EqualError(t, err, "refusals options: max lines: want at least 1, got -1")
}

// lineLog keeps the lines of a Refusals that runs.
type lineLog struct{ lines []string }

func (l *lineLog) Write(p []byte) (int, error) {
	l.lines = append(l.lines, strings.TrimSpace(string(p)))
	return len(p), nil
}

// running runs a Refusals in a bubble.
func running(t *testing.T, agents Agents, opts Options) (*Refusals, *lineLog) {
	out := &lineLog{}
	r, _ := newRefusals(t, agents, opts, slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	go func() { _ = r.Run(t.Context()) }()
	return r, out
}

// pass lets time pass, and what is due be done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// An agent that is refused something each second has a line a minute, and the first one
// after seconds.
func TestLinesOfAnAgent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r, out := running(t, registered{always("docker"), always("ada")}, Options{})
		for second := range 10 * 60 {
			r.Refused(idOf(7), "v2", refusal("too_many_agent_series", 500, "my_series", "other_series"))
			if second == 30 {
				r.Refused(idOf(7), "", refusal("invalid_name", 1, "a-b"))
			}
			pass(time.Second)
			require.Equal(t, second >= 4, len(out.lines) > 0, "second %d", second)
		}
		require.Len(t, out.lines, 11)
		require.Equal(t, `level=WARN msg="an agent is refused something" agent=00000008-0000-0000-0000-000000000000 agent_name=main workspace=ws7 owner=ada`+
			` template=docker version=v2 reason=too_many_agent_series count=2500 problem="field: want less (too_many_agent_series)" names="my_series, other_series"`, out.lines[0])
		require.Contains(t, out.lines[1], "reason=invalid_name count=1 ")
		require.Contains(t, out.lines[2], "count=30000")
	})
}

// A template whose agents are all refused something has a line a minute.
func TestLinesOfATemplate(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r, out := running(t, registered{always("docker"), func(n int) string { return fmt.Sprint("o", n/100) }}, Options{})
		for range 6 {
			for n := range 5000 {
				r.Refused(idOf(n), "", refusal("too_many_owner_series", 3, "a"))
			}
			pass(30 * time.Second)
		}
		require.Len(t, out.lines, 3)
		require.Equal(t, `level=WARN msg="agents of a template are refused something" template=docker reason=too_many_owner_series agents=5000 owners=50 count=15000`+
			` last_agent=00001388-0000-0000-0000-000000000000 last_agent_name=main last_workspace=ws4999 last_owner=o49 problem="field: want less (too_many_owner_series)" names=a`, out.lines[0])
		require.Contains(t, out.lines[1], "agents=5000 owners=50 count=30000")
	})
}

// The lines of a minute are bounded, and one says how many agents they leave out.
func TestLinesAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r, out := running(t, registered{func(n int) string { return fmt.Sprint("t", n) }, always("ada")}, Options{})
		for range 5 {
			for n := range 1000 {
				r.Refused(idOf(n), "", refusal("invalid_name", 1, "a-b"))
			}
			pass(time.Minute)
		}
		require.Len(t, out.lines, 5*30+4)
		require.Equal(t, 4, strings.Count(strings.Join(out.lines, "\n"), textLeftOut+`" agents=970`))
	})
}

// At the end what is due is logged at once.
func TestLastLines(t *testing.T) {
	out := &lineLog{}
	r, _ := newRefusals(t, registered{always("docker"), always("ada")}, Options{}, slog.New(slog.NewTextHandler(out, nil)))
	r.Refused(idOf(7), "", refusal("invalid_name", 1, "a-b"))
	bubble.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		pass(time.Second)
		cancel()
		require.NoError(t, <-done)
		require.Len(t, out.lines, 1)
		require.Contains(t, out.lines[0], "workspace=ws7")
	})
}

// What expires is routine.
func TestLinesOfWhatExpires(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r, out := running(t, registered{always("docker"), always("ada")}, Options{})
		r.Expired(idOf(1), refusal("series_expired", 40)[0])
		pass(10 * time.Second)
		require.Len(t, out.lines, 1)
		require.Contains(t, out.lines[0], `level=INFO msg="something of an agent has expired"`)
		for n := range 100 {
			r.Expired(idOf(n+2), refusal("series_expired", 40)[0])
		}
		pass(10 * time.Second)
		require.Len(t, out.lines, 2)
		require.Contains(t, out.lines[1], `level=INFO msg="something of agents of a template has expired" template=docker reason=series_expired agents=100`)
	})
}

// A refusal of one of 50,000 agents, five times as many as are kept.
func BenchmarkRefused(b *testing.B) {
	r, _ := newRefusals(b, registered{always("docker"), always("ada")}, Options{}, slog.New(slog.DiscardHandler))
	refused := refusal("invalid_name", 3, "a-b", "c-d", "e-f")
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		r.Refused(idOf(n%50_000), "v2", refused)
	}
}

// The lines of 10,000 agents of one template, which are looked for each 5 s.
func BenchmarkLines(b *testing.B) {
	r, _ := newRefusals(b, registered{always("docker"), always("ada")}, Options{}, slog.New(slog.DiscardHandler))
	for n := range 10_000 {
		r.Refused(idOf(n), "v2", refusal("invalid_name", 3, "a-b"))
	}
	b.ReportAllocs()
	for b.Loop() {
		r.takeLines(time.Now())
	}
}
