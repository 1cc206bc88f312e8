// Package targets scrapes the metrics of coderds, as Prometheus does, and pushes them to
// the service, an instance for each process.
//
// A target is a URL, or an address of a name that is looked up again and again. Which
// process answers is told by its start time. Several bridges may have the same targets:
// they find the same instances. The service grants a target to one of them, and takes in
// only what was scraped later than what it has.
package targets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/config"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/backoff"
	"github.com/coder/agentstatsd/internal/recurring"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Targets are the coderds that are scraped.
type Targets struct {
	service    agentstatsv1.CoderdServiceClient
	tasks      *client.Coderd
	holder     uuid.UUID // who acquires targets
	sources    []*source
	opts       Options
	http       *config.HTTPClientConfig // nil: there is none
	metrics    *metrics
	log        *slog.Logger
	leftOutLog recurring.Events // families

	mu sync.Mutex
	// running are the targets by name, lookups why names cannot be looked up. Guarded by
	// mu.
	running map[string]*runningTarget
	lookups map[string]error
}

// runningTarget is a target with the goroutine that scrapes it.
type runningTarget struct {
	*target
	source  *source
	stop    context.CancelFunc
	removed atomic.Bool
}

// New makes Targets, which are scraped once Run is called. conn carries coderd's
// credential, and is not closed.
func New(conn grpc.ClientConnInterface, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Targets, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("targets options: %w", err)
	}
	conf, err := readHTTPConfig(opts.HTTPConfigFile)
	if err != nil {
		return nil, err
	}
	if _, err := newClient(opts, opts.Dial, conf); err != nil {
		return nil, err
	}
	m, err := newMetrics(&opts, reg)
	if err != nil {
		return nil, err
	}
	tasks, err := client.NewCoderd(conn, client.CoderdOptions{Logger: log})
	if err != nil {
		return nil, err
	}
	t := &Targets{
		service: agentstatsv1.NewCoderdServiceClient(conn), tasks: tasks, holder: uuid.New(), opts: opts, http: conf, metrics: m, log: log,
		running: make(map[string]*runningTarget), lookups: make(map[string]error),
	}
	for _, text := range opts.URLs {
		s, err := parseSource(text)
		if err != nil {
			return nil, err
		}
		t.sources = append(t.sources, s)
	}
	return t, nil
}

// Run scrapes all targets until ctx ends. It returns nil then.
func (t *Targets) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for _, s := range t.sources {
		if !s.all {
			t.start(ctx, &running, s, s.name, "")
			continue
		}
		running.Go(func() {
			for t.lookUp(ctx, &running, s); backoff.Sleep(ctx, t.opts.LookupInterval); {
				t.lookUp(ctx, &running, s)
			}
		})
	}
	<-ctx.Done()
	return nil
}

// Warnings says what does not work now.
func (t *Targets) Warnings() (all []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, err := range t.lookups {
		all = append(all, fmt.Sprintf("addresses of coderd are not looked up: %s: %v", name, err))
	}
	for name, r := range t.running {
		r.mu.Lock()
		if r.failure != nil {
			all = append(all, fmt.Sprintf("coderd is not scraped: %s: %v", name, r.failure))
		}
		r.mu.Unlock()
	}
	slices.Sort(all)
	return all
}

// start starts a target, unless it runs, perhaps to its end, or there is no room for it. It
// returns whether it runs then.
func (t *Targets) start(ctx context.Context, running *sync.WaitGroup, s *source, name, address string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running[name] != nil {
		return true
	}
	if len(t.running) >= t.opts.MaxTargets {
		return false
	}
	ctx, stop := context.WithCancel(ctx)
	r := &runningTarget{target: newTarget(t, name, newScraper(s.url, address, t.opts, t.http)), source: s, stop: stop}
	t.running[name] = r
	running.Go(func() {
		r.run(ctx, r.removed.Load)
		stop()
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.running, name)
	})
	return true
}

// lookUp starts and removes targets as the name of s says. If it cannot be looked up, they
// stay.
func (t *Targets) lookUp(ctx context.Context, running *sync.WaitGroup, s *source) {
	bounded, cancel := context.WithTimeout(ctx, t.opts.Timeout)
	found, err := t.opts.Resolver.LookupNetIP(bounded, "ip", s.url.Hostname())
	cancel()
	if err == nil && len(found) == 0 {
		err = errors.New("it has no addresses")
	}
	if ctx.Err() != nil {
		return
	}
	t.noteLookup(s, err)
	if err != nil {
		t.metrics.lookups.WithLabelValues(lookupFailed).Inc()
		return
	}
	var wanted []string
	for _, addr := range ofOneFamily(found) {
		wanted = append(wanted, net.JoinHostPort(addr.String(), s.port()))
	}
	slices.Sort(wanted)
	t.remove(s, wanted)
	outcome := lookupOK
	for _, name := range slices.Compact(wanted) {
		if !t.start(ctx, running, s, name, name) {
			outcome = lookupTooMany
		}
	}
	t.metrics.lookups.WithLabelValues(outcome).Inc()
}

// remove removes the targets of a source that are not wanted.
func (t *Targets) remove(s *source, wanted []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, r := range t.running {
		if r.source == s && !slices.Contains(wanted, name) {
			r.removed.Store(true)
			r.stop()
		}
	}
}

func (t *Targets) noteLookup(s *source, err error) {
	t.mu.Lock()
	before := t.lookups[s.name]
	delete(t.lookups, s.name)
	if err != nil {
		t.lookups[s.name] = err
	}
	t.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		t.log.Warn("addresses of coderd are not looked up: those of before are scraped", "name", s.name, "error", err)
	}
}

// ofOneFamily returns the IPv4 addresses, or those of IPv6 if there are no others. A
// coderd with both would be scraped twice.
func ofOneFamily(found []netip.Addr) (out []netip.Addr) {
	for _, a := range found {
		if a = a.Unmap(); a.Is4() {
			out = append(out, a)
		}
	}
	if len(out) > 0 {
		return out
	}
	return found
}
