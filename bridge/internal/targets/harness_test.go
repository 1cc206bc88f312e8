package targets

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/internal/edgetest"
	ownmetrics "github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// setup has the real service, coderds in memory, and bridges between them.
type setup struct {
	*testing.T
	service *edgetest.Service
	pushed  *pushed.Families
	handler http.Handler // of the whole scrape, once it is made

	mu        sync.Mutex
	listeners map[string]*bufconn.Listener // by address
	addresses []netip.Addr
	lookupErr error
}

func newSetup(t *testing.T, change ...func(*coderdapi.Components)) *setup {
	s := &setup{T: t, listeners: make(map[string]*bufconn.Listener)}
	s.service = edgetest.Start(t, edgetest.Settings{ChangeCoderd: func(c *coderdapi.Components) {
		var err error
		s.pushed, err = pushed.New(c.Reader.(*edgetest.Store), s, pushed.Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		require.NoError(t, s.pushed.Load(t.Context()))
		c.Pushes = s.pushed
		for _, f := range change {
			f(c)
		}
	}})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { require.NoError(t, s.pushed.Run(ctx)) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return s
}

// ReserveFamilies implements pushed.FamilyReserver.
func (s *setup) ReserveFamilies(names map[string]ownmetrics.Type) {
	s.service.Series.ReserveFamilies(names)
}

// serve serves h at an address, in place of whoever did.
func (s *setup) serve(address string, h http.Handler) (stop func()) {
	listener := s.listen(address)
	server := &http.Server{Handler: h}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	stop = sync.OnceFunc(func() {
		_ = server.Close()
		serving.Wait()
	})
	s.Cleanup(stop)
	return stop
}

// serveTLS serves h at an address with a certificate for example.com. It returns that as PEM.
func (s *setup) serveTLS(address string, h http.Handler) []byte {
	server := httptest.NewUnstartedServer(h)
	require.NoError(s, server.Listener.Close())
	server.Listener = s.listen(address)
	server.StartTLS()
	s.Cleanup(server.Close)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

func (s *setup) listen(address string) *bufconn.Listener {
	listener := bufconn.Listen(256 << 10)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners[address] = listener
	return listener
}

func (s *setup) dial(ctx context.Context, _, address string) (net.Conn, error) {
	s.mu.Lock()
	listener := s.listeners[address]
	s.mu.Unlock()
	if listener == nil {
		return nil, errors.New("connection refused")
	}
	return listener.DialContext(ctx)
}

// LookupNetIP implements Resolver.
func (s *setup) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.addresses), s.lookupErr
}

// resolve has the name lead to addresses.
func (s *setup) resolve(err error, addresses ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses, s.lookupErr = nil, err
	for _, a := range addresses {
		s.addresses = append(s.addresses, netip.MustParseAddr(a))
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// bridge is a Targets that runs.
type bridge struct {
	*Targets
	log  *lockedBuffer
	stop func()
}

// start runs Targets until the test ends.
func (s *setup) start(opts Options) *bridge {
	conn, err := client.Dial("passthrough:///service", client.DialOptions{Plaintext: true, Token: edgetest.CoderdToken},
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.service.Dial(ctx) }))
	require.NoError(s, err)
	opts.Dial, opts.Resolver = s.dial, s
	b := &bridge{log: &lockedBuffer{}}
	b.Targets, err = New(conn, opts, prometheus.NewPedanticRegistry(), slog.New(slog.NewTextHandler(b.log, nil)))
	require.NoError(s, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { require.NoError(s, b.Run(ctx)) })
	b.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		require.NoError(s, conn.Close())
	})
	s.Cleanup(b.stop)
	return b
}

func (b *bridge) scrapes(target string, o outcome) int {
	return int(testutil.ToFloat64(b.metrics.scrapes.WithLabelValues(target, string(o))))
}

func (b *bridge) left(reason string) int {
	return int(testutil.ToFloat64(b.metrics.leftOut.WithLabelValues(reason)))
}

// requireServed fails unless the service serves these lines of the families that they name.
func (s *setup) requireServed(name string, lines ...string) {
	s.Helper()
	var b bytes.Buffer
	require.NoError(s, s.pushed.WriteText(&b))
	var got []string
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, name) {
			got = append(got, strings.TrimSpace(line))
		}
	}
	require.Equal(s, lines, got)
}

// process is a coderd with metrics of its own.
type process struct {
	*prometheus.Registry
	requests prometheus.Counter
	current  prometheus.Gauge
	native   prometheus.Histogram
}

func newProcess(start float64) *process {
	p := &process{
		Registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounter(prometheus.CounterOpts{Name: "coderd_test_total", Help: "Counted."}),
		current:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "coderd_api_concurrent_requests", Help: "Current."}),
		native:   prometheus.NewHistogram(prometheus.HistogramOpts{Name: "coderd_test_seconds", Help: "Native.", NativeHistogramBucketFactor: 1.1}),
	}
	started := prometheus.NewGauge(prometheus.GaugeOpts{Name: startTimeName, Help: "Start time."})
	started.Set(start)
	p.MustRegister(p.requests, p.current, p.native, started)
	return p
}

func (p *process) handler() http.Handler {
	return promhttp.HandlerFor(p.Registry, promhttp.HandlerOpts{})
}

// text serves one body of the text format.
func textHandler(body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = fmt.Fprint(w, body)
	})
}

const interval = 15 * time.Second
