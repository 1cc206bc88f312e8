package pushed

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// newestFamily is a family that the newest Coder documents.
type newestFamily struct {
	name, typ, merge string
	labels           []string
}

func newestFamilies(t *testing.T) (pushed, others []newestFamily) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "metrics", "testdata", "newest.tsv"))
	require.NoError(t, err)
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		require.Len(t, fields, 4)
		f := newestFamily{name: fields[0], typ: fields[1], merge: fields[3]}
		if fields[2] != "-" {
			f.labels = strings.Split(fields[2], ",")
		}
		switch f.merge {
		case "service", "agents", "forwarded":
			others = append(others, f)
		default:
			pushed = append(pushed, f)
		}
	}
	require.Len(t, append(pushed, others...), 235)
	return pushed, others
}

// line writes a sample whose labels all have one value.
func (f *newestFamily) line(suffix, label string, v float64) string {
	var labels []string
	for _, name := range f.labels {
		labels = append(labels, fmt.Sprintf("%s=%q", name, label))
	}
	return fmt.Sprintf("%s%s{%s} %v\n", f.name, suffix, strings.Join(labels, ","), v)
}

// key is how check names the sample.
func (f *newestFamily) key(suffix, label string) string {
	key := `{__name__="` + f.name + suffix + `"`
	for _, name := range f.labels {
		key += `, ` + name + `="` + label + `"`
	}
	return key + "}"
}

// replicaOfCoderd is one process of a replica of coderd. It began at since.
type replicaOfCoderd struct {
	id       byte
	snapshot int64
	alive    bool
	pushed   bool
	since    int
	// What it shows, by family: of the series that all have, and of its own.
	value   []float64
	changed []int
}

// text is its registry. own is the label of the series that it alone has.
func (r *replicaOfCoderd) text(families []newestFamily, own string) string {
	var b strings.Builder
	for i := range families {
		f := &families[i]
		fmt.Fprintf(&b, "# TYPE %s %s\n", f.name, f.typ)
		v := r.value[i]
		for _, label := range []string{"all", own} {
			if f.typ == "histogram" {
				b.WriteString(f.line("_count", label, v) + f.line("_sum", label, 2*v))
			} else {
				b.WriteString(f.line("", label, v))
			}
			if len(f.labels) == 0 {
				break
			}
		}
	}
	return b.String()
}

// Each family that the newest Coder exports merges right, with two replicas and
// with three. Meanwhile they push, stop, crash and start again, and this service
// restarts and folds.
func TestNewestMergesRight(t *testing.T) {
	families, others := newestFamilies(t)
	for _, replicas := range []int{2, 3} {
		t.Run(fmt.Sprint(replicas), func(t *testing.T) { testNewest(t, families, replicas) })
	}
	f := open(t, new(memory), Options{})
	for _, o := range others {
		typ := dto.MetricType(dto.MetricType_value[strings.ToUpper(o.typ)])
		refused, err := f.Push(t.Context(), start, agent.Push{
			Instance: instanceID(byte(1 + len(o.name))), Snapshot: time.Now().UnixNano(),
			Families: serialize(t, &dto.MetricFamily{Name: &o.name, Type: &typ}),
		})
		require.NoError(t, err)
		require.Len(t, refused, 1, o.name)
		require.Equal(t, "owned_by_service", refused[0].Reason, o.name)
	}
}

func testNewest(t *testing.T, families []newestFamily, replicas int) {
	random := rand.New(rand.NewPCG(1, uint64(replicas)))
	database := new(memory)
	now, step, next := start, 0, byte(0)
	reopen := func() *Families {
		f, err := New(database, new(reserver), Options{SeriesTTL: time.Minute, FoldAfter: 5 * time.Minute}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		require.NoError(t, f.load(context.Background(), now))
		return f
	}
	f := reopen()
	inDatabase := make([]float64, len(families)) // what the deployment has
	var processes []*replicaOfCoderd
	newProcess := func() *replicaOfCoderd {
		next++
		p := &replicaOfCoderd{id: next, alive: true, value: make([]float64, len(families)), changed: make([]int, len(families))}
		processes = append(processes, p)
		return p
	}
	current := make([]*replicaOfCoderd, replicas)
	for i := range current {
		current[i] = newProcess()
	}
	push := func(p *replicaOfCoderd, final bool) {
		step++
		for i := range families {
			switch fam := &families[i]; {
			case fam.merge == "sticky", fam.merge == "max" && fam.typ == "counter":
				p.value[i] = inDatabase[i]
			case fam.typ == "gauge":
				if v := float64(random.IntN(50)); v != p.value[i] || p.snapshot == 0 {
					p.value[i], p.changed[i] = v, step
				}
			default:
				p.value[i] += float64(random.IntN(5))
			}
		}
		p.snapshot++
		if !p.pushed {
			p.since = step
		}
		p.pushed = true
		_, err := f.Push(context.Background(), now, agent.Push{
			Replica: "coderd", Instance: instanceID(p.id), Interval: time.Second, Snapshot: p.snapshot, Final: final,
			Families: serialize(t, parseText(t, p.text(families, fmt.Sprint(p.id)))...),
		})
		require.NoError(t, err)
		if final {
			p.alive = false
		}
	}
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	for range rounds {
		now = now.Add(time.Second)
		for i := range inDatabase {
			inDatabase[i] += float64(random.IntN(3)) * 100
		}
		at := random.IntN(replicas)
		switch random.IntN(10) {
		case 0: // stops, and starts again
			push(current[at], true)
			current[at] = newProcess()
		case 1: // crashes; the others go on until its TTL is over
			current[at].alive = false
			for range 2 {
				now = now.Add(31 * time.Second)
				for i, p := range current {
					if i != at && p.pushed {
						push(p, false)
					}
				}
				f.expire(now)
			}
			current[at] = newProcess()
		case 2:
			f = reopen()
			f.expire(now)
			require.NoError(t, f.foldIdle(context.Background(), now))
		}
		push(current[at], false)
		samples := make(map[string]float64)
		parse(t, textparse.NewPromParser([]byte(text(t, f)), labels.NewSymbolTable(), false), samples)
		requireMerged(t, samples, families, processes, replicas)
	}
}

// requireMerged compares what is served with what the processes show.
func requireMerged(t *testing.T, samples map[string]float64, families []newestFamily, processes []*replicaOfCoderd, replicas int) {
	t.Helper()
	for i := range families {
		fam := &families[i]
		var sum, most, least, newest, sticky float64
		var holder *replicaOfCoderd
		live, changed := 0, -1
		for _, p := range processes {
			if !p.pushed {
				continue
			}
			if fam.typ != "gauge" {
				sum, most = sum+p.value[i], max(most, p.value[i])
				continue
			}
			own, served := samples[fam.key("", fmt.Sprint(p.id))]
			if !p.alive {
				require.False(t, served && len(fam.labels) > 0, "%s of process %d, which is gone", fam.name, p.id)
				continue
			}
			v := p.value[i]
			if live == 0 {
				most, least = v, v
			}
			live++
			sum, most, least = sum+v, max(most, v), min(least, v)
			if p.changed[i] > changed {
				newest, changed = v, p.changed[i]
			}
			if holder == nil || p.since < holder.since {
				holder, sticky = p, v
			}
			if len(fam.labels) > 0 && fam.merge != "sticky" {
				require.True(t, served, "%s of process %d", fam.name, p.id)
				require.Equal(t, v, own, fam.name)
			}
		}
		want := map[string]float64{"sum": sum, "max": most, "min": least, "newest": newest, "sticky": sticky}[fam.merge]
		if fam.typ == "histogram" {
			require.Equal(t, want, samples[fam.key("_count", "all")], "%s of %d replicas", fam.name, replicas)
			require.Equal(t, 2*want, samples[fam.key("_sum", "all")], "%s of %d replicas", fam.name, replicas)
			continue
		}
		require.Equal(t, want, samples[fam.key("", "all")], "%s (%s) of %d replicas", fam.name, fam.merge, replicas)
	}
}
