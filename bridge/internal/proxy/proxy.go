// Package proxy passes the connections of workspace agents on to coderd, byte by byte, and
// has them copied. All other requests it passes on as any reverse proxy does.
package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/recurring"
)

// AgentPath is that of agents' connections.
const AgentPath = "/api/v2/workspaceagents/me/rpc"

// The kinds of upgraded connections.
const (
	kindAgent = "agent"
	kindOther = "other"
)

// Copy gets a copy of what is passed on. Add does not block, and keeps nothing of b.
type Copy interface {
	Add(fromAgent bool, b []byte)
	Close()
}

// Handshake is what an agent's connection began with.
type Handshake struct {
	// Version of the API that the agent asked for, such as 2.6.
	Version string
	// Extensions that coderd accepted; empty: none.
	Extensions string
}

// Proxy is a reverse proxy before one coderd. The http.Server that serves it has its
// ConnState and ConnContext. It is safe for concurrent use.
type Proxy struct {
	opts     Options
	upstream *url.URL
	// open returns the Copy of an agent's connection; nil: there is none.
	open       func(Handshake) Copy
	reverse    *httputil.ReverseProxy
	conns      *conns
	metrics    *metrics
	log        *slog.Logger
	unanswered recurring.Events // requests

	mu       sync.Mutex
	draining bool                 // guarded by mu
	limited  time.Time            // when coderd last answered that an address asks too often. Likewise
	away     time.Time            // when it last did not answer. Likewise
	tunnels  map[*tunnel]struct{} // likewise
	empty    chan struct{}        // closed once it drains and has no tunnels. Likewise
}

// New returns a Proxy to the coderd at upstream. open is called for each connection of an
// agent that coderd has accepted, but for those of other roles, like log streamers. It must
// not block. What it returns is closed at the end of the connection.
func New(upstream *url.URL, open func(Handshake) Copy, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Proxy, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("proxy options: %w", err)
	}
	if upstream == nil || upstream.Host == "" || upstream.Scheme != "http" && upstream.Scheme != "https" {
		return nil, errors.New("proxy options: upstream: want a URL of http or https with a host")
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		opts: opts, upstream: upstream, open: open, conns: newConns(opts.MaxConnections, m), metrics: m, log: log,
		tunnels: make(map[*tunnel]struct{}), empty: make(chan struct{}),
	}
	dialer := &net.Dialer{Timeout: opts.DialTimeout, KeepAlive: 15 * time.Second}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // in which alone a connection can be upgraded
	p.reverse = &httputil.ReverseProxy{
		Rewrite: p.rewrite,
		Transport: &transport{proxy: p, Transport: &http.Transport{
			DialContext: dialer.DialContext, DisableCompression: true, Protocols: protocols, TLSClientConfig: opts.TLS,
			MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: opts.DialTimeout,
		}},
		FlushInterval:  -1,
		ModifyResponse: p.answered,
		ErrorHandler:   p.failed,
		ErrorLog:       silent,
	}
	return p, p.registerLimits(reg)
}

// silent logs nothing: errors of the reverse proxy may repeat what passed.
var silent = log.New(io.Discard, "", 0)

// exchange is a request that is passed on.
type exchange struct {
	decoded bool // it is of an agent, whose calls are decoded
	tunnel  *tunnel
	// malformed: the request's body is.
	malformed atomic.Bool
}

type exchangeKey struct{}

// ServeHTTP passes a request on.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	requests, ofAgent := p.metrics.requests, r.URL.Path == AgentPath
	if ofAgent {
		requests = p.metrics.handshakes
	}
	if p.isDraining() {
		requests.WithLabelValues("503").Inc()
		refuse(w, "this bridge is about to stop")
		return
	}
	served := p.conns.serve(r.Context(), ofAgent)
	if served == nil {
		requests.WithLabelValues("503").Inc()
		w.Header().Set("Retry-After", retryAfter)
		refuse(w, "this bridge serves as many requests as --max-agent-connections allows")
		return
	}
	defer served()
	x := &exchange{decoded: isAgent(r)}
	recorder := &statusRecorder{ResponseWriter: w}
	defer func() {
		// A panic of the reverse proxy ends the request only.
		if x.tunnel != nil {
			_ = x.tunnel.Close()
		}
	}()
	recorder.done = func(code int) {
		requests.WithLabelValues(strconv.Itoa(code)).Inc()
		if code == http.StatusTooManyRequests && ofAgent {
			p.mu.Lock()
			p.limited = time.Now()
			p.mu.Unlock()
		}
	}
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	r.Body = &requestBody{r.Body, &x.malformed}
	p.reverse.ServeHTTP(recorder, r)
}

// requestBody notes that it is malformed.
type requestBody struct {
	io.ReadCloser
	malformed *atomic.Bool
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.malformed.Store(true)
	}
	return n, err
}

// retryAfter is in seconds what agents wait for at most.
const retryAfter = "10"

// refuse answers a request that is not passed on.
func refuse(w http.ResponseWriter, why string) {
	w.Header().Set("Connection", "close")
	http.Error(w, "agentstatsd: "+why, http.StatusServiceUnavailable)
}

// isAgent reports whether a request is that of an agent for its connection. A role says
// that it is somebody else's.
func isAgent(r *http.Request) bool {
	if r.URL.Path != AgentPath || r.Method != http.MethodGet || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return false
	}
	role := r.URL.Query().Get("role")
	return role == "" || role == "agent"
}

// rewrite makes the request to coderd: as it came, with the peer's address added.
func (p *Proxy) rewrite(r *httputil.ProxyRequest) {
	const forwardedFor, forwardedProto = "X-Forwarded-For", "X-Forwarded-Proto"
	r.SetURL(p.upstream)
	r.Out.Host = r.In.Host
	r.Out.URL.RawQuery = r.In.URL.RawQuery
	for _, name := range []string{"Forwarded", forwardedFor, "X-Forwarded-Host", forwardedProto} {
		if values, ok := r.In.Header[name]; ok && !p.opts.DropForwarded {
			r.Out.Header[name] = slices.Clone(values)
		}
	}
	if p.opts.DropForwarded && r.In.TLS != nil {
		r.Out.Header.Set(forwardedProto, "https")
	}
	if peer, _, err := net.SplitHostPort(r.In.RemoteAddr); err == nil {
		r.Out.Header.Set(forwardedFor, strings.Join(append(r.Out.Header[forwardedFor], peer), ", "))
	}
	if x, _ := r.In.Context().Value(exchangeKey{}).(*exchange); x != nil && x.decoded {
		withoutCompression(r.Out.Header)
	}
}

// withoutCompression takes the offers of compression out of a handshake.
func withoutCompression(h http.Header) {
	const name = "Sec-Websocket-Extensions"
	offers, ok := h[name]
	if !ok {
		return
	}
	var kept []string
	for _, line := range offers {
		var others []string
		for offer := range strings.SplitSeq(line, ",") {
			extension, _, _ := strings.Cut(offer, ";")
			if !strings.Contains(strings.ToLower(extension), "deflate") {
				others = append(others, offer)
			}
		}
		if len(others) > 0 {
			kept = append(kept, strings.Join(others, ","))
		}
	}
	if len(kept) == 0 {
		delete(h, name)
		return
	}
	h[name] = kept
}

// answered is called with coderd's answer. It takes over upgraded connections.
func (p *Proxy) answered(resp *http.Response) error {
	backend, upgraded := resp.Body.(io.ReadWriteCloser)
	x, _ := resp.Request.Context().Value(exchangeKey{}).(*exchange)
	if resp.StatusCode != http.StatusSwitchingProtocols || !upgraded || x == nil {
		return nil
	}
	t := &tunnel{ReadWriteCloser: backend, metrics: p.metrics}
	kind := kindOther
	if x.decoded {
		kind = kindAgent
		version := resp.Request.URL.Query().Get("version")
		t.copy = p.open(Handshake{Version: version, Extensions: resp.Header.Get("Sec-Websocket-Extensions")})
	}
	t.close = func() { p.remove(t, kind) }
	x.tunnel, resp.Body = t, t
	if !p.add(t, kind) {
		return errDraining
	}
	return nil
}

var errDraining = errors.New("this bridge is about to stop")

// failed answers a request that coderd did not.
func (p *Proxy) failed(w http.ResponseWriter, _ *http.Request, err error) {
	code := http.StatusBadGateway
	if errors.Is(err, errDraining) {
		code = http.StatusServiceUnavailable
	}
	w.WriteHeader(code)
}

// transport is that to coderd. It notes when coderd does not answer.
type transport struct {
	*http.Transport
	proxy *Proxy
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(r)
	x, _ := r.Context().Value(exchangeKey{}).(*exchange)
	if err == nil || r.Context().Err() != nil || x != nil && x.malformed.Load() { // or it is the sender's fault
		return resp, err
	}
	p := t.proxy
	p.metrics.unreachable.Inc()
	p.mu.Lock()
	p.away = time.Now()
	p.mu.Unlock()
	p.unanswered.Log(r.Context(), p.log, slog.LevelWarn, "requests", 1, "coderd does not answer", "upstream", p.upstream.Host, "error", causeOf(err))
	return resp, err
}

// causeOf says why coderd did not answer. The text of other errors may repeat a part of what
// it said.
func causeOf(err error) string {
	var network *net.OpError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var timeout net.Error
	switch {
	case errors.As(err, &network):
		return network.Error()
	case errors.As(err, &certificate):
		return certificate.Error()
	case errors.As(err, &record):
		return "it does not speak TLS"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "it took too long"
	case errors.Is(err, io.EOF):
		return "it closed the connection"
	}
	return "the answer is not HTTP"
}

func (p *Proxy) isDraining() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.draining
}

// add counts an upgraded connection; false: it has to end, as the proxy drains.
func (p *Proxy) add(t *tunnel, kind string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tunnels[t] = struct{}{}
	p.metrics.connections.WithLabelValues(kind).Inc()
	return !p.draining
}

func (p *Proxy) remove(t *tunnel, kind string) {
	if t.copy != nil {
		t.copy.Close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tunnels, t)
	p.metrics.connections.WithLabelValues(kind).Dec()
	if p.draining && len(p.tunnels) == 0 {
		p.emptyLocked()
	}
}

func (p *Proxy) emptyLocked() {
	select {
	case <-p.empty:
	default:
		close(p.empty)
	}
}

// Trouble returns when coderd last answered that an address asks too often, and when it last
// did not answer; zero: never.
func (p *Proxy) Trouble() (limited, away time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limited, p.away
}

// Connections returns how many upgraded connections are open.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.tunnels)
}

// Drain refuses new requests, and closes the upgraded connections one after another, spread
// over Options.DrainTimeout, so that agents do not all reconnect at once. It returns when
// there are none any more, or, once it has closed the rest, when ctx ends.
func (p *Proxy) Drain(ctx context.Context) {
	p.mu.Lock()
	p.draining = true
	open := make([]*tunnel, 0, len(p.tunnels))
	for t := range p.tunnels {
		open = append(open, t)
	}
	if len(open) == 0 {
		p.emptyLocked()
	}
	p.mu.Unlock()
	rand.Shuffle(len(open), func(i, j int) { open[i], open[j] = open[j], open[i] })
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, t := range open {
		// The first goes at once, the last before the time is over.
		timer.Reset(time.Until(began.Add(p.opts.DrainTimeout * time.Duration(i) / time.Duration(len(open)))))
		select {
		case <-timer.C:
		case <-p.empty:
			return
		case <-ctx.Done():
		}
		_ = t.Close()
	}
	select {
	case <-p.empty:
	case <-ctx.Done():
	}
}

// statusRecorder calls done with the status of an answer.
type statusRecorder struct {
	http.ResponseWriter
	done func(code int)
}

// WriteHeader implements http.ResponseWriter.
func (s *statusRecorder) WriteHeader(code int) {
	if code >= 200 {
		s.answered(code)
	}
	s.ResponseWriter.WriteHeader(code)
}

func (s *statusRecorder) answered(code int) {
	if s.done != nil {
		s.done(code)
		s.done = nil
	}
}

// Hijack implements http.Hijacker. The connection begins with what its sender did not wait
// with for the answer, as the reverse proxy reads nothing else.
func (s *statusRecorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(s.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	s.answered(http.StatusSwitchingProtocols)
	if early, _ := buffered.Peek(buffered.Reader.Buffered()); len(early) > 0 {
		conn = &earlyConn{conn, early}
	}
	return conn, buffered, nil
}

// Unwrap is for http.ResponseController.
func (s *statusRecorder) Unwrap() http.ResponseWriter { return s.ResponseWriter }
