package targets

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func collect(read func(*collector, *bufio.Reader) error, body []byte) (*collector, error) {
	c := &collector{maxFamilyBytes: 1000, skip: func(string, string) string { return "" }}
	return c, read(c, bufio.NewReaderSize(bytes.NewReader(body), 16))
}

// names returns the families of a snapshot, and those that are left out as -name:reason.
func names(t require.TestingT, c *collector) (out []string) {
	for _, encoded := range c.families {
		var f dto.MetricFamily
		require.NoError(t, proto.Unmarshal(encoded, &f))
		out = append(out, f.GetName())
	}
	for _, l := range c.leftOut {
		out = append(out, "-"+l.name+":"+l.reason)
	}
	return out
}

func TestText(t *testing.T) {
	for body, want := range map[string]string{
		"":        "[]",
		"\n# x\n": "[]",
		"a 1\nb{c=\"d\"} 2\n# TYPE e counter\ne 3\ne{x=\"y\"} 4":                                               "[a b e]",
		"# HELP a x\n# TYPE a summary\na{quantile=\"1\"} 1\na_sum 1\na_count 1\n# HELP a_other x\na_other 1\n": "[a a_other]",
		"# TYPE a counter\n# TYPE b counter\nb 1\n":                                                            "[b]",
		"a 1\nb x\nc 1\n":                                                   "[a c -b:malformed]",
		"a 1\n}{\nc 1\n":                                                    "[a c -}:malformed]",
		"{\"a.b\",c=\"d\"} 1\nc 1\n":                                        "[a.b c]",
		"# TYPE a nothing\na 1\n# TYPE b gauge\nb 1\n":                      "[b -a:malformed]",
		"a{b=\"" + strings.Repeat("x", 1000) + "\"} 1\n\tc 1\n":             "[c -a:message_size]",
		"# HELP a x\n# TYPE a gauge\na 1\n# HELP c x\n# TYPE c gauge\nc{ 1": "[a -c:malformed]",
	} {
		c, err := collect((*collector).readText, []byte(body))
		require.NoError(t, err)
		require.Equal(t, want, fmt.Sprint(names(t, c)), "%q", body)
	}
}

func TestDelimited(t *testing.T) {
	encode := func(families ...*dto.MetricFamily) []byte {
		var b bytes.Buffer
		for _, f := range families {
			_, err := protodelim.MarshalTo(&b, f)
			require.NoError(t, err)
		}
		return b.Bytes()
	}
	family := func(name string) *dto.MetricFamily {
		return &dto.MetricFamily{Name: &name, Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: proto.Float64(1)}}}}
	}
	// In the middle is a family whose metric is none.
	broken := []byte{7, 0x0a, 1, 'b', 0x22, 2, 0xff, 0xff}
	body := slices.Concat(encode(family("a")), broken, encode(family("c"), family(strings.Repeat("d", 1000))))
	c, err := collect((*collector).readDelimited, body)
	require.NoError(t, err)
	require.Equal(t, "[a c -b:malformed -:message_size]", fmt.Sprint(names(t, c)), "a name that is longer than the buffer is not read")
	require.Equal(t, 2, c.samples)

	for _, cut := range []int{1, 5, len(body) - 1} {
		_, err = collect((*collector).readDelimited, body[:cut])
		var m *malformedError
		require.ErrorAs(t, err, &m)
	}
	for _, length := range [][]byte{bytes.Repeat([]byte{0xff}, 20), {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, {0x80}} {
		_, err = collect((*collector).readDelimited, length)
		var m *malformedError
		require.ErrorAs(t, err, &m)
	}
	_, err = collect((*collector).readDelimited, []byte{5, 1})
	require.False(t, errors.Is(err, io.EOF))
}

// What is too large is not kept, and what is too many not parsed.
func TestLimitsOfABody(t *testing.T) {
	series := strings.Repeat("a{b=\"c\"} 1\n", 1000)
	c, err := collect((*collector).readText, []byte("# HELP a help\n# TYPE a gauge\n"+series+"d 1\n"))
	require.NoError(t, err)
	require.Equal(t, "[d -a:message_size]", fmt.Sprint(names(t, c)))
	c, err = collect((*collector).readText, []byte(series))
	require.NoError(t, err)
	require.Equal(t, "[-a:message_size]", fmt.Sprint(names(t, c)))

	// The help of a large family says that it is of agents, whatever its length.
	body := protowire.AppendBytes(protowire.AppendTag(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte("a")), 2, protowire.BytesType), []byte("help"))
	body = protowire.AppendBytes(protowire.AppendTag(body, 4, protowire.BytesType), make([]byte, 2000))
	c = &collector{maxFamilyBytes: 1000, skip: func(name, help string) string { return name + " " + help }}
	require.NoError(t, c.readDelimited(bufio.NewReaderSize(bytes.NewReader(protowire.AppendBytes(nil, body)), 16)))
	require.Equal(t, map[string]int{"a help": 1}, c.reasons)

	var many strings.Builder
	for i := range maxFamilies + 100 {
		fmt.Fprintf(&many, "a%d 1\n}{ 1\n", i)
	}
	c, err = collect((*collector).readText, []byte(many.String()))
	require.NoError(t, err)
	require.Len(t, c.families, maxFamilies)
	require.Len(t, c.leftOut, maxLeftOut)
	require.Equal(t, map[string]int{reasonMalformed: maxFamilies - 1, reasonTooMany: 201}, c.reasons)
}

// Cut into families, a body has what it has as a whole.
func TestTextIsThatOfTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b bytes.Buffer
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-c]{1,2}(_sum|_count|_bucket)?`), 0, 8, rapid.ID).Draw(t, "names")
		slices.Sort(names)
		for _, name := range names {
			f := &dto.MetricFamily{Name: &name}
			if rapid.Bool().Draw(t, "help") {
				f.Help = proto.String(rapid.StringMatching(`[a-z \n\\#]{0,10}`).Draw(t, "text"))
			}
			labels := []*dto.LabelPair{{Name: proto.String("l"), Value: proto.String(rapid.StringMatching(`[a-z{} \n"\\#]{0,10}`).Draw(t, "value"))}}
			switch kind := rapid.SampledFrom([]dto.MetricType{dto.MetricType_COUNTER, dto.MetricType_GAUGE, dto.MetricType_UNTYPED}).Draw(t, "type"); kind {
			case dto.MetricType_COUNTER:
				f.Type, f.Metric = &kind, []*dto.Metric{{Label: labels, Counter: &dto.Counter{Value: proto.Float64(1)}}}
			case dto.MetricType_GAUGE:
				f.Type, f.Metric = &kind, []*dto.Metric{{Label: labels, Gauge: &dto.Gauge{Value: proto.Float64(1)}}}
			default:
				f.Type, f.Metric = &kind, []*dto.Metric{{Label: labels, Untyped: &dto.Untyped{Value: proto.Float64(1)}}}
			}
			_, err := expfmt.MetricFamilyToText(&b, f)
			require.NoError(t, err)
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		whole, err := parser.TextToMetricFamilies(bytes.NewReader(b.Bytes()))
		require.NoError(t, err)
		c, err := collect((*collector).readText, b.Bytes())
		require.NoError(t, err)
		require.Empty(t, c.leftOut)
		require.Len(t, c.families, len(whole))
		for _, encoded := range c.families {
			var f dto.MetricFamily
			require.NoError(t, proto.Unmarshal(encoded, &f))
			require.True(t, proto.Equal(whole[f.GetName()], &f), "%v", &f)
		}
	})
}

func FuzzFamilies(f *testing.F) {
	f.Add([]byte("# HELP a b\na 1\n"))
	f.Add([]byte{3, 0x0a, 1, 'b'})
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, read := range []func(*collector, *bufio.Reader) error{(*collector).readText, (*collector).readDelimited} {
			c, _ := collect(read, body)
			names(t, c)
		}
	})
}
