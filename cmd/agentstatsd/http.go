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
)

// newMux returns what the HTTP listener serves: the registry at / and /metrics,
// liveness at /-/healthy, readiness at /-/ready, with the warnings.
func newMux(scrape http.Handler, ready func() readiness.Answer) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("/{$}", scrape)
	mux.Handle("/metrics", scrape)
	addProbes(mux, ready)
	return mux
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

// buildHTTP makes the HTTP edge.
func (s *service) buildHTTP(reg prometheus.Registerer, scrape http.Handler, ready func() readiness.Answer) error {
	c := s.config
	scrapes, err := c.newScrapes(scrape, reg)
	if err != nil {
		return err
	}
	s.Add("scrapes", func(n *candidate) error {
		scrapes.Reconfigure(int(n.config.maxConcurrentScrapes), rate.Limit(n.config.maxScrapesPerSecond))
		return nil
	}, func() any {
		slots, perSecond := scrapes.Limits()
		return [2]float64{float64(slots), float64(perSecond)}
	})
	opts := c.httpOptions()
	opts.Config = s.webConfig
	mux := newMux(scrapes, ready)
	if c.enableLifecycle {
		// A browser in the network must not be sent here by a page of somebody else.
		sameOrigin := http.NewCrossOriginProtection()
		mux.Handle("POST /-/reload", sameOrigin.Handler(s.reloader))
		if log := logControlOf(s.log); log != nil {
			mux.Handle("POST /-/log-level", sameOrigin.Handler(log.level))
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
