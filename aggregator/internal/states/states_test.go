package states

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// exposition has the values of the series of both formats of a scrape, by name and labels.
type exposition map[string]string

// scraping is a scrape of some families that has begun.
type scraping struct {
	out      [2]bytes.Buffer
	of       [2]*arena.Scrape
	families []*arena.Family
}

func beginScrape(generations *arena.Generations, families []*arena.Family, shard metrics.Shard) *scraping {
	s := &scraping{families: families}
	s.of = [2]*arena.Scrape{arena.NewText(&s.out[0], generations, shard), arena.NewProto(&s.out[1], generations, shard)}
	return s
}

// end ends the scrape and returns what it has: the same in both formats.
func (s *scraping) end(t require.TestingT) exposition {
	for _, of := range s.of {
		for _, f := range s.families {
			require.NoError(t, of.Family(f, arena.Header{Type: metrics.Gauge}))
		}
		require.NoError(t, of.Close(nil))
	}
	served := make(exposition)
	for l := range strings.Lines(s.out[0].String()) {
		if l[0] != '#' {
			at := strings.LastIndexByte(l, ' ')
			require.NotContains(t, served, l[:at])
			served[l[:at]] = strings.TrimSpace(l[at:])
		}
	}
	protobuf := make(exposition)
	for dec := expfmt.NewDecoder(&s.out[1], expfmt.NewFormat(expfmt.TypeProtoDelim)); ; {
		var m dto.MetricFamily
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		for _, metric := range m.Metric {
			var labels []string
			for _, l := range metric.Label {
				labels = append(labels, string(metrics.AppendTextLabel(nil, l.GetName(), l.GetValue())))
			}
			name := m.GetName()
			if len(labels) > 0 {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			protobuf[name] = fmt.Sprint(metric.GetGauge().GetValue())
		}
	}
	require.Equal(t, served, protobuf)
	return served
}

// Whatever keys have, each label set has one line with the value of the key that had it
// first, also if all names have few hashes; a scrape has what there was when it began; and
// nothing is left of what keys have no more.
func TestLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var generations arena.Generations
		names := []string{"f", "g"}
		families := []*arena.Family{arena.NewFamily(&generations, "f"), arena.NewFamily(&generations, "g")}
		states := New(&generations, map[string]*arena.Family{"f": families[0], "g": families[1]})
		if hashes := rapid.SampledFrom([]uint64{0, 1, 3}).Draw(t, "hashes"); hashes > 0 {
			states.hash = func(name []byte) uint64 { return uint64(len(name)+int(name[max(0, len(name)-4)])) % hashes }
		}
		type had struct {
			key   agent.SeriesKey
			value float64
		}
		want := make(map[string][]had)
		served := func() exposition {
			lines := make(exposition)
			for text, list := range want {
				if len(list) > 0 {
					lines[text] = fmt.Sprint(list[0].value)
				}
			}
			return lines
		}
		type under struct {
			*scraping
			want exposition
		}
		var scrapes []under
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				var together []agent.KeySeries // the last series of a key count
				for range rapid.IntRange(1, 3).Draw(t, "keys") {
					key := agent.SeriesKey{Workspace: rapid.Bool().Draw(t, "workspace"), ID: agent.ID{rapid.Byte().Draw(t, "key") % 3}}
					var series []agent.Series
					has := make(map[string]float64)
					for range rapid.IntRange(0, 6).Draw(t, "series") {
						s := agent.Series{Family: rapid.SampledFrom(names).Draw(t, "family"), Value: float64(rapid.IntRange(0, 9).Draw(t, "value"))}
						var labels []string
						for _, l := range []struct {
							name   string
							values []string
						}{
							{"a", []string{"", "1", "2\n"}},
							{"username", []string{"", "ann", `b"b`}},
							{"workspace_name", []string{"", "ws"}},
						} {
							value := rapid.SampledFrom(l.values).Draw(t, l.name)
							s.Labels = append(s.Labels, agent.Label{Name: l.name, Value: value})
							if value != "" {
								labels = append(labels, string(metrics.AppendTextLabel(nil, l.name, value)))
							}
						}
						text := s.Family
						if len(labels) > 0 {
							text += "{" + strings.Join(labels, ",") + "}"
						}
						series = append(series, s)
						if _, twice := has[text]; !twice {
							has[text] = s.Value
						}
					}
					together = append(together, agent.KeySeries{Key: key, Series: series})
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
				}
				before := states.Len()
				added, unserved := states.Set(together)
				require.Empty(t, unserved)
				require.Equal(t, before+added, states.Len())
			},
			"begin": func(t *rapid.T) {
				if len(scrapes) < 3 {
					scrapes = append(scrapes, under{beginScrape(&generations, families, metrics.Shard{}), served()})
				}
			},
			"end": func(t *rapid.T) {
				if len(scrapes) == 0 {
					return
				}
				i := rapid.IntRange(0, len(scrapes)-1).Draw(t, "which")
				s := scrapes[i]
				scrapes = slices.Delete(scrapes, i, i+1)
				// The values are the newest, of the lines that there were.
				got := s.end(t)
				require.Len(t, got, len(s.want))
				for text := range s.want {
					require.Contains(t, got, text)
				}
			},
			"shards": func(t *rapid.T) {
				shards := make(exposition)
				for i := range 3 {
					for text, value := range beginScrape(&generations, families, metrics.Shard{Index: i, Count: 3}).end(t) {
						require.NotContains(t, shards, text)
						shards[text] = value
					}
				}
				require.Equal(t, served(), shards)
			},
			"": func(t *rapid.T) {
				lines, waiting := served(), 0
				for _, list := range want {
					waiting += max(0, len(list)-1)
				}
				require.Equal(t, lines, beginScrape(&generations, families, metrics.Shard{}).end(t))
				walked := make(exposition)
				require.NoError(t, states.Walk(t.Context(), func(prefix string) {
					text := strings.TrimSuffix(prefix, " ")
					require.NotContains(t, walked, text)
					walked[text] = lines[text]
				}))
				require.Equal(t, lines, walked)
				for _, list := range states.waiting {
					require.NotEmpty(t, list)
					waiting -= len(list)
				}
				require.Zero(t, waiting)
				if len(lines) == 0 {
					require.Empty(t, states.agents)
					require.Empty(t, states.workspaces)
					require.Empty(t, states.further)
					require.Empty(t, states.heads)
					require.Empty(t, states.names)
					require.Empty(t, states.collided)
					require.Empty(t, states.waits)
				}
			},
		})
	})
}

// Groups of which nothing is left take no memory but for themselves, and are used again.
func TestGroupsAreUsedAgain(t *testing.T) {
	var generations arena.Generations
	f := arena.NewFamily(&generations, "f")
	states := New(&generations, map[string]*arena.Family{"f": f})
	const keys = 1000
	set := func(i, version int) {
		key := agent.SeriesKey{ID: agent.ID{byte(i), byte(i >> 8)}}
		if version == 0 {
			states.Set([]agent.KeySeries{{Key: key}})
			return
		}
		states.Set([]agent.KeySeries{{Key: key, Series: []agent.Series{{Family: "f", Labels: []agent.Label{{Name: "username", Value: fmt.Sprint(i, " ", version)}}}}}})
	}
	for i := range keys {
		set(i, 1)
	}
	groups, full := len(states.groups), f.Footprint()+states.Footprint()
	require.Less(t, groups, keys/100)
	scrape := beginScrape(&generations, []*arena.Family{f}, metrics.Shard{})
	for version := range 20 {
		for i := range keys {
			set(i, 1+version)
		}
	}
	require.Len(t, scrape.end(t), keys)
	for version := range 20 {
		for i := range keys {
			set(i, 1+version)
		}
	}
	require.Less(t, len(states.groups), 22*groups)
	require.Less(t, f.Footprint()+states.Footprint(), 2*full)
	for i := range keys {
		set(i, 0)
	}
	require.Zero(t, states.Len())
	require.Less(t, f.Footprint()+states.Footprint(), full/2)
}

// Groups that had no room during a scrape have it when the scrape has ended: workspaces that
// come and go meanwhile, as where shares move, leave no groups behind.
func TestGroupsThatWereFullAreUsedAgain(t *testing.T) {
	var generations arena.Generations
	f := arena.NewFamily(&generations, "f")
	states := New(&generations, map[string]*arena.Family{"f": f})
	few := 0
	for scrapes := range 20 {
		scrape := beginScrape(&generations, []*arena.Family{f}, metrics.Shard{})
		for range 5 {
			for _, series := range [][]agent.Series{{{Family: "f", Labels: []agent.Label{{Name: "username"}}}}, nil} {
				for i := range 500 {
					for j := range series {
						series[j].Labels[0].Value = fmt.Sprint(i)
					}
					states.Set([]agent.KeySeries{{Key: agent.SeriesKey{ID: agent.ID{byte(i), byte(i >> 8)}}, Series: series}})
				}
			}
		}
		require.Empty(t, scrape.end(t))
		if scrapes == 0 {
			few = len(states.groups)
		}
		require.LessOrEqual(t, len(states.groups), few+1)
	}
}
