package metrics

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func TestTextHeader(t *testing.T) {
	require.Equal(t, "# HELP a with \\\\ and \\n, \"quoted\"\n# TYPE a counter\n",
		string(AppendTextHeader(nil, "a", "with \\ and \n, \"quoted\"", Counter)))
	require.Equal(t, "x# TYPE a untyped\n", string(AppendTextHeader([]byte("x"), "a", "", Untyped)))
}

func TestTextValue(t *testing.T) {
	for _, c := range []struct {
		v    float64
		want string
	}{
		{0, "0"},
		{math.Copysign(0, -1), "-0"},
		{1, "1"},
		{-12345678901, "-12345678901"},
		{1 << 53, "9007199254740992"},
		{1 << 54, "1.8014398509481984e+16"},
		{0.1, "0.1"},
		{-2.25, "-2.25"},
		{0.000123, "0.000123"},
		{999999.999999, "999999.999999"},
		{1234567.5, "1.2345675e+06"},
		{1e-7, "1e-07"},
		{math.NaN(), "NaN"},
		{math.Inf(1), "+Inf"},
		{math.Inf(-1), "-Inf"},
		{-math.MaxFloat64, "-1.7976931348623157e+308"},
		{math.SmallestNonzeroFloat64, "5e-324"},
	} {
		got := string(AppendTextValue(nil, c.v))
		require.Equal(t, c.want, got)
		require.LessOrEqual(t, len(got), MaxValueBytes)
		checkPut(t, c.v, c.want)
	}
}

// checkPut puts a value into fields that have room for it, and into one that has
// not.
func checkPut(t *testing.T, v float64, text string) {
	t.Helper()
	field := make([]byte, MaxValueBytes)
	for size := range field {
		for i := range field {
			field[i] = 'x'
		}
		want := strings.Repeat("x", size)
		if size >= len(text) {
			want = strings.Repeat(" ", size-len(text)) + text
		}
		if fits := PutTextValue(field[:size], v); fits != (size >= len(text)) || string(field[:size]) != want || field[size] != 'x' {
			t.Fatalf("%v in %d bytes: %t, want %q, got %q", v, size, fits, want, field)
		}
	}
}

// Whole numbers with any number of digits are written where they stand.
func TestPutWholeNumbers(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	for p := uint64(1); p <= 1e15; p *= 10 {
		for _, n := range []uint64{p - 1, p, p + 1, p + random.Uint64N(9*p)} {
			checkPut(t, float64(n), strconv.FormatUint(n, 10))
			checkPut(t, -float64(n), string(AppendTextValue(nil, -float64(n))))
		}
	}
}

// Decimals are written as strconv does, and so are the values next to them.
func TestDecimals(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for range 300_000 {
		v := float64(random.IntN(1e10)) / math.Pow10(1+random.IntN(8))
		for _, v := range []float64{v, -v, math.Nextafter(v, 0), math.Nextafter(v, math.Inf(1))} {
			if v == math.Trunc(v) {
				continue // whole numbers have no exponent
			}
			var scratch [2][MaxValueBytes]byte
			want := strconv.AppendFloat(scratch[0][:0], v, 'g', -1, 64)
			if got := AppendTextValue(scratch[1][:0], v); string(got) != string(want) {
				t.Fatalf("want %s, got %s", want, got)
			}
		}
	}
}

func BenchmarkTextValue(b *testing.B) {
	for name, value := range map[string]float64{"whole": 12345, "decimal": 12.345, "longest": 12345.0 / 7} {
		b.Run(name, func(b *testing.B) {
			var scratch [MaxValueBytes]byte
			for b.Loop() {
				AppendTextValue(scratch[:0], value)
			}
		})
		b.Run(name+", put", func(b *testing.B) {
			var field [MaxValueBytes]byte
			for b.Loop() {
				PutTextValue(field[:], value)
			}
		})
	}
}

func TestProtoHeader(t *testing.T) {
	for _, typ := range []Type{Untyped, Counter, Gauge, Summary, Histogram} {
		var f dto.MetricFamily
		header := AppendProtoHeader(nil, "a", "help", typ)
		require.Equal(t, SizeProtoHeader("a", "help", typ), len(header))
		require.Equal(t, SizeProtoHeader("a", "", typ), len(AppendProtoHeader(nil, "a", "", typ)))
		require.NoError(t, proto.Unmarshal(header, &f))
		require.Equal(t, "a", f.GetName())
		require.Equal(t, "help", f.GetHelp())
		require.NotNil(t, f.Type)
		require.Equal(t, strings.ToUpper(typ.String()), f.GetType().String())
	}
}

// Lengths of metrics are varints of one, two or three bytes.
func TestProtoMetricOfAnyLength(t *testing.T) {
	for _, size := range []int{0, 1, 90, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 127, 128, 1000,
		16350, 16360, 16361, 16362, 16363, 16364, 16365, 16366, 16367, 16368, 16384, 40000} {
		value := strings.Repeat("v", size)
		checkMetric(t, "l", value, 1)
	}
}

// Padding of any size is passed over by all parsers.
func TestProtoPadding(t *testing.T) {
	for n := range 1000 {
		if n == 1 {
			continue
		}
		require.Len(t, AppendProtoPadding(nil, n), n)
		family := AppendProtoHeader(nil, "a", "", Gauge)
		family = AppendProtoMetric(family, []byte(`l="1"`), Gauge, 1)
		family = AppendProtoPadding(family, n)
		family = AppendProtoMetric(family, []byte(`l="2"`), Gauge, 2)
		family = AppendProtoPadding(family, n)
		body := append(protowire.AppendVarint(nil, uint64(len(family))), family...)
		// One that has nothing but padding.
		empty := AppendProtoPadding(AppendProtoHeader(nil, "b", "", Counter), n)
		body = append(protowire.AppendVarint(body, uint64(len(empty))), empty...)
		want := map[string]float64{`{__name__="a", l="1"}`: 1, `{__name__="a", l="2"}`: 2}
		require.Equal(t, want, prometheusSeries(t, body))
		var f dto.MetricFamily
		dec := expfmt.NewDecoder(bytes.NewReader(body), expfmt.NewFormat(expfmt.TypeProtoDelim))
		require.NoError(t, dec.Decode(&f))
		require.Len(t, f.Metric, 2)
		require.NoError(t, dec.Decode(&f))
	}
}

// prometheusSeries parses delimited protobuf as a Prometheus server does.
func prometheusSeries(t *testing.T, body []byte) map[string]float64 {
	t.Helper()
	p, err := textparse.New(body, string(expfmt.NewFormat(expfmt.TypeProtoDelim)), labels.NewSymbolTable(), textparse.ParserOptions{})
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

func FuzzValue(f *testing.F) {
	f.Add(uint64(0))
	f.Add(math.Float64bits(1e21))
	f.Add(math.Float64bits(-1 << 53))
	f.Fuzz(func(t *testing.T, bits uint64) {
		v := math.Float64frombits(bits)
		text := string(AppendTextValue([]byte("x"), v))[1:]
		checkPut(t, v, text)
		if len(text) > MaxValueBytes {
			t.Fatalf("%v is rendered in %d bytes", v, len(text))
		}
		if want := strconv.FormatFloat(v, 'g', -1, 64); v != math.Trunc(v) && text != want {
			t.Fatalf("want %s, got %s", want, text)
		}
		got, err := strconv.ParseFloat(text, 64)
		if err != nil || math.Float64bits(got) != bits && !(math.IsNaN(v) && math.IsNaN(got)) {
			t.Fatalf("%v is rendered as %s", v, text)
		}
	})
}

// Any label comes out of both formats as it went in.
func FuzzLabel(f *testing.F) {
	f.Add("l", "", uint64(1))
	f.Add("l", "\\\"\n,={}", uint64(1))
	f.Add("l", "ends in \\", uint64(1))
	f.Add("l", "\\\\n\\\"é\x00\r", math.Float64bits(math.Inf(1)))
	f.Fuzz(func(t *testing.T, name, value string, bits uint64) {
		if CheckLabel(name, "") != "" || !utf8.ValidString(value) {
			return
		}
		checkMetric(t, name, value, math.Float64frombits(bits))
	})
}

func checkMetric(t *testing.T, name, value string, v float64) {
	t.Helper()
	labels := AppendTextLabel(nil, name, value)
	labels = AppendTextLabel(append(labels, ','), "z_"+name, value)
	want := []*dto.LabelPair{
		{Name: &name, Value: &value},
		{Name: proto.String("z_" + name), Value: &value},
	}

	line := append(append([]byte("# TYPE a gauge\na{"), labels...), "} "...)
	line = append(AppendTextValue(line, v), '\n')
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(line))
	require.NoError(t, err, "%q", line)
	compareMetric(t, want, v, families["a"])

	for _, typ := range []Type{Untyped, Counter, Gauge} {
		message := AppendProtoMetric(AppendProtoHeader(nil, "a", "", typ), labels, typ, v)
		var f dto.MetricFamily
		require.NoError(t, proto.Unmarshal(message, &f))
		require.Empty(t, f.ProtoReflect().GetUnknown())
		compareMetric(t, want, v, &f)
		for _, other := range []Type{Counter, Gauge, Untyped, typ} {
			changed := AppendProtoMetric(nil, labels, typ, v)
			SetProtoMetricType(changed, other)
			SetProtoMetricValue(changed, v+1)
			require.Equal(t, AppendProtoMetric(nil, labels, other, v+1), changed)
		}
		// The shortest form, as the library makes it.
		require.Equal(t, proto.Size(&f), len(message))
	}
}

func compareMetric(t *testing.T, want []*dto.LabelPair, v float64, f *dto.MetricFamily) {
	t.Helper()
	require.Len(t, f.GetMetric(), 1)
	m := f.Metric[0]
	require.Len(t, m.Label, len(want))
	for i := range want {
		require.Equal(t, want[i].GetName(), m.Label[i].GetName())
		require.Equal(t, want[i].GetValue(), m.Label[i].GetValue())
	}
	var got *float64
	switch f.GetType() {
	case dto.MetricType_COUNTER:
		got = m.GetCounter().Value
	case dto.MetricType_GAUGE:
		got = m.GetGauge().Value
	default:
		got = m.GetUntyped().Value
	}
	require.NotNil(t, got)
	if !(math.IsNaN(v) && math.IsNaN(*got)) {
		require.Equal(t, math.Float64bits(v), math.Float64bits(*got))
	}
}

func BenchmarkProtoMetric(b *testing.B) {
	labels := []byte(`agent_name="main",path="derp",reason="acl",template_name="tpl",username="developer",workspace_name="ws"`)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendProtoMetric(buf[:0], labels, Gauge, 1)
	}
}
