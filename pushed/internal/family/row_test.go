package family

import (
	"bytes"
	"encoding/gob"
	"math"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

func newCodec(t *testing.T) *Codec {
	t.Helper()
	c, err := NewCodec()
	require.NoError(t, err)
	return c
}

// everything is a family of each type with all that it can have.
var everything = []string{
	`name: "c" type: COUNTER help: "help" metric { label { name: "l" value: "v" } counter { value: 2.5 created_timestamp { seconds: 7 }
		exemplar { value: 1 timestamp { seconds: 9 } label { name: "trace" value: "t" } } } }`,
	`name: "g" type: GAUGE metric { gauge { value: -1 } } metric { label { name: "l" value: "v" } gauge { value: inf } }`,
	`name: "u" type: UNTYPED metric { untyped { value: 3 } }`,
	`name: "s" type: SUMMARY metric { summary { sample_count: 3 sample_sum: 4 created_timestamp { seconds: 7 } quantile { quantile: 0.5 value: 1 } } }`,
	`name: "h" type: HISTOGRAM metric { histogram { sample_count: 3 sample_sum: 4 created_timestamp { seconds: 7 }
		bucket { upper_bound: 1 cumulative_count: 2 exemplar { value: 0.5 label { name: "trace" value: "t" } } }
		bucket { upper_bound: inf cumulative_count: 3 exemplar { value: 5 timestamp { seconds: 9 } } } } }`,
	`name: "n" type: HISTOGRAM metric { histogram { sample_count: 3 sample_sum: 4 schema: 3 zero_threshold: 0.001 zero_count: 1
		positive_span { offset: 1 length: 1 } positive_delta: 1 negative_span { offset: 1 length: 1 } negative_delta: 1
		exemplars { value: 1 timestamp { seconds: 9 } } } }`,
}

func admitEverything(t *testing.T, old Set) Set {
	t.Helper()
	var raw [][]byte
	for _, text := range everything {
		var f dto.MetricFamily
		require.NoError(t, prototext.Unmarshal([]byte(text), &f))
		raw = append(raw, serialize(t, &f)...)
	}
	a := &Admission{Limits: limits, Received: received, Old: old, Types: ChooseTypes([]Set{old}), MaxRowLines: math.MaxInt}
	got := a.Admit(DecodeSnapshot(raw, limits, received, false))
	for _, r := range got.Refused {
		require.Empty(t, r)
	}
	require.Len(t, got.Families, len(everything))
	return got.Families
}

// A row is read as it was written: nothing that is served is left out.
func TestRowsAreReadAsWritten(t *testing.T) {
	c := newCodec(t)
	families := admitEverything(t, nil)
	row := &Row{
		Interval: time.Minute, Snapshot: 5, Final: true, Families: families,
		Refused: []agent.PushRefusal{{Name: "x", Reason: "undecodable", Message: "no", Series: 2}},
	}
	data, err := c.Encode(row)
	require.NoError(t, err)
	got, omitted, err := c.Decode(data, false)
	require.NoError(t, err)
	require.Zero(t, omitted)
	require.Equal(t, row, got)
	for name, f := range families {
		want, err := Render(f)
		require.NoError(t, err)
		stored, err := Render(got.Families[name])
		require.NoError(t, err)
		require.Equal(t, want, stored)
	}
	again, err := c.Encode(got)
	require.NoError(t, err)
	require.Equal(t, data, again)

	// Of one whose counts are part of the totals the bases follow from its values.
	row.Folded, row.Families = true, families.Fold()
	data, err = c.Encode(row)
	require.NoError(t, err)
	got, _, err = c.Decode(data, false)
	require.NoError(t, err)
	require.Equal(t, row, got)
	require.ElementsMatch(t, []string{"c", "s", "h", "n"}, got.Families.Names())
}

// A row that is not one of Encode's is refused.
func TestRowsThatCannotBeDecoded(t *testing.T) {
	c := newCodec(t)
	compressor, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	encoded := func(families ...*Family) []byte {
		var plain bytes.Buffer
		require.NoError(t, gob.NewEncoder(&plain).Encode(&encodedRow{Families: families}))
		return compressor.EncodeAll(plain.Bytes(), nil)
	}
	labels := func(value string) string { return "l" + labelEnd + value + labelEnd }
	bounds := &Distribution{Count: 1, Bounds: []float64{1}}
	total := &Family{Name: "h", Type: metrics.Histogram, Series: []Series{{BaseHist: &Distribution{Count: 1}}}}
	for name, data := range map[string][]byte{
		"empty":           nil,
		"no zstd":         []byte("garbage"),
		"cut":             encoded(total)[:20],
		"no gob":          compressor.EncodeAll([]byte("garbage"), nil),
		"no distribution": encoded(&Family{Name: "h", Type: metrics.Histogram, Series: []Series{{}}}),
		"not sorted":      encoded(&Family{Name: "g", Type: metrics.Gauge, Series: []Series{{Labels: labels("b")}, {Labels: labels("a")}}}),
		"no counts":       encoded(&Family{Name: "h", Type: metrics.Histogram, Series: []Series{{Hist: bounds}}}),
		"not of totals":   encoded(total),
	} {
		_, _, err := c.Decode(data, false)
		require.Error(t, err, name)
	}
	_, omitted, err := c.Decode(encoded(total), true)
	require.NoError(t, err)
	require.Zero(t, omitted)
}

// What is no number any more is left out and counted, each value once. A sum in the
// totals may be beyond what one instance may count.
func TestRowsOmitWhatIsNoNumber(t *testing.T) {
	c := newCodec(t)
	beyond := 2 * float64(maxTerm)
	for _, v := range []float64{1e300, math.NaN(), math.Inf(1), math.Inf(-1), beyond} {
		data, err := c.Encode(&Row{Families: Set{
			"c": {Name: "c", Type: metrics.Counter, Series: []Series{{Value: v, Base: ExactSum{v}}}},
			"g": {Name: "g", Type: metrics.Gauge, Series: []Series{{Value: v}}},
			"s": {Name: "s", Type: metrics.Summary, Series: []Series{{
				Hist: &Distribution{Count: 2, Sum: ExactSum{v}}, BaseHist: &Distribution{Count: 2, Sum: ExactSum{v}},
			}}},
		}})
		require.NoError(t, err)
		for _, isTotals := range []bool{false, true} {
			got, omitted, err := c.Decode(data, isTotals)
			require.NoError(t, err)
			want := 4
			switch {
			case v == beyond && isTotals:
				want = 0
			case v == beyond:
				want = 2
			}
			require.Equal(t, want, omitted, "%v", v)
			if want == 4 {
				require.Equal(t, Series{}, got.Families["c"].Series[0])
				require.Equal(t, 2.0, got.Families["s"].Series[0].Hist.Count)
			}
			require.Equal(t, math.IsNaN(v), math.IsNaN(got.Families["g"].Series[0].Value), "gauges stay")
		}
	}
}

// Rows of before have the exemplars of buckets without their content.
func TestRowsOmitEmptyExemplars(t *testing.T) {
	c := newCodec(t)
	whole := Exemplar{Value: 1, Time: 5}
	data, err := c.Encode(&Row{Families: Set{"h": {Name: "h", Type: metrics.Histogram, Series: []Series{{
		Hist: &Distribution{Count: 2, Bounds: []float64{1}, Counts: []float64{1}, Exemplars: []BucketExemplar{{Bound: 1}, {math.Inf(1), whole}}},
	}}}}})
	require.NoError(t, err)
	got, _, err := c.Decode(data, false)
	require.NoError(t, err)
	require.Equal(t, []BucketExemplar{{math.Inf(1), whole}}, got.Families["h"].Series[0].Hist.Exemplars)
}

// Rows of before have series that coderd forwarded for its agents.
func TestRowsOmitForwardedSeries(t *testing.T) {
	c := newCodec(t)
	series := func(label string) Series { return Series{Labels: label + labelEnd + "v" + labelEnd, Value: 1} }
	data, err := c.Encode(&Row{Families: Set{
		"a_total":                       {Name: "a_total", Type: metrics.Counter, Series: []Series{series("agent_name")}},
		"b":                             {Name: "b", Type: metrics.Gauge, Series: []Series{series("l"), series("username"), series("workspace_name")}},
		"c":                             {Name: "c", Type: metrics.Gauge, Help: metrics.ForwardedHelp, Series: []Series{series("template_name")}},
		"coderd_workspace_builds_total": {Name: "coderd_workspace_builds_total", Type: metrics.Counter, Series: []Series{series("workspace_name")}},
	}})
	require.NoError(t, err)
	got, omitted, err := c.Decode(data, false)
	require.NoError(t, err)
	require.Zero(t, omitted)
	require.ElementsMatch(t, []string{"b", "coderd_workspace_builds_total"}, got.Families.Names())
	require.Len(t, got.Families["b"].Series, 1)
}
