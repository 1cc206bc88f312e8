// Package bridge stands between a stock Coder and the service: it passes agents' connections
// on to coderd unchanged, decodes a copy, and relays what it says to the service. It knows the
// service only as a client.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/coder/agentstatsd/bridge/internal/copies"
	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/bridge/internal/proxy"
	"github.com/coder/agentstatsd/bridge/internal/relaying"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/recurring"
)

const (
	// headerTimeout bounds the time until a request's header is there.
	headerTimeout = 10 * time.Second
	// maxHeaderBytes bounds a header as nginx does. With it a connection that waits for one
	// takes as much as an agent's that is open, 40 KB, and needs no token.
	maxHeaderBytes = 32 << 10
	// idleTimeout is how long a connection without a request is kept.
	idleTimeout = 2 * time.Minute
	// stopTimeout bounds the time for requests that are under way at the end.
	stopTimeout = 2 * time.Second
	// limitedFor is how long it is a warning that coderd answered 429, or that requests were
	// too many, and awayFor that coderd did not answer.
	limitedFor = 5 * time.Minute
	awayFor    = time.Minute
)

// Bridge passes agents' connections on to coderd, and relays what they say.
//
//	new --Serve--> ready --its context ends--> draining --> closed
type Bridge struct {
	opts     Options
	service  *grpc.ClientConn
	budget   *decode.Budget
	copies   *copies.Copies
	proxy    *proxy.Proxy
	relaying *relaying.Relaying
	metrics  *metrics
	log      *slog.Logger
	givenUp  recurring.Events // connections

	serving, draining atomic.Bool
}

// New returns a Bridge to the service that conn, which it does not close, leads to with
// coderd's credential. It does nothing before Serve.
func New(conn *grpc.ClientConn, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Bridge, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("bridge options: %w", err)
	}
	b := &Bridge{opts: opts, service: conn, budget: decode.NewBudget(opts.MaxDecoderBytes), log: log}
	b.copies = copies.New(b.budget)
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{Logger: log})
	if err != nil {
		return nil, err
	}
	relays, err := coderd.Relays(client.RelaysOptions{
		MaxAgents: opts.MaxAgents, Backoff: opts.Backoff, Logger: log,
		OnUnknown: func(agentID uuid.UUID) { b.relaying.Unknown(agentID) },
	})
	if err != nil {
		return nil, err
	}
	if b.relaying, err = relaying.New(relays, relaying.Options{Connected: opts.Connected, Unknown: opts.Unknown}, reg, log); err != nil {
		return nil, err
	}
	if b.proxy, err = proxy.New(opts.Upstream, b.open, proxy.Options{
		TLS: opts.UpstreamTLS, DrainTimeout: opts.DrainTimeout, MaxConnections: opts.MaxConnections, DropForwarded: opts.DropForwarded,
	}, reg, log); err != nil {
		return nil, err
	}
	if b.metrics, err = newMetrics(reg); err != nil {
		return nil, err
	}
	return b, b.registerGauges(reg)
}

// Options returns the options in force.
func (b *Bridge) Options() Options {
	opts := b.opts
	opts.MaxConnections = b.proxy.MaxConnections()
	return opts
}

// Reconfigure changes MaxConnections. What there is above a lowered limit stays. After an
// error nothing has changed.
func (b *Bridge) Reconfigure(opts Options) error {
	if err := b.proxy.SetMaxConnections(opts.MaxConnections); err != nil {
		return fmt.Errorf("bridge options: %w", err)
	}
	return nil
}

// httpErrors gets net/http's error log. What strangers send is no error of ours.
type httpErrors func(line string)

// Write implements io.Writer for log.Logger: one call for each line.
func (f httpErrors) Write(line []byte) (int, error) {
	if f != nil {
		f(string(line))
	}
	return len(line), nil
}

// Serve serves agents on lis until ctx ends. Then it refuses new connections, closes the open
// ones one after another, and delivers what was said; each wait is bounded. It returns an
// error if it cannot serve, or cannot deliver all.
func (b *Bridge) Serve(ctx context.Context, lis net.Listener) error {
	server := &http.Server{
		Handler: b.proxy, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: maxHeaderBytes, IdleTimeout: idleTimeout,
		ConnState: b.proxy.ConnState, ConnContext: b.proxy.ConnContext,
		ErrorLog: log.New(httpErrors(b.opts.HTTPError), "", 0),
	}
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	decoded := make(chan struct{})
	go func() {
		defer close(decoded)
		_ = b.copies.Run(work) // which returns no error
	}()
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	b.serving.Store(true)

	var failed error
	select {
	case <-ctx.Done():
	case failed = <-served:
		failed = fmt.Errorf("serve agents: %w", failed)
	}
	b.draining.Store(true)
	if failed == nil {
		wait(work, b.opts.DrainDelay)
	}
	b.log.Info("agents' connections are closed, one after another", "connections", b.proxy.Connections(), "within", b.opts.DrainTimeout)
	drain, cancel := context.WithTimeout(work, b.opts.DrainTimeout+stopTimeout)
	b.proxy.Drain(drain)
	cancel()
	stop, cancel := context.WithTimeout(work, stopTimeout)
	if server.Shutdown(stop) != nil {
		_ = server.Close()
	}
	cancel()
	stopWork()
	<-decoded
	deliver, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.opts.CloseTimeout)
	defer cancel()
	return errors.Join(failed, b.relaying.Close(deliver))
}

// wait waits for so long, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Ready returns an error while agents should not be sent here. Neither the service nor coderd
// has a say in it, so their faults take no agents away.
func (b *Bridge) Ready() error {
	switch {
	case b.draining.Load():
		return errors.New("the bridge is about to stop")
	case !b.serving.Load():
		return errors.New("the bridge does not listen yet")
	}
	return nil
}

// Warnings says what does not work, though agents' connections do.
func (b *Bridge) Warnings() (all []string) {
	if state := b.service.GetState(); state == connectivity.TransientFailure {
		all = append(all, "agentstatsd cannot be reached: what agents say waits")
	}
	limited, away := b.proxy.Trouble()
	if !away.IsZero() && time.Since(away) < awayFor {
		all = append(all, "coderd cannot be reached, or answers no HTTP")
	}
	if !limited.IsZero() && time.Since(limited) < limitedFor {
		all = append(all, "coderd answered 429, as it counts all agents as one address: it has to trust this bridge's X-Forwarded-For "+
			"(CODER_PROXY_TRUSTED_HEADERS, CODER_PROXY_TRUSTED_ORIGINS)")
	}
	if at := b.proxy.FullAt(); !at.IsZero() && time.Since(at) < limitedFor {
		all = append(all, "agents were answered 503, as there were as many connections as --max-agent-connections allows")
	}
	return all
}
