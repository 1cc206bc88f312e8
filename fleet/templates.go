package fleet

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

const (
	// templateRetention is how long the durations of a template's builds are
	// served after its last workspace went, so that rate and increase over that
	// long, and whatever scrapes seldom, still see the last one.
	templateRetention = time.Hour
	// templateScan is how late the end of that may be noticed.
	templateScan = time.Minute
)

// templateKey is what a template is by the labels of its builds.
type templateKey struct{ organization, name string }

func templateOf(w *agent.Workspace) templateKey {
	return templateKey{w.Organization, w.Template.Name}
}

// buildDurations is the histogram of durations of builds. It forgets templates
// that are gone, so that it does not grow with each that ever was.
type buildDurations struct {
	vec *prometheus.HistogramVec

	mu sync.Mutex
	// seen is when each template that has a series was last known to have a
	// workspace, or a build that was observed.
	seen map[templateKey]time.Time
}

func newBuildDurations(reg prometheus.Registerer) *buildDurations {
	d := &buildDurations{
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
	reg.MustRegister(d.vec)
	return d
}

// observe counts the build's duration.
func (d *buildDurations) observe(b *finishedBuild, now time.Time) {
	// Under the lock, or forget could take the series away before its value is in.
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

// forget removes the series of templates that had no workspace for
// templateRetention.
func (d *buildDurations) forget(registered func(templateKey) bool, now time.Time) {
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

// forgetTemplates removes what is served of templates that are gone.
func (f *Fleet) forgetTemplates(now time.Time) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	f.metrics.builds.forget(func(key templateKey) bool { return f.roster.templates[key] > 0 }, now)
}
