package fleet

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

const (
	// templateRetention is how long a template's series outlast its last workspace,
	// so that rate and increase over that long see the last build.
	templateRetention = time.Hour
	// templateScan bounds the delay of that removal.
	templateScan = time.Minute
)

// templateKey identifies a template by the labels of its builds.
type templateKey struct{ organization, name string }

func templateOf(w *agent.Workspace) templateKey {
	return templateKey{w.Organization, w.Template.Name}
}

// buildDurations is the histogram of build durations. It removes the series of
// templates without workspaces, so that it does not grow for ever.
type buildDurations struct {
	vec *prometheus.HistogramVec

	mu sync.Mutex
	// seen is when each template with a series last had a workspace or a build.
	seen map[templateKey]time.Time
}

func newBuildDurations() *buildDurations {
	return &buildDurations{
		seen: make(map[templateKey]time.Time),
		vec: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                            "coderd_template_workspace_build_duration_seconds",
			Help:                            "Duration from workspace build creation to agent ready, by template.",
			Buckets:                         []float64{1, 10, 30, 60, 300, 600, 1800, 3600},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"is_prebuild", "organization_name", "status", "template_name", "transition"}),
	}
}

// observe adds the build's duration.
func (d *buildDurations) observe(b *finishedBuild, now time.Time) {
	// Under the lock: removeStale must not remove the series in between.
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen[templateOf(&b.labels)] = now
	d.vec.WithLabelValues(
		strconv.FormatBool(b.labels.Build.IsPrebuild),
		b.labels.Organization,
		b.status,
		b.labels.Template.Name,
		string(b.labels.Build.Transition),
	).Observe(b.seconds)
}

// removeStale removes the series of templates without a workspace for
// templateRetention.
func (d *buildDurations) removeStale(registered func(templateKey) bool, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, seen := range d.seen {
		switch {
		case registered(key):
			d.seen[key] = now
		case now.Sub(seen) >= templateRetention:
			d.vec.DeletePartialMatch(prometheus.Labels{"organization_name": key.organization, "template_name": key.name})
			delete(d.seen, key)
		}
	}
}

// removeStaleTemplates removes the build series of removed templates.
func (f *Fleet) removeStaleTemplates(now time.Time) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	f.metrics.builds.removeStale(func(key templateKey) bool { return f.registry.templates[key] > 0 }, now)
}
