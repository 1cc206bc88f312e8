package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/memstore"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/scrape"
)

// joinedService is agents' and pushed families on one endpoint, as the service has them.
type joinedService struct {
	t       *testing.T
	agents  *aggregator.Aggregator
	pushed  *pushed.Families
	handler http.Handler
	stop    func()
}

func startJoined(t *testing.T, database *memstore.Database) *joinedService {
	s := &joinedService{t: t}
	reg := prometheus.NewRegistry()
	var err error
	s.agents, err = aggregator.New(aggregator.Options{}, reg)
	require.NoError(t, err)
	s.pushed, err = pushed.New(database.Open(memstore.Options{}), s.agents, pushed.Options{}, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, s.pushed.Load(t.Context()))
	s.handler, err = scrape.NewHandler(reg, scrape.Options{}, s.agents.Beside(s.pushed))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- s.agents.Run(ctx) }()
	go func() { done <- s.pushed.Run(ctx) }()
	s.stop = func() {
		cancel()
		require.NoError(t, errors.Join(<-done, <-done))
	}
	return s
}

// report has the agent, a new one if it is not known, report samples like "x gauge". It
// returns the names of those that are refused, and their reason.
func (s *joinedService) report(id byte, of ...string) string {
	s.t.Helper()
	s.agents.Open(agent.ID{15: id}, agent.Identity{
		Username: "ann", WorkspaceName: "dev", AgentName: fmt.Sprint("agent-", id), TemplateName: "go", CreatedAt: time.Unix(1, 0),
	}, agent.Session{Epoch: 1, First: true})
	var r samples
	for _, sample := range of {
		name, typ, _ := strings.Cut(sample, " ")
		r = append(r, agent.Sample{Name: name, Value: 1, Type: map[string]agent.SampleType{"counter": agent.Counter, "gauge": agent.Gauge}[typ]})
	}
	refused, _ := s.agents.Report(agent.ID{15: id}, 1, time.Now(), r)
	var out []string
	for _, r := range refused {
		out = append(out, r.Reason+": "+strings.Join(r.Names, " "))
	}
	return strings.Join(out, "; ")
}

// push has coderd push families like those of report.
func (s *joinedService) push(snapshot int64, final bool, of ...string) {
	s.t.Helper()
	p := agent.Push{Replica: "coderd", Instance: agent.Instance{1}, Interval: 10 * time.Second, Snapshot: snapshot, Final: final}
	for _, family := range of {
		name, typ, _ := strings.Cut(family, " ")
		f := &dto.MetricFamily{Name: &name, Help: proto.String("Of coderd."), Metric: []*dto.Metric{{}}}
		switch m := f.Metric[0]; typ {
		case "counter":
			f.Type, m.Counter = dto.MetricType_COUNTER.Enum(), &dto.Counter{Value: proto.Float64(2)}
		case "gauge":
			f.Type, m.Gauge = dto.MetricType_GAUGE.Enum(), &dto.Gauge{Value: proto.Float64(2)}
		case "histogram":
			f.Type, m.Histogram = dto.MetricType_HISTOGRAM.Enum(), &dto.Histogram{SampleCount: proto.Uint64(2), SampleSum: proto.Float64(2)}
		}
		raw, err := proto.Marshal(f)
		require.NoError(s.t, err)
		p.Families = append(p.Families, raw)
	}
	refused, err := s.pushed.Push(s.t.Context(), time.Now(), p)
	require.NoError(s.t, err)
	require.Empty(s.t, refused)
}

// served returns the test's series by what has them: "x:ca" is one of coderd and one of
// an agent. Prometheus must read the same from both formats, no family and no series
// twice.
func (s *joinedService) served() string {
	s.t.Helper()
	var both [2]string
	for i, accept := range []string{"text/plain;version=0.0.4", string(expfmt.FmtProtoDelim)} {
		r := httptest.NewRequestWithContext(s.t.Context(), http.MethodGet, "/metrics", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		require.Equal(s.t, http.StatusOK, w.Code)
		p, err := textparse.New(w.Body.Bytes(), w.Header().Get("Content-Type"), labels.NewSymbolTable(), textparse.ParserOptions{})
		require.NoError(s.t, err)
		both[i] = s.parse(p)
	}
	require.Equal(s.t, both[0], both[1], "text and protobuf")
	return both[0]
}

func (s *joinedService) parse(p textparse.Parser) string {
	s.t.Helper()
	families, series, of := make(map[string]bool), make(map[string]bool), make(map[string]string)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(s.t, err)
		switch entry {
		case textparse.EntryType:
			name, _ := p.Type()
			require.False(s.t, families[string(name)], "family %s twice", name)
			families[string(name)] = true
		case textparse.EntrySeries:
			var l labels.Labels
			p.Labels(&l)
			require.False(s.t, series[l.String()], "series %s twice", l)
			series[l.String()] = true
			name := l.Get("__name__")
			switch {
			case !strings.HasPrefix(name, "test_") || strings.HasSuffix(name, "_bucket") || strings.HasSuffix(name, "_sum"):
			case l.Has("agent_name"):
				of[name] += "a"
			default:
				of[name] += "c"
			}
		default:
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		out = append(out, strings.TrimPrefix(name, "test_")+":"+of[name])
	}
	return strings.Join(out, " ")
}

// samples are a report of these.
type samples []agent.Sample

func (s samples) Stats() agent.Stats                               { return agent.Stats{} }
func (s samples) Len() int                                         { return len(s) }
func (s samples) Match(int, *agent.SampleEncoding) (float64, bool) { return 0, false }
func (s samples) Encoding(int) agent.SampleEncoding                { return agent.SampleEncoding{} }
func (s samples) Sample(i int) *agent.Sample                       { return &s[i] }

// What coderd pushes never takes an agent's family of its name and type away, and no
// agent takes coderd's. It does not matter which comes first, goes, or starts again.
func TestPushedAndForwardedFamilies(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		s := startJoined(t, database)
		require.Empty(t, s.report(1, "test_first_total counter", "test_typed counter", "test_h_count counter"))
		require.Equal(t, "first_total:a h_count:a typed:a", s.served())

		pushes := []string{"test_first_total counter", "test_later gauge", "test_typed gauge", "test_h histogram"}
		s.push(1, false, pushes...)
		require.Equal(t, "first_total:ca h_count:c later:c typed:c", s.served(), "pushed after it was forwarded")
		forwarded := []string{"test_first_total counter", "test_later gauge", "test_typed counter", "test_h_count counter"}
		require.Equal(t, "pushed_family: test_typed test_h_count", s.report(1, forwarded...))
		require.Equal(t, "pushed_family: test_typed test_h_count", s.report(2, forwarded...))
		require.Equal(t, "first_total:caa h_count:c later:caa typed:c", s.served(), "forwarded after it was pushed")

		// Another process over the same database.
		s.stop()
		s = startJoined(t, database)
		require.Equal(t, "first_total:c h_count:c later:c typed:c", s.served())
		require.Equal(t, "pushed_family: test_typed test_h_count", s.report(1, forwarded...))
		require.Equal(t, "first_total:ca h_count:c later:ca typed:c", s.served())

		s.agents.Close(agent.ID{15: 1}, 1, true)
		require.Equal(t, "first_total:c h_count:c later:c typed:c", s.served(), "an agent says goodbye")
		require.Equal(t, "pushed_family: test_typed test_h_count", s.report(1, forwarded...))

		// The gauges of coderd expire. Its names are its own for five minutes more.
		time.Sleep(2*time.Minute - time.Second)
		s.push(2, false, pushes...)
		require.Equal(t, "pushed_family: test_typed test_h_count", s.report(1, forwarded...))
		time.Sleep(2*time.Minute + time.Second)
		require.Equal(t, "pushed_family: test_typed test_h_count", s.report(1, forwarded...))
		require.Equal(t, "first_total:ca h_count:c later:a", s.served(), "expired")
		time.Sleep(5*time.Minute - 2*time.Second)
		require.Equal(t, "pushed_family: test_typed test_h_count", s.report(1, forwarded...))
		time.Sleep(2 * time.Second)
		require.Equal(t, "pushed_family: test_h_count", s.report(1, forwarded...), "counts are served for ever")
		require.Equal(t, "first_total:ca h_count:c later:a typed:a", s.served())

		// A final push ends gauges at once.
		s.push(3, false, pushes...)
		require.Equal(t, "first_total:ca h_count:c later:ca typed:c", s.served())
		s.push(4, true, pushes...)
		require.Equal(t, "first_total:ca h_count:c later:a", s.served())

		time.Sleep(2*time.Minute + time.Second)
		require.Equal(t, "first_total:c h_count:c", s.served(), "the agent expires")
		s.stop()
	})
}
