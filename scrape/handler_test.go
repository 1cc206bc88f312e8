package scrape

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/documented"
	"github.com/coder/agentstatsd/metrics"
)

// part is a metrics.Exposer of fixed output, or of an error.
type part struct {
	text, proto []byte
	err         error
}

func (p *part) WriteText(w io.Writer) error     { return p.write(w, p.text) }
func (p *part) WriteProtobuf(w io.Writer) error { return p.write(w, p.proto) }

// Shard implements metrics.Exposer: the parts of a part say which they are.
func (p *part) Shard(s metrics.Shard) metrics.Exposer {
	name := fmt.Appendf(nil, "shard%dof%d 1\n", s.Index, s.Count)
	return &part{text: name, proto: name}
}

func (p *part) write(w io.Writer, data []byte) error {
	if _, err := w.Write(data); err != nil {
		return err
	}
	return p.err
}

// newHandler returns a handler of parts.
func newHandler(tb testing.TB, reg Registry, opts Options, parts ...metrics.Exposer) http.Handler {
	tb.Helper()
	h, err := NewHandler(reg, opts, parts...)
	require.NoError(tb, err)
	return h
}

// onePart has one family of one series.
func onePart() *part {
	family := metrics.AppendProtoMetric(metrics.AppendProtoHeader(nil, "part", "A part.", metrics.Gauge), []byte(`l="v"`), metrics.Gauge, 2)
	return &part{
		text:  []byte("# HELP part A part.\n# TYPE part gauge\npart{l=\"v\"}    2\n"),
		proto: append([]byte{byte(len(family))}, family...),
	}
}

const (
	askText  = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
	askProto = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,text/plain;version=0.0.4;q=0.5"
)

func get(t *testing.T, h http.Handler, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// own is a registry without what changes from scrape to scrape.
func own() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "own_total", Help: "Own."}, func() float64 { return 1 }))
	return reg
}

// Each shard is its part of the parts, and the first one has the registry.
func TestShards(t *testing.T) {
	h := newHandler(t, own(), Options{}, onePart())
	ask := func(query string, header ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "/metrics?"+query, nil)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	for _, whole := range []string{"", "shard=0/1", "other=1"} {
		w := ask(whole)
		require.Equal(t, http.StatusOK, w.Code)
		require.Contains(t, w.Body.String(), "own_total 1")
		require.Contains(t, w.Body.String(), `part{l="v"}`)
	}
	first := ask("shard=0/2").Body.String()
	require.Contains(t, first, "own_total 1")
	require.Contains(t, first, "promhttp_metric_handler_requests_total")
	require.True(t, strings.HasSuffix(first, "\nshard0of2 1\n"), first)
	for _, accept := range []string{askText, askProto} {
		require.Equal(t, "shard1of2 1\n", ask("shard=1/2", "Accept", accept).Body.String())
	}
	for query, want := range map[string]string{
		"shard=2/2":           `shard: want INDEX/COUNT, COUNT 1 to 64 and INDEX from 0 to COUNT-1, got "2/2"`,
		"shard=":              `got ""`,
		"shard=0/2&shard=1/2": "shard: want one, got 2",
		"shard=%zz":           `query: invalid URL escape "%zz"`,
	} {
		w := ask(query)
		require.Equal(t, http.StatusBadRequest, w.Code, query)
		require.Contains(t, w.Body.String(), want)
	}
}

func TestScrapeIsTheRegistryAndThenTheParts(t *testing.T) {
	w := get(t, newHandler(t, own(), Options{}, onePart(), &part{text: []byte("last 1\n")}))
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", w.Header().Get("Content-Type"))
	require.Equal(t, []string{"Accept", "Accept-Encoding"}, w.Header().Values("Vary"))
	body := regexp.MustCompile(`(?m)^agentstatsd_scrape_duration_seconds.*\n`).ReplaceAllString(w.Body.String(), "")
	require.Equal(t, `# HELP agentstatsd_last_scrape_timestamp_seconds Unix time at which the newest scrape was served whole; 0: none was.
# TYPE agentstatsd_last_scrape_timestamp_seconds gauge
agentstatsd_last_scrape_timestamp_seconds 0
# HELP agentstatsd_scrape_bytes_total Bytes of scrapes handed to the network, by encoding (gzip, identity).
# TYPE agentstatsd_scrape_bytes_total counter
agentstatsd_scrape_bytes_total{encoding="gzip"} 0
agentstatsd_scrape_bytes_total{encoding="identity"} 0
# HELP agentstatsd_scrape_duration_seconds Time from a scrape's start to its last byte, by format (text, protobuf).
# TYPE agentstatsd_scrape_duration_seconds histogram
# HELP agentstatsd_scrape_errors_total Scrapes that were not served whole, by cause (gather: some own families left out; write: the client went away or was too slow; part: cut short).
# TYPE agentstatsd_scrape_errors_total counter
agentstatsd_scrape_errors_total{cause="gather"} 0
agentstatsd_scrape_errors_total{cause="part"} 0
agentstatsd_scrape_errors_total{cause="write"} 0
# HELP own_total Own.
# TYPE own_total counter
own_total 1
# HELP promhttp_metric_handler_requests_in_flight Current number of scrapes being served.
# TYPE promhttp_metric_handler_requests_in_flight gauge
promhttp_metric_handler_requests_in_flight 1
# HELP promhttp_metric_handler_requests_total Total number of scrapes by HTTP status code.
# TYPE promhttp_metric_handler_requests_total counter
promhttp_metric_handler_requests_total{code="200"} 0
promhttp_metric_handler_requests_total{code="500"} 0
promhttp_metric_handler_requests_total{code="503"} 0
# HELP part A part.
# TYPE part gauge
part{l="v"}    2
last 1
`, body)
}

// The time of a scrape is that of the newest one that was served whole.
func TestLastScrape(t *testing.T) {
	part := &part{text: []byte("last 1\n")}
	h := newHandler(t, own(), Options{}, part)
	before := time.Now()
	get(t, h)
	last := func() float64 {
		text := regexp.MustCompile(`(?m)^agentstatsd_last_scrape_timestamp_seconds (.*)$`).FindStringSubmatch(get(t, h).Body.String())
		at, err := strconv.ParseFloat(text[1], 64)
		require.NoError(t, err)
		return at
	}
	first := last()
	require.InDelta(t, before.UnixNano(), first*1e9, 1e10)
	require.Greater(t, last(), first)
}

// A family of the registry that a part has in its place is hidden while it does.
func TestHiddenFamilies(t *testing.T) {
	var hidden map[string]bool
	h := newHandler(t, own(), Options{Hidden: func() map[string]bool { return hidden }}, onePart())
	require.Contains(t, get(t, h).Body.String(), "own_total 1")
	hidden = map[string]bool{"own_total": true}
	require.NotContains(t, get(t, h).Body.String(), "own_total")
	require.Contains(t, get(t, h).Body.String(), "part{")
}

// In text a family without series has HELP and TYPE, once. In protobuf it is absent.
func TestFamiliesWithoutSeries(t *testing.T) {
	reg := metrics.NewRegistry()
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "own_total", Help: "Own \\ \"1\"."}, []string{"l"})
	require.NoError(t, reg.Register(vec))
	hidden := make(map[string]bool)
	h := newHandler(t, reg, Options{Headers: reg.Headers, Hidden: func() map[string]bool { return hidden }}, onePart())
	const header = "# HELP own_total Own \\\\ \"1\".\n# TYPE own_total counter\n"
	require.Contains(t, get(t, h).Body.String(), header+"# HELP part")
	require.NotContains(t, get(t, h, "Accept", askProto).Body.String(), "own_total")
	hidden["own_total"] = true
	require.NotContains(t, get(t, h).Body.String(), "own_total")
	delete(hidden, "own_total")
	vec.WithLabelValues("v").Inc()
	body := get(t, h).Body.String()
	require.Contains(t, body, header+"own_total{l=\"v\"} 1\n")
	require.Equal(t, 1, strings.Count(body, "# TYPE own_total"))
}

// series parses as a Prometheus server does.
func series(t *testing.T, contentType string, body []byte) map[string]float64 {
	t.Helper()
	p, err := textparse.New(body, contentType, labels.NewSymbolTable(), textparse.ParserOptions{})
	require.NoError(t, err)
	out := make(map[string]float64)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		if entry == textparse.EntrySeries {
			var l labels.Labels
			p.Labels(&l)
			_, _, v := p.Series()
			out[l.String()] = v
		}
	}
}

func TestFormatsAndEncodingsAgree(t *testing.T) {
	reg := own()
	var want map[string]float64
	for _, c := range []struct{ accept, encoding, wantType, wantEncoding string }{
		{"", "", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", ""},
		{askText, "gzip", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", "gzip"},
		{askText + ";escaping=allow-utf-8", "gzip;q=0", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", ""},
		{"application/openmetrics-text;version=1.0.0," + askText, "", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", ""},
		{"text/html,*/*;q=0.8", "br, gzip, deflate", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", "gzip"},
		{askProto, "identity", "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=underscores", ""},
		{askProto, "*", "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=underscores", "gzip"},
	} {
		// A handler each time, on a registry that has not counted yet.
		w := get(t, newHandler(t, reg, Options{}, onePart()), "Accept", c.accept, "Accept-Encoding", c.encoding)
		reg = own()
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, c.wantType, w.Header().Get("Content-Type"), c.accept)
		require.Equal(t, c.wantEncoding, w.Header().Get("Content-Encoding"), c.encoding)
		body := w.Body.Bytes()
		if c.wantEncoding == "gzip" {
			body = unzip(t, body)
		}
		got := series(t, c.wantType, body)
		require.InDelta(t, 2.0, got[`{__name__="part", l="v"}`], 0)
		require.InDelta(t, 1.0, got[`{__name__="own_total"}`], 0)
		if want == nil {
			want = got
		}
		require.Equal(t, want, got)
	}
}

// broken is a Collector that gives an error, or panics.
type broken struct{ panics bool }

func (broken) Describe(chan<- *prometheus.Desc) {}

func (b broken) Collect(ch chan<- prometheus.Metric) {
	if b.panics {
		panic("a bug")
	}
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("broken", "Broken.", nil, nil), errors.New("no value"))
}

func TestBrokenCollectorsDoNotFailTheScrape(t *testing.T) {
	for name, c := range map[string]broken{"error": {}, "panic": {panics: true}} {
		t.Run(name, func(t *testing.T) {
			reg := own()
			reg.MustRegister(c)
			h := newHandler(t, reg, Options{}, onePart())
			for range 2 {
				w := get(t, h)
				require.Equal(t, http.StatusOK, w.Code)
				require.Contains(t, w.Body.String(), "own_total 1\n")
				require.Contains(t, w.Body.String(), "part{l=\"v\"}    2\n")
			}
			require.Contains(t, get(t, h).Body.String(), "agentstatsd_scrape_errors_total{cause=\"gather\"} 2\n")
		})
	}
}

// Half a scrape must not look like a whole one.
func TestPartThatFailsCutsTheConnection(t *testing.T) {
	for _, encoding := range []string{"identity", "gzip"} {
		bad := onePart()
		bad.err = errors.New("a bug")
		reg := own()
		server := httptest.NewServer(newHandler(t, reg, Options{}, bad))
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		require.NoError(t, err)
		r.Header.Set("Accept-Encoding", encoding)
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		require.Error(t, err)
		server.Close()
		require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(errorsText(0, 1, 0)), "agentstatsd_scrape_errors_total"))
	}
}

func errorsText(gather, part, write int) string {
	var b bytes.Buffer
	b.WriteString("# HELP agentstatsd_scrape_errors_total Scrapes that were not served whole, by cause (gather: some own families left out; write: the client went away or was too slow; part: cut short).\n# TYPE agentstatsd_scrape_errors_total counter\n")
	for i, cause := range []string{"gather", "part", "write"} {
		b.WriteString("agentstatsd_scrape_errors_total{cause=\"" + cause + "\"} ")
		b.Write(metrics.AppendTextValue(nil, float64([]int{gather, part, write}[i])))
		b.WriteByte('\n')
	}
	return b.String()
}

func TestMethods(t *testing.T) {
	h := newHandler(t, own(), Options{}, onePart())
	for method, want := range map[string]int{
		http.MethodHead: http.StatusOK, http.MethodPost: http.StatusMethodNotAllowed, http.MethodDelete: http.StatusMethodNotAllowed,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
		require.Equal(t, want, w.Code, method)
		if want == http.StatusOK {
			require.Empty(t, w.Body.String())
			require.Contains(t, w.Header().Get("Content-Type"), "text/plain; version=0.0.4")
		} else {
			require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
		}
	}
}

// endless is a part that goes on for as long as it is let.
type endless struct{ err chan error }

func (p *endless) WriteText(w io.Writer) error {
	chunk := bytes.Repeat([]byte("# x\n"), 1<<16)
	for {
		if _, err := w.Write(chunk); err != nil {
			p.err <- err
			return err
		}
	}
}

func (p *endless) WriteProtobuf(w io.Writer) error     { return p.WriteText(w) }
func (p *endless) Shard(metrics.Shard) metrics.Exposer { return p }

// A client that does not read ends its own scrape only, at the deadline.
func TestSlowClient(t *testing.T) {
	p := &endless{err: make(chan error, 1)}
	reg := own()
	server := httptest.NewServer(newHandler(t, reg, Options{WriteTimeout: 50 * time.Millisecond}, p))
	defer server.Close()
	var d net.Dialer
	conn, err := d.DialContext(context.Background(), "tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	var timeout net.Error
	require.ErrorAs(t, <-p.err, &timeout)
	require.True(t, timeout.Timeout())
	server.Close() // waits for the handler
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(errorsText(0, 0, 1)), "agentstatsd_scrape_errors_total"))
}

// deadlines notes the write deadlines that a response is given, and after how
// many bytes.
type deadlines struct {
	*httptest.ResponseRecorder
	set []time.Time
	at  []int
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	d.set = append(d.set, t)
	d.at = append(d.at, d.Body.Len())
	return nil
}

// The deadline stands until all is written out, and is gone when the next
// request comes on the same connection.
func TestDeadlineEndsWithTheScrape(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		newHandler(t, own(), Options{WriteTimeout: time.Second}, onePart()).
			ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, []time.Time{time.Now().Add(time.Second), {}}, w.set)
		require.Equal(t, []int{0, w.Body.Len()}, w.at)
		require.True(t, w.Flushed)
	})
}

func TestOwnFamiliesPassTheLinter(t *testing.T) {
	reg := prometheus.NewRegistry()
	h := newHandler(t, reg, Options{})
	get(t, h)
	body := get(t, h).Body.String()
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	require.NoError(t, err)
	require.Contains(t, families, "agentstatsd_scrape_duration_seconds")
	require.Contains(t, families, "agentstatsd_scrape_bytes_total")
}

// A scrape of a new registry has all documented runtime families: those of the
// client library, and those that come with the scrape handler.
func TestScrapeHasTheDocumentedRuntimeFamilies(t *testing.T) {
	body := get(t, newHandler(t, metrics.NewRegistry(), Options{}), "Accept", askText).Body.Bytes()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	got, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	require.NoError(t, err)
	var checked int
	for _, row := range documented.Families() {
		if row.Origin != "runtime" {
			continue
		}
		name := row.Name
		checked++
		f := got[name]
		require.NotNil(t, f, name)
		require.Equal(t, row.Type, strings.ToLower(f.GetType().String()), name)
		require.NotEmpty(t, f.Metric, name)
		for _, m := range f.Metric {
			var names []string
			for _, l := range m.Label {
				names = append(names, l.GetName())
			}
			require.Equal(t, row.Labels, names, name)
		}
	}
	require.Equal(t, 36, checked)
}
