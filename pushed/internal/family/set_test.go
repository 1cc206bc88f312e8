package family

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Split takes away what the newest snapshot does not have. What is refused of it, or
// beside it, stays.
func TestSplit(t *testing.T) {
	old := admit(t, nil, manySeries("a_total", "counter", 0, 4)+manySeries("b_total", "counter", 0, 2)+manySeries("c_total", "counter", 0, 2)+
		manySeries("d_total", "counter", 0, 2)+manySeries("g", "gauge", 0, 2)).Families
	newest := decode(t, "# TYPE a_total counter\na_total{l=\"001\"} 2\na_total{l=\"002\"} NaN\na_total{l=\"009\"} 1\n# TYPE c_total counter\nc_total -1\n# TYPE d_total gauge\nd_total{l=\"009\"} 1\n")
	newest[1].refuse(refuse(reasonUndecodable, "for the test"))
	kept, spilled := old.Split(newest)
	labels := func(f *Family) (out []string) {
		for i := range f.Series {
			out = append(out, labelsText(f.Series[i].Labels))
		}
		return out
	}
	require.ElementsMatch(t, []string{"a_total", "c_total", "d_total", "g"}, kept.Names())
	require.ElementsMatch(t, []string{"a_total", "b_total"}, spilled.Names())
	require.Equal(t, []string{`l="001"`, `l="002"`}, labels(kept["a_total"]))
	require.Equal(t, []string{`l="000"`, `l="003"`}, labels(spilled["a_total"]))
	require.Len(t, kept["c_total"].Series, 2, "refused as a whole")
	require.Len(t, kept["d_total"].Series, 2, "of another type now")
	require.Equal(t, old.Lines(), kept.Lines()+spilled.Lines())
	require.Equal(t, 12, old.Lines(), "sets do not change")

	all, none := old.Split(decode(t, manySeries("a_total", "counter", 0, 4)+manySeries("b_total", "counter", 0, 2)+manySeries("c_total", "counter", 0, 2)+manySeries("d_total", "counter", 0, 2)))
	require.Equal(t, old, all)
	require.Nil(t, none)
}

// Totals forget their oldest series first, and none that an instance has which is
// alive.
func TestTrim(t *testing.T) {
	totals := admit(t, nil, manySeries("a_total", "counter", 0, 100)+manySeries("b_total", "counter", 0, 20)).Families
	for i := range totals["a_total"].Series {
		totals["a_total"].Series[i].Changed = int64(1000 - i)
	}
	for i := range totals["b_total"].Series {
		totals["b_total"].Series[i].Changed = 1
	}
	alive := admit(t, nil, manySeries("b_total", "counter", 0, 10)+manySeries("a_total", "counter", 99, 100)).Families
	trimmed, forgotten := totals.Trim(64, []Set{alive})
	require.Equal(t, 60, trimmed.Lines(), "with room for more")
	require.Equal(t, 60, forgotten)
	require.Len(t, trimmed["b_total"].Series, 10)
	for _, s := range trimmed["a_total"].Series {
		require.True(t, s.Changed > 950 || s.Changed == 901, s.Changed)
	}
	require.Equal(t, 120, totals.Lines(), "sets do not change")

	trimmed, _ = totals.Trim(1, []Set{alive})
	require.Equal(t, 11, trimmed.Lines(), "what is alive stays")
}

// What changes when an instance goes is what it has while it is alive.
func TestMortal(t *testing.T) {
	s := admit(t, nil, `# TYPE a_total counter
a_total 1
# TYPE h histogram
h_bucket{le="+Inf"} 1
h_sum 1
h_count 1
# TYPE s summary
s_sum 1
s_count 1
# TYPE g gauge
g 1
# TYPE u untyped
u 1
`).Families
	require.ElementsMatch(t, []string{"s", "g", "u"}, s.Mortal())
	s["a_total"] = s["a_total"].refuseAll(true)
	require.ElementsMatch(t, []string{"a_total", "s", "g", "u"}, s.Mortal())
}
