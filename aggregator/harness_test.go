package aggregator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// report is an agent.Report of a test. Its samples have encodings unless it is
// decoded.
type report struct {
	stats   agent.Stats
	samples []agent.Sample
	decoded bool
	current agent.Sample
}

func (r *report) Stats() agent.Stats { return r.stats }

func (r *report) Len() int { return len(r.samples) }

func (r *report) Match(i int, f *agent.SampleEncoding) (float64, bool) {
	s := &r.samples[i]
	if r.decoded || len(f.Head) != len(s.Name)+1 || f.Head[0] != byte(s.Type) || f.Head[1:] != s.Name {
		return 0, false
	}
	tail := f.Tail
	for _, l := range s.Labels {
		if len(tail) < len(l.Name)+len(l.Value)+2 || tail[:len(l.Name)] != l.Name || tail[len(l.Name)] != 0 ||
			tail[len(l.Name)+1:][:len(l.Value)] != l.Value || tail[len(l.Name)+1+len(l.Value)] != 0 {
			return 0, false
		}
		tail = tail[len(l.Name)+len(l.Value)+2:]
	}
	return s.Value, tail == ""
}

func (r *report) Encoding(i int) agent.SampleEncoding {
	if r.decoded {
		return agent.SampleEncoding{}
	}
	s := &r.samples[i]
	f := agent.SampleEncoding{Head: string(rune(s.Type)) + s.Name}
	for _, l := range s.Labels {
		f.Tail += l.Name + "\x00" + l.Value + "\x00"
	}
	return f
}

func (r *report) Sample(i int) *agent.Sample {
	r.current = r.samples[i]
	return &r.current
}

func sample(name string, t agent.SampleType, v float64, labelPairs ...string) agent.Sample {
	s := agent.Sample{Name: name, Type: t, Value: v}
	for i := 0; i < len(labelPairs); i += 2 {
		s.Labels = append(s.Labels, agent.Label{Name: labelPairs[i], Value: labelPairs[i+1]})
	}
	return s
}

func samples(s ...agent.Sample) *report { return &report{samples: s} }

func identity(name string) agent.Identity {
	return agent.Identity{
		Username:      "user",
		WorkspaceName: "ws",
		AgentName:     name,
		TemplateName:  "tpl",
		CreatedAt:     time.Unix(1000, 0),
	}
}

func id(n byte) agent.ID { return agent.ID{15: n} }

func newTest(t testing.TB, opts Options) *Aggregator {
	t.Helper()
	a, err := New(opts, prometheus.NewPedanticRegistry())
	require.NoError(t, err)
	return a
}

func text(t testing.TB, a *Aggregator) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, a.WriteText(&b))
	return b.String()
}

func protobuf(t testing.TB, a *Aggregator) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, a.WriteProtobuf(&b))
	return b.Bytes()
}

// alwaysFamilies are served with or without series: the stats gauges, the states
// and the three documented ones that agents forward.
const alwaysFamilies = int(statsGauges) + len(stateNames) + 3 + 1

// forwardedText returns the exposition without the stats gauges, the states, the
// documented families that have no series, and the padding of values.
func forwardedText(t testing.TB, a *Aggregator) string {
	t.Helper()
	var out strings.Builder
	for _, l := range shownLines(text(t, a)) {
		if !strings.Contains(l, "coderd_agentstats_") && !strings.Contains(l, "coderd_agents_") && !strings.Contains(l, " agent_scripts_executed_total ") {
			out.WriteString(l + "\n")
		}
	}
	return out.String()
}

func shownLines(exposition string) []string {
	var out []string
	for l := range strings.Lines(exposition) {
		l = strings.TrimSuffix(l, "\n")
		if i := strings.LastIndexByte(l, ' '); i >= 0 && l[0] != '#' {
			l = strings.TrimRight(l[:i], " ") + l[i:]
		}
		out = append(out, l)
	}
	return out
}

// scraped is what a consumer makes of an exposition: the type of each family
// and the value bits of each series.
type scraped struct {
	types  map[string]model.MetricType
	values map[string]uint64
}

func newScraped() scraped {
	return scraped{types: make(map[string]model.MetricType), values: make(map[string]uint64)}
}

func (s scraped) add(series string, v float64) error {
	if _, twice := s.values[series]; twice {
		return fmt.Errorf("series %s is there twice", series)
	}
	s.values[series] = math.Float64bits(metrics.CanonicalValue(v))
	return nil
}

// parsePrometheus parses as a Prometheus server does.
func parsePrometheus(data []byte, contentType string) (scraped, error) {
	out := newScraped()
	p, err := textparse.New(data, contentType, labels.NewSymbolTable(), textparse.ParserOptions{})
	if err != nil {
		return out, err
	}
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		switch entry {
		case textparse.EntryType:
			name, typ := p.Type()
			if _, twice := out.types[string(name)]; twice {
				return out, fmt.Errorf("family %s is there twice", name)
			}
			out.types[string(name)] = typ
		case textparse.EntrySeries:
			_, ts, v := p.Series()
			if ts != nil {
				return out, errors.New("a sample has a timestamp")
			}
			var l labels.Labels
			p.Labels(&l)
			if err := out.add(l.String(), v); err != nil {
				return out, err
			}
		}
	}
}

// parseExpfmt parses as client libraries do.
func parseExpfmt(data []byte, format expfmt.Format) (scraped, error) {
	out := newScraped()
	dec := expfmt.NewDecoder(bytes.NewReader(data), format)
	for {
		var f dto.MetricFamily
		err := dec.Decode(&f)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out.types[f.GetName()] = model.MetricType(strings.ToLower(f.GetType().String()))
		for _, m := range f.GetMetric() {
			var pairs []string
			for _, l := range m.GetLabel() {
				pairs = append(pairs, l.GetName(), l.GetValue())
			}
			add := func(suffix string, v float64, more ...string) error {
				return out.add(labels.FromStrings(slices.Concat([]string{model.MetricNameLabel, f.GetName() + suffix}, pairs, more)...).String(), v)
			}
			var err error
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				err = add("", m.GetCounter().GetValue())
			case dto.MetricType_GAUGE:
				err = add("", m.GetGauge().GetValue())
			case dto.MetricType_SUMMARY:
				err = errors.Join(add("_count", float64(m.GetSummary().GetSampleCount())), add("_sum", m.GetSummary().GetSampleSum()))
			case dto.MetricType_HISTOGRAM:
				err = errors.Join(add("_count", float64(m.GetHistogram().GetSampleCount())), add("_sum", m.GetHistogram().GetSampleSum()),
					add("_bucket", float64(m.GetHistogram().GetSampleCount()), "le", "+Inf"))
			default:
				err = add("", m.GetUntyped().GetValue())
			}
			if err != nil {
				return out, err
			}
		}
	}
}

const (
	textType  = "text/plain; version=0.0.4; charset=utf-8"
	protoType = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)

// scrapeBoth writes both formats, has both of them parsed by Prometheus's parser and
// by expfmt, and returns what all four agree on.
func scrapeBoth(a metrics.Exposer) (scraped, error) {
	var txt, pb bytes.Buffer
	if err := errors.Join(a.WriteText(&txt), a.WriteProtobuf(&pb)); err != nil {
		return scraped{}, err
	}
	if bytes.Contains(txt.Bytes(), []byte("\n\n")) || strings.HasPrefix(txt.String(), "\n") {
		return scraped{}, errors.New("the text has an empty line")
	}
	want, err := parsePrometheus(txt.Bytes(), textType)
	if err != nil {
		return want, fmt.Errorf("text by textparse: %w\n%s", err, &txt)
	}
	for name, parse := range map[string]func() (scraped, error){
		"protobuf by textparse": func() (scraped, error) { return parsePrometheus(pb.Bytes(), protoType) },
		"text by expfmt":        func() (scraped, error) { return parseExpfmt(txt.Bytes(), expfmt.FmtText) },
		"protobuf by expfmt":    func() (scraped, error) { return parseExpfmt(pb.Bytes(), expfmt.FmtProtoDelim) },
	} {
		got, err := parse()
		if err != nil {
			return want, fmt.Errorf("%s: %w", name, err)
		}
		if diff := diffValues(want.values, got.values); diff != "" {
			return want, fmt.Errorf("%s differs from text by textparse:\n%s", name, diff)
		}
		for family, typ := range got.types {
			// To Prometheus untyped is unknown.
			w := want.types[family]
			if typ != w && (typ != model.MetricTypeUnknown && typ != "untyped" || w != model.MetricTypeUnknown && w != "untyped") {
				return want, fmt.Errorf("%s: family %s is a %s, not a %s", name, family, typ, w)
			}
		}
	}
	return want, nil
}

// diffValues returns a line for each series in which the two differ.
func diffValues(want, got map[string]uint64) string {
	var out []string
	for s, w := range want {
		if g, ok := got[s]; !ok {
			out = append(out, fmt.Sprintf("- %s %v", s, math.Float64frombits(w)))
		} else if g != w {
			out = append(out, fmt.Sprintf("~ %s %v, not %v", s, math.Float64frombits(g), math.Float64frombits(w)))
		}
	}
	for s, g := range got {
		if _, ok := want[s]; !ok {
			out = append(out, fmt.Sprintf("+ %s %v", s, math.Float64frombits(g)))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func value(s scraped, series string) float64 { return math.Float64frombits(s.values[series]) }

// refusals are those of what Report returns.
func refusals(refused []agent.Refusal, _ int) []agent.Refusal { return refused }

// servedFamilies are families that coderd pushes.
type servedFamilies []*metrics.Rendered

// Served implements Pushed.
func (s servedFamilies) Served() ([]*metrics.Rendered, map[string]bool) { return s, nil }

// pushedFamily is a family of one series with the value 1. It has as many observations
// if it is a histogram or summary.
func pushedFamily(name string, t metrics.Type) *dto.MetricFamily {
	one := proto.Float64(1)
	m := &dto.Metric{Label: []*dto.LabelPair{{Name: proto.String("by"), Value: proto.String("coderd")}}}
	f := &dto.MetricFamily{Name: &name, Help: proto.String("Pushed."), Metric: []*dto.Metric{m}}
	switch t {
	case metrics.Counter:
		f.Type, m.Counter = dto.MetricType_COUNTER.Enum(), &dto.Counter{Value: one}
	case metrics.Gauge:
		f.Type, m.Gauge = dto.MetricType_GAUGE.Enum(), &dto.Gauge{Value: one}
	case metrics.Summary:
		f.Type, m.Summary = dto.MetricType_SUMMARY.Enum(), &dto.Summary{SampleCount: proto.Uint64(1), SampleSum: one}
	case metrics.Histogram:
		f.Type = dto.MetricType_HISTOGRAM.Enum()
		m.Histogram = &dto.Histogram{SampleCount: proto.Uint64(1), SampleSum: one, Bucket: []*dto.Bucket{
			{UpperBound: proto.Float64(math.Inf(1)), CumulativeCount: proto.Uint64(1)},
		}}
	default:
		f.Type, m.Untyped = dto.MetricType_UNTYPED.Enum(), &dto.Untyped{Value: one}
	}
	return f
}

// parsed returns what Prometheus makes of families.
func parsed(t require.TestingT, families []*metrics.Rendered) scraped {
	var text []byte
	for _, r := range families {
		text = append(text, r.Text...)
	}
	out, err := parsePrometheus(text, textType)
	require.NoError(t, err)
	return out
}
