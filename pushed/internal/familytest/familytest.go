// Package familytest makes snapshots of families for tests.
package familytest

import (
	"maps"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// T is a *testing.T, *testing.B, or *rapid.T.
type T interface {
	require.TestingT
	Helper()
}

// Serialize returns families as they are pushed.
func Serialize(t T, families ...*dto.MetricFamily) [][]byte {
	t.Helper()
	var out [][]byte
	for _, f := range families {
		raw, err := proto.Marshal(f)
		require.NoError(t, err)
		out = append(out, raw)
	}
	return out
}

// ParseText returns families written in the text format, by name.
func ParseText(t T, text string) []*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	require.NoError(t, err)
	var out []*dto.MetricFamily
	for _, name := range slices.Sorted(maps.Keys(families)) {
		out = append(out, families[name])
	}
	return out
}
