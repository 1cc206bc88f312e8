// Package reload reads the configuration of a process again while it runs: on SIGHUP, and
// by HTTP. Either all that has changed is put in force, or nothing.
package reload

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/optiontable"
)

// Change is a configuration that was read and checked, and is not in force yet.
type Change struct {
	// Options differ from those in force and can change while the process runs.
	Options []optiontable.Difference
	// NeedRestart differ as well, and stay as they are.
	NeedRestart []optiontable.Difference
	// Hash of the configuration once it is in force.
	Hash uint64
	// Apply puts it in force, and returns the files whose content has changed, as people
	// call them. After an error nothing has changed.
	Apply func() (files []string, err error)
}

// Outcome says what a reload did.
type Outcome struct {
	// Changed options are in force now.
	Changed []optiontable.Difference `json:"changed"`
	// Files have other content now, which is used.
	Files []string `json:"files"`
	// NeedRestart are options that changed in the file, and stay as they are.
	NeedRestart []optiontable.Difference `json:"need_restart"`
	// DryRun: nothing was changed. Files are not compared.
	DryRun bool `json:"dry_run,omitempty"`
	// Error is why nothing has changed; empty: none.
	Error string `json:"error,omitempty"`
}

// String returns the outcome for people.
func (o Outcome) String() string {
	var texts []string
	for _, part := range []struct {
		what string
		of   string
	}{{"changed", join(o.Changed)}, {"need a restart", join(o.NeedRestart)}, {"files", strings.Join(o.Files, ", ")}} {
		if part.of != "" {
			texts = append(texts, part.what+": "+part.of)
		}
	}
	if len(texts) == 0 {
		return "no option differs"
	}
	return strings.Join(texts, "; ")
}

// Observer is who wants to know when the process reloads: the service manager.
type Observer interface {
	Reloading()
	Reloaded()
}

// Reloader reloads. Its methods are safe for concurrent use.
type Reloader struct {
	prepare func(log *slog.Logger) (*Change, error)
	// redact takes out of an error what is not for everybody.
	redact  func(error) string
	log     *slog.Logger
	metrics *metrics
	// observer is told of each reload; nil: nobody is.
	observer Observer

	reloading sync.Mutex // held while it reloads

	mu sync.Mutex
	// Guarded by mu.
	failed   string // what the last reload failed by; empty: it did not
	failedAt time.Time
}

// New returns a Reloader. prepare reads and checks the configuration, and changes nothing.
// It logs what is to be known of what it read, which of a dry run nobody reads.
// hash is that of the configuration in force, which was read just now. The metrics are
// registered with reg.
func New(prepare func(log *slog.Logger) (*Change, error), hash uint64, redact func(error) string, reg prometheus.Registerer, log *slog.Logger) (*Reloader, error) {
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("reload: %w", err)
	}
	m.loaded(hash, time.Now())
	return &Reloader{prepare: prepare, redact: redact, log: log, metrics: m}, nil
}

// Observe has o called before and after each reload, but for those that change nothing. It
// is called before the first reload.
func (r *Reloader) Observe(o Observer) { r.observer = o }

// Run reloads at each signal, until ctx is cancelled. It returns nil.
func (r *Reloader) Run(ctx context.Context, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			r.Reload()
		}
	}
}

// Reload reloads, and says what has changed.
func (r *Reloader) Reload() Outcome { return r.reload(false) }

// DryRun returns what Reload would do, but for files whose content has changed.
func (r *Reloader) DryRun() Outcome { return r.reload(true) }

func (r *Reloader) reload(dry bool) Outcome {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	none := Outcome{DryRun: dry, Changed: []optiontable.Difference{}, Files: []string{}, NeedRestart: []optiontable.Difference{}}
	o := none // lists, in JSON too
	log := r.log
	switch {
	case dry:
		log = slog.New(slog.DiscardHandler)
	case r.observer != nil:
		r.observer.Reloading()
		defer r.observer.Reloaded()
	}
	change, err := r.prepare(log)
	if err == nil && !dry {
		files, applyErr := change.Apply()
		o.Files, err = append(o.Files, files...), applyErr
	}
	if err != nil {
		o = none
		o.Error = r.redact(err)
	} else {
		o.Changed, o.NeedRestart = append(o.Changed, change.Options...), append(o.NeedRestart, change.NeedRestart...)
	}
	if dry {
		return o
	}
	r.record(o, change)
	return o
}

// record logs and counts the outcome.
func (r *Reloader) record(o Outcome, change *Change) {
	now := time.Now()
	r.mu.Lock()
	r.failed, r.failedAt = o.Error, now
	r.mu.Unlock()
	if o.Error != "" {
		r.metrics.failedOnce()
		r.log.Warn("the configuration was not reloaded: all stays as it was", "error", o.Error)
		return
	}
	r.metrics.loaded(change.Hash, now)
	r.metrics.succeeded.Inc()
	if len(o.NeedRestart) > 0 {
		r.log.Warn("options have changed in the configuration that need a restart: they stay as they are", "options", join(o.NeedRestart))
	}
	r.log.Info("the configuration was reloaded", "changed", join(o.Changed), "files", strings.Join(o.Files, ", "))
}

func join(of []optiontable.Difference) string {
	texts := make([]string, len(of))
	for i, d := range of {
		texts[i] = d.String()
	}
	return strings.Join(texts, ", ")
}

// Warnings returns that the last reload failed, and why.
func (r *Reloader) Warnings() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == "" {
		return nil
	}
	return []string{fmt.Sprintf("the configuration was not reloaded at %s, all is as before: %s", r.failedAt.UTC().Format(time.RFC3339), r.failed)}
}

// ServeHTTP implements http.Handler: it reloads, or with the query dry_run=true says what
// that would do. The answer is an Outcome; of a reload that failed with the status 500, as
// Prometheus has it.
func (r *Reloader) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	o := r.reload(req.URL.Query().Get("dry_run") == "true")
	w.Header().Set("Content-Type", "application/json")
	if o.Error != "" {
		w.WriteHeader(http.StatusInternalServerError)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(o)
}
