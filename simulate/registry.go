package simulate

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
)

// CoderdRegistry is the registry of one instance of a simulated coderd. As in a real
// coderd, it has each documented family that coderd owns, and the collectors of Go and
// of the process. All counts are multiples of 1/1024, so their sums are exact in any
// order. Values from coderd's database are the same on all instances at one time.
type CoderdRegistry struct {
	registry *prometheus.Registry
	families coderdFamilies
	random   *rand.Rand
	// last is the time of the newest tick.
	last time.Time

	websockets   int
	running      int
	inflight     map[aiModel]int
	rateLimit    rateLimit
	latestBuilds map[latestBuild]float64
}

// NewCoderdRegistry makes the registry of an instance that has just started: all
// that it counts is 0. The seed decides what happens to it.
func NewCoderdRegistry(seed uint64) *CoderdRegistry {
	r := &CoderdRegistry{
		registry:     prometheus.NewRegistry(),
		random:       rand.New(rand.NewPCG(seed, 0xc0de2d)),
		inflight:     make(map[aiModel]int),
		latestBuilds: make(map[latestBuild]float64),
	}
	r.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.families = newCoderdFamilies(r.registry)
	r.families.begin()
	return r
}

// Gather implements prometheus.Gatherer. It may be called at any time.
func (r *CoderdRegistry) Gather() ([]*dto.MetricFamily, error) { return r.registry.Gather() }

// Tick lets pass the time since the last tick, at most a minute; the first tick
// is a second. It is to be called by one goroutine.
func (r *CoderdRegistry) Tick(now time.Time) {
	seconds := 1.0
	if !r.last.IsZero() {
		seconds = min(max(now.Sub(r.last), 0), time.Minute).Seconds()
	}
	r.last = now
	r.tickAPI(seconds)
	r.tickProvisioner(seconds)
	r.tickBridge(seconds)
	r.tickExternalAuth(now, seconds)
	r.showDatabase(now)
	r.showInsights(now)
}

// Totals returns what the instance has counted, by family: the sum over all series. A
// histogram has two totals, its name with _count and with _sum. It leaves out
// coderd_workspace_creation_total, which is read from the database, and the families of
// Go and the process.
func (r *CoderdRegistry) Totals() (map[string]float64, error) {
	families, err := r.registry.Gather()
	if err != nil {
		return nil, err
	}
	totals := make(map[string]float64)
	for _, family := range families {
		name := family.GetName()
		if !slices.Contains(countedFamilies, name) {
			continue
		}
		for _, m := range family.GetMetric() {
			if h := m.GetHistogram(); h != nil {
				totals[name+"_count"] += float64(h.GetSampleCount())
				totals[name+"_sum"] += h.GetSampleSum()
			} else {
				totals[name] += m.GetCounter().GetValue()
			}
		}
	}
	return totals, nil
}

// times returns how often something happens that happens n times on average.
func (r *CoderdRegistry) times(n float64) int {
	// Twice the uniform number has the average 1.
	n *= 2 * r.random.Float64()
	whole := int(n)
	if r.random.Float64() < n-float64(whole) {
		whole++
	}
	return whole
}

// around returns an exponentially distributed duration in seconds, at least
// 1/1024.
func (r *CoderdRegistry) around(mean float64) float64 {
	return max(1, float64(int64(mean*r.random.ExpFloat64()*1024))) / 1024
}

func pick[T any](r *rand.Rand, all []T) T { return all[r.IntN(len(all))] }
