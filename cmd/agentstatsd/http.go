package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/exporter-toolkit/web"

	"github.com/coder/agentstatsd/metrics"
)

// newMux returns what the HTTP listener serves: the registry at / and /metrics,
// liveness at /-/healthy, readiness at /-/ready.
func newMux(scrape http.Handler, checks []check) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("/{$}", scrape)
	mux.Handle("/metrics", scrape)
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("healthy\n"))
	})
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) {
		r := ready(checks)
		w.Header().Set("Content-Type", "application/json")
		if !r.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(r)
	})
	return mux
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

// httpStop bounds the wait for requests that are being served at shutdown.
const httpStop = time.Second

// serveHTTP serves until ctx ends, then waits a moment for requests that are
// being served. webConfigFile, if not empty, adds TLS and authentication.
func serveHTTP(ctx context.Context, lis net.Listener, handler http.Handler, webConfigFile string, log *slog.Logger) error {
	server := &http.Server{
		Handler: handler,
		// Against clients that connect and say nothing, or say it slowly. The
		// scrape handler bounds the time to read a response itself.
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		// Above Prometheus's usual scrape interval, so that it keeps its
		// connection.
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 64 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	lis = metrics.GatherWrites(server, lis)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		shutdownCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpStop)
		defer cancel()
		if err := server.Shutdown(shutdownCtx); err != nil {
			_ = server.Close()
		}
	})
	err := web.Serve(lis, server, &web.FlagConfig{WebConfigFile: &webConfigFile}, log)
	if stop() {
		// It ended by itself.
		return fmt.Errorf("serve HTTP on %s: %w", lis.Addr(), err)
	}
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
