package states

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// Whatever keys have, each label set has one line with the value of the key that had it
// first, also if all label sets have few hashes; and nothing is left of what they have no
// more.
func TestLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var generations arena.Generations
		f := arena.NewFamily(&generations, "f")
		states := New(map[string]*arena.Family{"f": f})
		if hashes := rapid.SampledFrom([]uint64{0, 1, 3}).Draw(t, "hashes"); hashes > 0 {
			states.hash = func(prefix []byte) uint64 { return uint64(len(prefix)+int(prefix[len(prefix)-4])) % hashes }
		}
		type had struct {
			key   agent.SeriesKey
			value float64
		}
		want := make(map[string][]had)
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				key := agent.SeriesKey{ID: agent.ID{rapid.Byte().Draw(t, "key") % 4}}
				var series []agent.Series
				has := make(map[string]float64)
				for _, label := range rapid.SliceOfNDistinct(rapid.IntRange(1, 12), 0, 6, rapid.ID).Draw(t, "labels") {
					value := float64(rapid.IntRange(0, 9).Draw(t, "value"))
					series = append(series, agent.Series{Family: "f", Labels: []agent.Label{{Name: "l", Value: fmt.Sprint(label)}}, Value: value})
					has[fmt.Sprintf(`f{l="%d"}`, label)] = value
				}
				before := states.Len()
				added, unserved := states.Set(key, series)
				require.Empty(t, unserved)
				require.Equal(t, before+added, states.Len())
				for text, list := range want {
					i := slices.IndexFunc(list, func(h had) bool { return h.key == key })
					value, still := has[text]
					switch {
					case i >= 0 && still:
						list[i].value = value
					case i >= 0:
						want[text] = slices.Delete(list, i, i+1)
					}
				}
				for text, value := range has {
					if !slices.ContainsFunc(want[text], func(h had) bool { return h.key == key }) {
						want[text] = append(want[text], had{key, value})
					}
				}
			},
			"": func(t *rapid.T) {
				var b bytes.Buffer
				s := arena.NewText(&b, &generations, metrics.Shard{})
				require.NoError(t, s.Close(s.Family(f, arena.Header{})))
				served := make(map[string]string)
				for l := range strings.Lines(b.String()) {
					if l[0] != '#' {
						fields := strings.Fields(l)
						require.NotContains(t, served, fields[0])
						served[fields[0]] = fields[1]
					}
				}
				lines, waiting := make(map[string]string), 0
				for text, list := range want {
					if len(list) > 0 {
						lines[text] = fmt.Sprint(list[0].value)
					}
					waiting += max(0, len(list)-1)
				}
				require.Equal(t, lines, served)
				walked := make(map[string]string)
				require.NoError(t, states.Walk(t.Context(), func(prefix string) { walked[strings.TrimSpace(prefix)] = served[strings.TrimSpace(prefix)] }))
				require.Equal(t, lines, walked)
				for _, list := range states.waiting {
					require.NotEmpty(t, list)
					waiting -= len(list)
				}
				require.Zero(t, waiting)
			},
		})
	})
}
