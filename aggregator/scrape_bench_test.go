package aggregator

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/scrape"
)

// constCollector serves the same series the usual way.
type constCollector struct {
	agents  int
	reports []*report
	descs   map[string]*prometheus.Desc
}

func newConstCollector(n int) *constCollector {
	c := &constCollector{agents: n / perAgent, descs: make(map[string]*prometheus.Desc)}
	for i := range c.agents {
		c.reports = append(c.reports, benchReport(i, 0))
	}
	for i, name := range statsNames {
		c.descs[name] = prometheus.NewDesc(statsNames[i], "help", []string{"agent_name", "username", "workspace_name"}, nil)
	}
	for _, s := range c.reports[0].samples {
		c.descs[s.Name] = prometheus.NewDesc(s.Name, forwardedHelp,
			[]string{"agent_name", "path", "reason", "template_name", "username", "workspace_name"}, nil)
	}
	return c
}

func (c *constCollector) Describe(chan<- *prometheus.Desc) {}

func (c *constCollector) Collect(ch chan<- prometheus.Metric) {
	for i := range c.agents {
		ident := benchIdentity(i)
		for _, name := range statsNames {
			ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.GaugeValue, float64(i),
				ident.AgentName, ident.Username, ident.WorkspaceName)
		}
		for _, s := range c.reports[i].samples {
			t := prometheus.GaugeValue
			if s.Type == agent.Counter {
				t = prometheus.CounterValue
			}
			ch <- prometheus.MustNewConstMetric(c.descs[s.Name], t, s.Value,
				ident.AgentName, s.Labels[0].Value, s.Labels[1].Value, ident.TemplateName, ident.Username, ident.WorkspaceName)
		}
	}
}

// discard is a response that goes nowhere.
type discard struct {
	header http.Header
	n      int64
	status int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(s int)   { d.status = s }

func (d *discard) Write(p []byte) (int, error) {
	d.n += int64(len(p))
	return len(p), nil
}

// serve has h answer one scrape and returns how many bytes it wrote.
func serve(tb testing.TB, h http.Handler, accept, encoding string) int64 {
	req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	req.Header.Set("Accept", accept)
	req.Header.Set("Accept-Encoding", encoding)
	w := &discard{header: make(http.Header)}
	h.ServeHTTP(w, req)
	require.Zero(tb, w.status%http.StatusOK)
	return w.n
}

func BenchmarkScrape100k(b *testing.B) { benchmarkScrape(b, 100_000) }

func BenchmarkScrape1M(b *testing.B) { benchmarkScrape(b, 1_000_000) }

// benchmarkScrape compares scrapes with those of a Collector that makes const
// metrics of the same series, which takes this many times as long: x-collector.
// newScrape returns the handler that serves a.
func newScrape(tb testing.TB, a *Aggregator) http.Handler {
	tb.Helper()
	h, err := scrape.NewHandler(prometheus.NewRegistry(), scrape.Options{}, a)
	require.NoError(tb, err)
	return h
}

func benchmarkScrape(b *testing.B, n int) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(newConstCollector(n))
	usual := promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	a := fleetOf(b, n, Options{})
	h := newScrape(b, a)
	round := 0
	for _, c := range []struct {
		name     string
		accept   string
		encoding string
		// direct is used instead of the handler.
		direct func(io.Writer) error
		// dirty is which part of the agents reported since the last scrape: one
		// in so many; 0: none.
		dirty int
	}{
		{"text", textType, "identity", a.WriteText, 0},
		{"text, half is new", textType, "identity", a.WriteText, 2},
		{"text, all is new", textType, "identity", a.WriteText, 1},
		{"protobuf", protoType, "identity", a.WriteProtobuf, 0},
		{"http, text", textType, "identity", nil, 0},
		{"http, text, all is new", textType, "identity", nil, 1},
		{"http, protobuf, all is new", protoType, "identity", nil, 1},
		{"http, text, gzip", textType, "gzip", nil, 0},
		{"http, protobuf, gzip", protoType, "gzip", nil, 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			once := func() int64 { return serve(b, h, c.accept, c.encoding) }
			if c.direct != nil {
				once = func() int64 {
					w := &discard{}
					require.NoError(b, c.direct(w))
					return w.n
				}
			}
			start := time.Now()
			usualBytes := serve(b, usual, c.accept, c.encoding)
			usualTime := time.Since(start)
			bytes := once()
			b.ReportAllocs()
			for b.Loop() {
				if c.dirty > 0 {
					b.StopTimer()
					round++
					for i := 0; i < n/perAgent; i += c.dirty {
						a.Report(benchID(i), 1, time.Now(), benchReport(i, round))
					}
					b.StartTimer()
				}
				once()
			}
			b.SetBytes(bytes)
			b.ReportMetric(float64(usualTime)*float64(b.N)/float64(b.Elapsed()), "x-collector")
			b.ReportMetric(float64(bytes)/float64(usualBytes), "x-bytes")
		})
	}
}

// BenchmarkLoopback scrapes by HTTP over loopback, and compares that with the
// same bytes written from memory: x-copy. Rounds alternate.
func BenchmarkLoopback(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkLoopback(b, n) })
	}
}

func benchmarkLoopback(b *testing.B, n int) {
	a := fleetOf(b, n, Options{})
	served := newLoopback(b, newScrape(b, a))
	var kept memory
	copied := newLoopback(b, &kept)
	reports := make([]*report, n/perAgent)
	for i := range reports {
		reports[i] = benchReport(i, 0)
	}
	for _, c := range []struct{ name, accept, encoding string }{
		{"text", textType, "identity"},
		{"protobuf", protoType, "identity"},
		{"text, gzip", textType, "gzip"},
		{"protobuf, gzip", protoType, "gzip"},
	} {
		for _, dirty := range []string{"none new", "all new"} {
			b.Run(c.name+", "+dirty, func(b *testing.B) {
				req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
				req.Header.Set("Accept", c.accept)
				req.Header.Set("Accept-Encoding", c.encoding)
				rec := httptest.NewRecorder()
				served.server.Handler.ServeHTTP(rec, req)
				kept = rec.Body.Bytes()
				rec = nil
				var took [2]time.Duration
				bytes := int64(0)
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					if dirty == "all new" {
						for i, r := range reports {
							for j := range r.samples {
								r.samples[j].Value += 0.5
							}
							a.Report(benchID(i), 1, time.Now(), r)
						}
					}
					start := time.Now()
					copied.get(b, c.accept, c.encoding)
					took[0] += time.Since(start)
					b.StartTimer()
					start = time.Now()
					bytes = served.get(b, c.accept, c.encoding)
					took[1] += time.Since(start)
				}
				b.SetBytes(bytes)
				b.ReportMetric(float64(took[1])/float64(took[0]), "x-copy")
				b.ReportMetric(float64(took[0].Milliseconds())/float64(b.N), "ms-copy")
			})
		}
	}
}

// memory is a handler that writes what it has, as much at a time as a scrape.
type memory []byte

func (m *memory) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	for rest := *m; len(rest) > 0; {
		n := min(len(rest), 128<<10)
		_, _ = w.Write(rest[:n])
		rest = rest[n:]
	}
}

// loopback is a server, and a client that reads and throws away.
type loopback struct {
	server *http.Server
	url    string
	client http.Client
	buf    []byte
}

func newLoopback(tb testing.TB, h http.Handler) *loopback {
	tb.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	transport := &http.Transport{DisableCompression: true, ReadBufferSize: 256 << 10}
	l := &loopback{
		server: &http.Server{Handler: h, ReadHeaderTimeout: time.Second},
		url:    "http://" + listener.Addr().String(),
		client: http.Client{Transport: transport},
		buf:    make([]byte, 256<<10),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.server.Serve(listener)
	}()
	tb.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = l.server.Close()
		<-done
	})
	return l
}

// get returns how many bytes the body has.
func (l *loopback) get(tb testing.TB, accept, encoding string) int64 {
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, l.url, nil)
	require.NoError(tb, err)
	req.Header.Set("Accept", accept)
	req.Header.Set("Accept-Encoding", encoding)
	resp, err := l.client.Do(req)
	require.NoError(tb, err)
	defer resp.Body.Close()
	total := int64(0)
	for {
		n, err := resp.Body.Read(l.buf)
		total += int64(n)
		if err == io.EOF {
			return total
		}
		require.NoError(tb, err)
	}
}
