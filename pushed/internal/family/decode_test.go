package family

import (
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/prototext"
)

// Each of these families is refused for its reason, and nothing else is.
func TestRefused(t *testing.T) {
	const hist = `name: "h" type: HISTOGRAM metric { histogram { %s } }`
	const native = `sample_count: 3 sample_sum: 3 schema: 0 zero_threshold: 0.001 `
	for in, reason := range map[string]string{
		`name: "go_goroutines" type: GAUGE`:                    "owned_by_service",
		`name: "coderd_agents_up" type: GAUGE`:                 "owned_by_service",
		`name: "agentstatsd_x" type: GAUGE`:                    "owned_by_service",
		`name: "a b" type: GAUGE`:                              "invalid_name",
		`name: "" type: GAUGE`:                                 "invalid_name",
		`name: "` + strings.Repeat("a", 201) + `" type: GAUGE`: "name_too_long",
		`name: "a"`:                                                 "unknown_type",
		`name: "a" type: GAUGE_HISTOGRAM`:                           "unknown_type",
		`name: "coderd_license_errors" type: COUNTER`:               "type_mismatch",
		`name: "a" type: GAUGE metric { counter { value: 1 } }`:     "missing_value",
		`name: "a" type: COUNTER metric { counter { value: -1 } }`:  "invalid_counter",
		`name: "a" type: COUNTER metric { counter { value: nan } }`: "invalid_counter",
		`name: "a" type: COUNTER metric { counter { value: inf } }`: "invalid_counter",
		`name: "a" type: GAUGE metric { gauge { value: 1 } } metric { gauge { value: 2 } label { name: "x" } }`:                "duplicate_series",
		`name: "a" type: GAUGE metric { label { name: "x-y" value: "1" } gauge {} }`:                                           "invalid_label_name",
		`name: "a" type: GAUGE metric { label { name: "__name__" value: "b" } gauge {} }`:                                      "reserved_label",
		`name: "a" type: GAUGE metric { label { name: "x" value: "\xff" } gauge {} }`:                                          "invalid_label_value",
		`name: "a" type: GAUGE metric { label { name: "x" value: "1" } label { name: "x" } gauge {} }`:                         "duplicate_label",
		`name: "a" type: GAUGE metric { label { name: "x" value: "` + strings.Repeat("v", 32<<10+1) + `" } gauge {} }`:         "label_value_too_long",
		`name: "a" type: GAUGE metric { label { name: "` + strings.Repeat("n", 129) + `" value: "v" } gauge {} }`:              "label_name_too_long",
		`name: "a" type: GAUGE metric { ` + strings.Repeat(`label { name: "x" value: "1" } `, 33) + ` gauge {} }`:              "too_many_labels",
		`name: "a" type: SUMMARY metric { label { name: "quantile" value: "1" } summary {} }`:                                  "reserved_label",
		`name: "a" type: SUMMARY metric { summary { sample_count: 9007199254740994 } }`:                                        "invalid_summary",
		`name: "a" type: SUMMARY metric { summary { quantile { quantile: 1.5 } } }`:                                            "invalid_summary",
		`name: "a" type: SUMMARY metric { summary { quantile { quantile: nan } } }`:                                            "invalid_summary",
		`name: "a" type: SUMMARY metric { summary { quantile { quantile: 0.5 } quantile { quantile: 0.5 value: 1 } } }`:        "invalid_summary",
		`name: "a" type: SUMMARY metric { summary { ` + strings.Repeat(`quantile {} `, 65) + `} }`:                             "invalid_summary",
		`name: "a" type: COUNTER metric { counter { value: 2e19 } }`:                                                           "invalid_counter",
		`name: "a" type: GAUGE metric { gauge { value: 1 } } metric { gauge { value: 2 } }`:                                    "duplicate_series",
		`name: "h" type: HISTOGRAM metric { label { name: "le" value: "1" } histogram {} }`:                                    "reserved_label",
		h(hist, `sample_count: 9007199254740994`):                                                                              "invalid_histogram",
		h(hist, `sample_count: 1 bucket { upper_bound: nan }`):                                                                 "invalid_histogram",
		h(hist, `sample_count: 1 bucket { upper_bound: 2 } bucket { upper_bound: 1 }`):                                         "invalid_histogram",
		h(hist, `sample_count: 1 bucket { upper_bound: 2 } bucket { upper_bound: 2 }`):                                         "invalid_histogram",
		h(hist, `sample_count: 3 bucket { upper_bound: 1 cumulative_count: 2 } bucket { upper_bound: 2 cumulative_count: 1 }`): "invalid_histogram",
		h(hist, `sample_count: 3 bucket { upper_bound: 1 cumulative_count: 4 }`):                                               "invalid_histogram",
		h(hist, `sample_count: 3 bucket { upper_bound: inf cumulative_count: 2 }`):                                             "invalid_histogram",
		h(hist, native+`positive_span { offset: 0 length: 2 } positive_delta: 3`):                                              "invalid_native_histogram",
		h(hist, native+`positive_span { offset: 0 length: 1 } positive_delta: 2`):                                              "invalid_native_histogram",
		h(hist, native+`positive_span { offset: 0 length: 2 } positive_delta: 4 positive_delta: -5`):                           "invalid_native_histogram",
		h(hist, native+`positive_span { offset: 2000000 length: 1 } positive_delta: 3`):                                        "invalid_native_histogram",
		h(hist, `sample_count: 3 zero_threshold: nan positive_span { offset: 0 length: 1 } positive_delta: 3`):                 "invalid_native_histogram",
		h(hist, `sample_count: 3 schema: -53 positive_span { offset: 0 length: 1 } positive_delta: 3`):                         "invalid_native_histogram",
		h(hist, `sample_count_float: 3 positive_span { offset: 0 length: 1 } positive_count: nan`):                             "invalid_native_histogram",
		h(hist, `sample_count_float: 3 positive_span { offset: 0 length: 1 } positive_count: 3.1`):                             "invalid_native_histogram",
	} {
		t.Run(reason, func(t *testing.T) {
			var family dto.MetricFamily
			raw := []byte(nil)
			if strings.Contains(in, `\xff`) {
				// Neither prototext nor proto.Marshal care in this direction.
				require.NoError(t, prototext.Unmarshal([]byte(strings.ReplaceAll(in, `\xff`, "?")), &family))
				raw = []byte(strings.ReplaceAll(string(serialize(t, &family)[0]), "?", "\xff"))
			} else {
				require.NoError(t, prototext.Unmarshal([]byte(in), &family), in)
				raw = serialize(t, &family)[0]
			}
			good := serialize(t, parseText(t, "# TYPE good gauge\ngood 1\n")...)[0]
			snapshot := DecodeSnapshot([][]byte{raw, good}, limits, received, false)
			refused := snapshot.Messages([]Refusals{snapshot[0].Refused, snapshot[1].Refused})
			require.Len(t, refused, 1, in)
			require.Equal(t, reason, refused[0].Reason, in)
			require.NotEmpty(t, refused[0].Message)
			require.Len(t, snapshot[1].Family.Series, 1)
		})
	}
	d := decodeFamily([]byte{0xff}, limits, received, false)
	require.Equal(t, reasonUndecodable, d.Refused[0].Reason)
}

func h(template, in string) string { return strings.ReplaceAll(template, "%s", in) }
