// Package durations holds the histogram of build durations, by template.
package durations

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

// Retention is how long a template's series outlast its last workspace, so that rate and
// increase over that long see the last build. ScanInterval bounds the delay of that removal.
const (
	Retention    = time.Hour
	ScanInterval = time.Minute
)

// Values of the label status of a build, the worst one first.
const (
	StatusError   = "error"
	StatusTimeout = "timeout"
	StatusSuccess = "success"
)

// Worse returns the status of a build that has the status without an agent whose start
// ended so.
func Worse(status string, result agent.LifecycleState) string {
	switch {
	case result == agent.LifecycleStartError:
		return StatusError
	case result == agent.LifecycleStartTimeout && status != StatusError:
		return StatusTimeout
	}
	return status
}

// Template identifies a template by the labels of its builds.
type Template struct{ organization, name string }

// TemplateOf returns that of a workspace.
func TemplateOf(w *agent.Workspace) Template {
	return Template{w.Organization, w.Template.Name}
}

// Histogram removes the series of templates without workspaces, so that it does not
// grow for ever. It is safe for concurrent use.
type Histogram struct {
	*prometheus.HistogramVec

	mu sync.Mutex
	// seen is when each template with a series last had a workspace or a build.
	seen map[Template]time.Time
}

// NewHistogram returns a collector without series.
func NewHistogram() *Histogram {
	return &Histogram{
		seen: make(map[Template]time.Time),
		HistogramVec: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                            "coderd_template_workspace_build_duration_seconds",
			Help:                            "Duration from workspace build creation to agent ready, by template.",
			Buckets:                         []float64{1, 10, 30, 60, 300, 600, 1800, 3600},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"is_prebuild", "organization_name", "status", "template_name", "transition"}),
	}
}

// Observe adds a duration in seconds of the newest build of a workspace, which ended with
// the status at now.
func (h *Histogram) Observe(w *agent.Workspace, status string, seconds float64, now time.Time) {
	// Under the lock: RemoveStale must not remove the series in between.
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[TemplateOf(w)] = now
	h.WithLabelValues(
		strconv.FormatBool(w.Build.IsPrebuild),
		w.Organization,
		status,
		w.Template.Name,
		string(w.Build.Transition),
	).Observe(seconds)
}

// RemoveStale removes the series of templates without a workspace for Retention.
// registered reports whether one has a workspace.
func (h *Histogram) RemoveStale(registered func(Template) bool, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for template, seen := range h.seen {
		switch {
		case registered(template):
			h.seen[template] = now
		case now.Sub(seen) >= Retention:
			h.DeletePartialMatch(prometheus.Labels{"organization_name": template.organization, "template_name": template.name})
			delete(h.seen, template)
		}
	}
}
