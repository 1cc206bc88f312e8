package main

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/coder/agentstatsd/internal/readiness"
	"github.com/coder/agentstatsd/web"
	"github.com/coder/agentstatsd/web/console"
)

// newMux returns what the HTTP listener serves: the registry at /metrics, liveness at
// /-/healthy, readiness at /-/ready, with the warnings.
func newMux(scrape http.Handler, ready func() readiness.Answer) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("/metrics", scrape)
	addProbes(mux, ready)
	return mux
}

// addPages serves the pages and the JSON beside the registry at /. A bridge has the registry
// only.
func (s *service) addPages(mux *http.ServeMux, scrapes http.Handler, reg prometheus.Registerer) error {
	if s.admin == nil {
		mux.Handle("/{$}", scrapes)
		return nil
	}
	pages, err := console.New(s.admin, s.config.consoleOptions(), s.log.With("component", "console"))
	if err != nil {
		return err
	}
	bounded, err := s.config.newPages(pages, reg)
	if err != nil {
		return err
	}
	s.addSlots("pages", bounded, func(c *config) (int64, int64) { return c.maxConcurrentPages, c.maxPagesPerSecond })
	pages.Mount(mux, bounded, scrapes)
	return nil
}

// addProbes adds liveness and readiness.
func addProbes(mux *http.ServeMux, ready func() readiness.Answer) {
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("healthy\n"))
	})
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) {
		r := ready()
		w.Header().Set("Content-Type", "application/json")
		if !r.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(r)
	})
}

// pprofMux serves Go's profiles.
func pprofMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// httpWriteTimeout bounds the writing of answers that are no scrapes, which have
// --scrape-timeout.
const httpWriteTimeout = 30 * time.Second

// newScrapes bounds the scrapes that next serves, at once and in a second.
func (c *config) newScrapes(next http.Handler, reg prometheus.Registerer) (*web.Slots, error) {
	return web.NewSlots(next, "scrapes", int(c.maxConcurrentScrapes), rate.Limit(c.maxScrapesPerSecond), reg)
}

// newPages bounds the pages that next serves, likewise.
func (c *config) newPages(next http.Handler, reg prometheus.Registerer) (*web.Slots, error) {
	return web.NewSlots(next, "pages", int(c.maxConcurrentPages), rate.Limit(c.maxPagesPerSecond), reg)
}

// addSlots has a reload change how many slots there are.
func (s *service) addSlots(name string, slots *web.Slots, of func(*config) (atOnce, perSecond int64)) {
	s.Add(name, func(n *candidate) error {
		atOnce, perSecond := of(n.config)
		slots.Reconfigure(int(atOnce), rate.Limit(perSecond))
		return nil
	}, func() any {
		atOnce, perSecond := slots.Limits()
		return [2]float64{float64(atOnce), float64(perSecond)}
	})
}

// buildHTTP makes the HTTP edge.
func (s *service) buildHTTP(reg prometheus.Registerer, scrape http.Handler, ready func() readiness.Answer) error {
	c := s.config
	if err := s.buildNotifier(ready); err != nil {
		return err
	}
	scrapes, err := c.newScrapes(scrape, reg)
	if err != nil {
		return err
	}
	s.addSlots("scrapes", scrapes, func(c *config) (int64, int64) { return c.maxConcurrentScrapes, c.maxScrapesPerSecond })
	opts := c.httpOptions()
	opts.Config = s.webConfig
	mux := newMux(scrapes, ready)
	if err := s.addPages(mux, scrapes, reg); err != nil {
		return err
	}
	if c.enableLifecycle {
		// A browser in the network must not be sent here by a page of somebody else.
		mux.Handle("POST /-/reload", web.SameOrigin(s.reloader, s.webConfig))
		if log := logControlOf(s.log); log != nil {
			mux.Handle("POST /-/log-level", web.SameOrigin(log.level, s.webConfig))
		}
	}
	if s.http, err = web.NewServer(mux, opts, reg, s.log.With("component", "http")); err != nil {
		return err
	}
	s.Add("http", func(n *candidate) error { return s.http.Reconfigure(n.config.httpOptions()) }, func() any { return s.http.Options() })
	if c.pprofAddress != "" {
		if s.pprof, err = web.NewServer(pprofMux(), c.pprofOptions(), reg, s.log.With("component", "pprof")); err != nil {
			return err
		}
		s.Add("pprof", func(n *candidate) error { return s.pprof.Reconfigure(n.config.pprofOptions()) }, func() any { return s.pprof.Options() })
	}
	if c.probeAddress == "" {
		return nil
	}
	probes := http.NewServeMux()
	addProbes(probes, func() readiness.Answer { // nobody is asked for a password there
		r := ready()
		r.Warnings = nil
		return r
	})
	if s.probes, err = web.NewServer(probes, c.probeOptions(), reg, s.log.With("component", "probes")); err != nil {
		return err
	}
	s.Add("probes", func(n *candidate) error { return s.probes.Reconfigure(n.config.probeOptions()) }, func() any { return s.probes.Options() })
	return nil
}
