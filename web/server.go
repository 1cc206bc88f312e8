// Package web is the edge of the HTTP listener: what stands between the network and
// a handler. It bounds connections, requests and time. Slow and greedy readers cannot
// take all the room. A web configuration file of Prometheus's exporter toolkit sets TLS
// and passwords.
package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/handshake"
	"github.com/coder/agentstatsd/internal/recurring"
	"github.com/coder/agentstatsd/scrape"
	"github.com/coder/agentstatsd/secrets"
)

const (
	// maxStreams bounds the requests at once on one connection of HTTP/2.
	maxStreams = 32
	// bodyTimeout bounds the reading of the body of a request that is refused for having
	// one. A client whose body is not read may not see the answer.
	bodyTimeout = time.Second
	// stopTimeout bounds the wait for requests that are being served at a stop.
	stopTimeout = time.Second
)

// Server serves a handler on a listener.
type Server struct {
	http      *http.Server
	conns     *conns
	settings  *secrets.Watched[*settings] // nil: there is no file
	handshake *handshake.Gate             // nil: likewise
	opts      atomic.Pointer[Options]     // Reconfigure replaces them
	passwords *passwords
	next      http.Handler
}

// NewServer returns a server of next. It registers families in reg.
func NewServer(next http.Handler, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Server, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("web options: %w", err)
	}
	s := &Server{passwords: newPasswords(), next: next}
	s.opts.Store(&opts)
	s.conns = &conns{
		max: opts.MaxConns, maxPerAddress: opts.MaxConnsPerAddress,
		all: make(map[net.Conn]*conn), addresses: make(map[netip.Prefix]int),
	}
	if opts.Config != nil {
		s.settings = opts.Config.settings
		var err error
		if s.handshake, err = handshake.New(opts.Handshakes, opts.Name, reg, log); err != nil {
			return nil, err
		}
	}
	labelled := prometheus.WrapRegistererWith(prometheus.Labels{"listener": opts.Name}, reg)
	m, err := newServerMetrics(labelled)
	if err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	var closed recurring.Events
	s.conns.refused = func(limit string) {
		m.closed.WithLabelValues(limit).Inc()
		// Its caller has locked the mutex.
		go closed.Log(context.Background(), log, slog.LevelWarn, "connections", 1, "connections of HTTP are closed to stay within a limit",
			"listener", opts.Name, "limit", limit)
	}
	if err := s.registerGauges(labelled); err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	if err := s.registerLimits(opts.Name, reg); err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	s.http = &http.Server{
		Handler: s,
		// Against clients that connect and say nothing, or say it slowly.
		ReadHeaderTimeout: 10 * time.Second,
		WriteTimeout:      opts.WriteTimeout,
		// Above Prometheus's usual scrape interval, so that it keeps its
		// connection.
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       newErrorLog(log, s.handshake),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			// No request has a body.
			MaxReceiveBufferPerConnection: 64 << 10,
			MaxReceiveBufferPerStream:     16 << 10,
			SendPingTimeout:               time.Minute,
			WriteByteTimeout:              30 * time.Second,
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if known := s.conns.find(c); known != nil {
				return withConn(ctx, known)
			}
			return ctx
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				s.conns.remove(c)
			}
		},
	}
	return s, nil
}

// Options returns the options in force, with their defaults.
func (s *Server) Options() Options {
	opts := *s.opts.Load()
	if s.handshake != nil {
		opts.Handshakes = s.handshake.Options()
	}
	opts.MaxConns, opts.MaxConnsPerAddress = s.conns.limits()
	return opts
}

func (s *Server) inForce() *Options {
	opts := s.Options()
	return &opts
}

// Reconfigure changes the limits of connections and handshakes. Connections above a
// lowered limit stay. After an error nothing has changed.
func (s *Server) Reconfigure(opts Options) error {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("web options: %w", err)
	}
	if s.handshake != nil {
		if err := s.handshake.Reconfigure(opts.Handshakes); err != nil {
			return err
		}
	}
	s.conns.setLimits(opts.MaxConns, opts.MaxConnsPerAddress)
	before := s.opts.Load()
	opts.Name, opts.Config, opts.WriteTimeout = before.Name, before.Config, before.WriteTimeout
	s.opts.Store(&opts)
	return nil
}

// Serve serves on lis until ctx ends, then waits a moment for requests that are
// being served. It returns nil when that was what ended it. It is called once.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	lis = scrape.GatherWrites(s.http, boundedListener{lis, s.conns})
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		shutdownCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if err := s.http.Shutdown(shutdownCtx); err != nil {
			_ = s.http.Close()
		}
	})
	err := s.serve(lis)
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

func (s *Server) serve(lis net.Listener) error {
	if s.settings == nil || s.settings.Get().tls == nil {
		return s.http.Serve(lis)
	}
	if !s.settings.Get().http2 {
		s.http.Protocols = new(http.Protocols)
		s.http.Protocols.SetHTTP1(true)
	}
	s.http.TLSConfig = &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: s.handshake.Config(func() *tls.Config { return s.settings.Get().tls }),
	}
	return s.http.ServeTLS(lis, "", "")
}

// ServeHTTP implements http.Handler: it lets to the handler who may come in.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := connOf(r)
	if r.ContentLength != 0 {
		// net/http would wait for the body before it answers, and after.
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
		http.Error(w, "no request here has a body", http.StatusRequestEntityTooLarge)
		return
	}
	if !s.admit(w, r, c) {
		return
	}
	defer s.conns.serve(c)()
	s.next.ServeHTTP(w, r)
}

// admit answers who may not come in, and reports who may.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, c *conn) bool {
	if s.settings == nil {
		return true
	}
	now := s.settings.Get()
	for name, value := range now.headers {
		w.Header().Set(name, value)
	}
	if len(now.users) > 0 && s.passwords.isKnown(r, now.users) {
		return true
	}
	if now.limiter != nil && !now.limiter.Allow() {
		answer(w, http.StatusTooManyRequests)
		return false
	}
	if len(now.users) == 0 {
		return true
	}
	code := s.passwords.check(r, c.address, now.users)
	if code == http.StatusOK {
		return true
	}
	if code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Basic")
	}
	answer(w, code)
	return false
}

func answer(w http.ResponseWriter, code int) {
	if code != http.StatusUnauthorized {
		w.Header().Set("Retry-After", "1")
	}
	http.Error(w, http.StatusText(code), code)
}
