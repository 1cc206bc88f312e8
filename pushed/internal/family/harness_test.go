package family

import (
	"bytes"
	"maps"
	"math"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// received is when the snapshots of the tests were received.
var received = time.Unix(1_790_000_000, 0)

// limits are those that the service has by default.
var limits = Limits{
	MaxFamilies: 2000, MaxLabelValueBytes: 32 << 10, MaxLabelsBytes: 40 << 10,
	MaxSeries: 200_000, MaxTotalSeries: 2_000_000, MaxRowBytes: 64 << 20,
}

// fataler is a *testing.T, *testing.B, or *rapid.T.
type fataler interface {
	require.TestingT
	Helper()
}

// serialize returns families as they are pushed.
func serialize(t fataler, families ...*dto.MetricFamily) [][]byte {
	t.Helper()
	var out [][]byte
	for _, f := range families {
		raw, err := proto.Marshal(f)
		require.NoError(t, err)
		out = append(out, raw)
	}
	return out
}

// parseText returns families written in the text format, by name.
func parseText(t fataler, text string) []*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader([]byte(text)))
	require.NoError(t, err)
	var out []*dto.MetricFamily
	for _, name := range slices.Sorted(maps.Keys(families)) {
		out = append(out, families[name])
	}
	return out
}

// decode returns a snapshot that is written in the text format.
func decode(t fataler, text string) Snapshot {
	t.Helper()
	return DecodeSnapshot(serialize(t, parseText(t, text)...), limits, received)
}

// admit returns what of a snapshot is admitted beside nobody, after old.
func admit(t fataler, old Set, text string) *Admitted {
	t.Helper()
	a := &Admission{Limits: limits, Received: received, Old: old, OldLive: true, Types: ChooseTypes([]Set{old}), MaxRowLines: math.MaxInt}
	return a.Admit(decode(t, text))
}

// render returns the family as it is served.
func render(t fataler, f *Family) string {
	t.Helper()
	r, err := Render(f)
	require.NoError(t, err)
	return string(r.Text)
}
