package cardinality

import (
	"strings"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// SampleInterval is the time between two samples of a History.
const SampleInterval = time.Minute

// History has the MaxGrowing largest names of each dimension, as of the last two samples. It
// takes some 150 bytes a name and 2 MB in all. If names are as long as labels may be, it
// takes 16 MB. Its methods may be called concurrently. The zero value is ready.
type History struct {
	mu sync.Mutex
	// samples are at most two, the older first.
	samples []sample
}

type sample struct {
	at time.Time
	by [dimensions]sampledNames
}

type sampledNames struct {
	series map[sampledName]int
	// names is how many there were, with those that are not sampled.
	names int
}

// all reports whether there were no more names.
func (names *sampledNames) all() bool { return len(names.series) == names.names }

// sampledName is a countedName, or an agent.
type sampledName struct {
	countedName
	agent agent.ID
}

func (n *Count) sampled() sampledName {
	if n.Agent != (agent.ID{}) {
		return sampledName{agent: n.Agent}
	}
	return sampledName{countedName: countedName{of: n.Label + n.Owner, name: n.Name}}
}

// Add adds a sample: a census of all series by all dimensions. It is called once each
// SampleInterval.
func (h *History) Add(at time.Time, c *Census) {
	s := sample{at: at}
	for d := range dimensions {
		var r Result
		c.Rank(d, MaxGrowing, &r)
		names := sampledNames{series: make(map[sampledName]int, len(r.Counts)), names: r.Names}
		for i := range r.Counts {
			name := r.Counts[i].sampled()
			// They are parts of longer strings.
			name.of, name.name = strings.Clone(name.of), strings.Clone(name.name)
			names.series[name] = r.Counts[i].Series
		}
		s.by[d] = names
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.samples) == 2 {
		h.samples = h.samples[1:]
	}
	h.samples = append(h.samples, s)
}

// Compare fills in the growth since the newest sample that is at least a SampleInterval old. r
// has counts of all series, by the dimension.
func (h *History) Compare(now time.Time, by Dimension, r *Result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.samples) - 1; i >= 0; i-- {
		if age := now.Sub(h.samples[i].at); age >= SampleInterval {
			h.samples[i].by[by].compare(age, r)
			return
		}
	}
}

func (names *sampledNames) compare(age time.Duration, r *Result) {
	r.GrowthOver = age
	for i := range r.Counts {
		n := &r.Counts[i]
		before, known := names.series[n.sampled()]
		if known || names.all() {
			n.GrowthKnown, n.Growth = true, float64(n.Series-before)/age.Minutes()
		}
	}
}

// Newest returns what the newest sample has by families, templates or owners: how many names
// there were, and the largest, at most limit, with their growth since the sample before.
func (h *History) Newest(by Dimension, limit int) *Result {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := new(Result)
	if len(h.samples) == 0 {
		return r
	}
	newest := &h.samples[len(h.samples)-1]
	r.Names = newest.by[by].names
	most := NewTop(limit, compareCounts)
	for name, series := range newest.by[by].series {
		most.Add(Count{Name: name.name, Series: series})
	}
	r.Counts = most.Sorted()
	if before := &h.samples[0]; before != newest {
		before.by[by].compare(newest.at.Sub(before.at), r)
	}
	return r
}
