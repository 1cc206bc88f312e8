package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	buildinfo "github.com/prometheus/common/version"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/datadir"
	"github.com/coder/agentstatsd/internal/handshake"
	"github.com/coder/agentstatsd/internal/listening"
	"github.com/coder/agentstatsd/internal/memorylimit"
	"github.com/coder/agentstatsd/internal/ownmetrics"
	"github.com/coder/agentstatsd/internal/preflight"
	"github.com/coder/agentstatsd/internal/readiness"
	"github.com/coder/agentstatsd/internal/stages"
	"github.com/coder/agentstatsd/internal/systemd"
	"github.com/coder/agentstatsd/internal/tap"
	"github.com/coder/agentstatsd/intervals"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/refusals"
	"github.com/coder/agentstatsd/replica"
	"github.com/coder/agentstatsd/reports"
	"github.com/coder/agentstatsd/scrape"
	"github.com/coder/agentstatsd/store"
	"github.com/coder/agentstatsd/web"
)

// service is the composition of all components: the only place that knows them
// all. Its listeners are open, so its addresses are known, before it runs.
type service struct {
	config *config // of the start; that in force is in reloading
	log    *slog.Logger
	reloading

	tls        *serverTLS        // nil: gRPC in plaintext
	agentsGate *handshake.Gate   // of a bridge's listener for agents; nil: in plaintext
	webConfig  *web.Config       // nil: HTTP in plaintext, without a password
	tokens     grpcserver.Tokens // of the start
	store      *store.Store
	pubsub     *pubsub.Deployment
	replicas   *replica.Replicas // nil: the service is alone
	aggregator *aggregator.Aggregator
	batcher    *batcher.Batcher
	fleet      *fleet.Fleet
	refusals   *refusals.Refusals
	pushed     *pushed.Families
	reports    *reports.Reports
	intervals  *intervals.Intervals
	api        *grpcserver.Server
	admin      *adminapi.Service
	taps       *tap.Taps // of what agents send
	registry   *metrics.Registry

	grpcListener  net.Listener
	httpListener  net.Listener // nil: not served
	pprofListener net.Listener // nil: not served
	probeListener net.Listener // nil: not served
	http          *web.Server
	pprof         *web.Server
	probes        *web.Server

	manager *systemd.Notifier

	bridge *bridgeParts // nil: there is none in this process

	draining atomic.Bool

	// cleanups run in reverse order when the service ends.
	cleanups []func()
}

// newService builds a service from a validated configuration. It starts
// nothing; the caller calls run, once, which also releases its resources.
func newService(ctx context.Context, c *config, log *slog.Logger) (_ *service, err error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	s := &service{config: c, log: log}
	s.Start(&candidate{config: c})
	// Before anything is made on disk.
	if s.tls, err = watchServerTLS(c, log); err != nil {
		return nil, err
	}
	if err := c.loadWebConfig(s); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	unlock, err := datadir.Lock(c.dataDir)
	if err != nil {
		return nil, err
	}
	s.cleanups = append(s.cleanups, unlock)
	if s.tokens, err = c.readTokens(true, log); err != nil {
		return nil, err
	}
	if err := s.build(ctx); err != nil {
		return nil, err
	}
	if err := s.listen(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// build makes the components, each after those that it needs.
func (s *service) build(ctx context.Context) error {
	c := s.config
	reg := metrics.NewRegistry()
	s.registry = reg
	memorylimit.Set(s.log)
	if err := registerBuildInfo(reg); err != nil {
		return err
	}
	if err := s.registerLogAndTLS(reg, "grpc"); err != nil {
		return err
	}
	if err := s.buildReload(reg); err != nil {
		return err
	}
	var err error
	if err := s.openStore(ctx, reg); err != nil {
		return err
	}
	if s.pubsub, err = s.newPubSub(ctx, reg); err != nil {
		return err
	}
	if err := s.joinReplicas(reg); err != nil {
		return err
	}
	notifications := pubsub.NewMetadata(s.pubsub)
	series := c.aggregatorOptions()
	series.Expired = s.noteExpired
	s.aggregator, err = aggregator.New(series, reg)
	if err != nil {
		return err
	}
	s.Add("aggregator", func(n *candidate) error { return s.aggregator.Reconfigure(n.config.aggregatorOptions()) },
		func() any { return s.aggregator.Options() })
	s.batcher, err = batcher.New(s.store, notifications, c.batcherOptions(), reg, s.log.With("component", "batcher"))
	if err != nil {
		return err
	}
	s.Add("batcher", func(n *candidate) error { return s.batcher.Reconfigure(n.config.batcherOptions()) },
		func() any { return s.batcher.Options() })
	s.fleet, err = fleet.New(s.store, s.aggregator, s.batcher, c.fleetOptions(), reg, s.log.With("component", "fleet"))
	if err != nil {
		return err
	}
	s.Add("fleet", func(n *candidate) error { return s.fleet.Reconfigure(n.config.fleetOptions()) },
		func() any { return s.fleet.Options() })
	s.refusals, err = refusals.New(s.fleet, c.refusalsOptions(), reg, s.log.With("component", "refusals"))
	if err != nil {
		return err
	}
	merges, err := metrics.ParseMerges(c.pushMerge)
	if err != nil {
		return fmt.Errorf("--push-merge: %w", err)
	}
	opts := c.pushedOptions(merges)
	if s.replicas != nil {
		s.fleet.Join(s.replicas, s.pubsub)
		opts.Lease, opts.Notifier = s.replicas, s.pubsub
	}
	s.pushed, err = pushed.New(s.store, s.aggregator, opts, reg, s.log.With("component", "pushed"))
	if err != nil {
		return err
	}
	s.Add("pushed", func(n *candidate) error { return s.pushed.Reconfigure(n.config.pushedOptions(nil)) },
		func() any { return s.pushed.Options() })
	if err := s.buildReports(ctx, reg); err != nil {
		return err
	}
	if err := s.buildIntervals(reg); err != nil {
		return err
	}
	if err := s.buildServer(reg, notifications); err != nil {
		return err
	}
	if err := readiness.Register(reg, s.checks()); err != nil {
		return err
	}
	scrapes := c.scrapeOptions()
	scrapes.Hidden, scrapes.Headers = s.pushed.Passed, reg.Headers
	scrapes.Log = s.log.With("component", "metrics")
	handler, err := scrape.NewHandler(reg, scrapes, s.aggregator.Beside(s.pushed.WithHeaders()))
	if err != nil {
		return err
	}
	return s.buildHTTP(reg, handler, s.ready)
}

// checks are what readiness depends on.
func (s *service) checks() []readiness.Check {
	checks := []readiness.Check{
		{Name: "draining", Err: s.notDraining},
		{Name: "fleet", Err: s.fleet.Healthy},
		{Name: "batcher", Err: s.batcher.Healthy},
		{Name: "pushed", Err: s.pushed.Healthy},
	}
	if s.replicas != nil {
		checks = append(checks, readiness.Check{Name: "replica", Err: s.replicas.Healthy})
	}
	return checks
}

// ready returns the answer of /-/ready.
func (s *service) ready() readiness.Answer {
	own := readiness.Of(s.checks())
	own.Warnings = append(own.Warnings, s.fileWarnings()...)
	if s.pubsub.Connected() != nil { // what it says names servers
		own.Warnings = append(own.Warnings, "there is no connection to the pubsub: this replica sees changes of others only when it reads them again")
	}
	if s.replicas != nil {
		own.Warnings = append(own.Warnings, s.replicas.Warnings()...)
	}
	if s.bridge == nil {
		return own
	}
	return s.bridge.beside(own)
}

// fileWarnings returns what is wrong with the files of the listeners, and with the last reload.
func (s *service) fileWarnings() (warnings []string) {
	now := time.Now()
	if s.tls != nil {
		warnings = append(warnings, s.tls.Warnings(now)...)
	}
	if s.webConfig != nil {
		warnings = append(warnings, s.webConfig.Warnings(now)...)
	}
	if s.reloader != nil {
		warnings = append(warnings, s.reloader.Warnings()...)
	}
	return warnings
}

// buildReports makes the part that keeps reports for watchers. It knows of all
// subscriptions before the first agent can report.
func (s *service) buildReports(ctx context.Context, reg prometheus.Registerer) error {
	opts := s.config.reportsOptions()
	if s.replicas != nil {
		opts.ID, opts.Shared = s.replicas.Self(), true
	}
	var err error
	s.reports, err = reports.New(s.store, opts, reg, s.log.With("component", "reports"))
	if err != nil {
		return err
	}
	if err := s.reports.Load(ctx); err != nil {
		return fmt.Errorf("read subscriptions to reports: %w", err)
	}
	s.Add("reports", func(n *candidate) error { return s.reports.Reconfigure(n.config.reportsOptions()) },
		func() any { return s.reports.Options() })
	return nil
}

// notDraining returns an error once the service stops, and while it drains.
func (s *service) notDraining() error {
	if s.draining.Load() {
		return errors.New("the service is stopping")
	}
	if s.api.IsDraining() {
		return errors.New("an operator has sent the agents away: agentstatsd drain --undo ends that")
	}
	return nil
}

// registerBuildInfo registers the version, as Prometheus's own components do, and what the
// process may take.
func registerBuildInfo(reg prometheus.Registerer) error {
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_build_info",
		Help: "Constant 1, with the version of the service, the revision that it was built from, of Go, and the platform.",
		// The labels are those of client_golang's collectors/version. Its version is a
		// variable of another package, which a linker sets.
		ConstLabels: prometheus.Labels{
			"version": version(), "revision": buildinfo.GetRevision(), "branch": buildinfo.Branch, "tags": buildinfo.GetTags(),
			"goversion": runtime.Version(), "goos": runtime.GOOS, "goarch": runtime.GOARCH,
		},
	}, func() float64 { return 1 })
	return ownmetrics.Register(reg, info, memorylimit.Collector())
}

// registerLogAndTLS registers what the log left out, and the certificates of a listener.
func (s *service) registerLogAndTLS(reg prometheus.Registerer, listener string) error {
	var collectors []prometheus.Collector
	if limit := logControlOf(s.log); limit != nil {
		if err := ownmetrics.RegisterLimits(reg, ownmetrics.Limit{What: "log_per_minute", Limit: ownmetrics.Count(limit.PerMinute)}); err != nil {
			return err
		}
		collectors = append(collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "agentstatsd_log_lines_suppressed_total",
			Help: "Lines that were left out of the log, as there were too many, with their text or in all.",
		}, func() float64 { return float64(limit.Suppressed()) }))
	}
	if err := ownmetrics.Register(reg, collectors...); err != nil {
		return err
	}
	if s.tls == nil {
		return nil
	}
	return ownmetrics.Register(prometheus.WrapRegistererWith(prometheus.Labels{"listener": listener}, reg), s.tls.Collector())
}

// listen opens the listeners.
func (s *service) listen(ctx context.Context) error {
	var err error
	if s.grpcListener, err = s.open(ctx, "grpc", "grpc-address", s.config.grpcAddress); err != nil {
		return err
	}
	return s.listenForScrapers(ctx)
}

// listenForScrapers opens the listeners of Prometheus and of profiles, if there are any.
func (s *service) listenForScrapers(ctx context.Context) (err error) {
	if s.config.prometheusEnable {
		if s.httpListener, err = s.open(ctx, "prometheus", "prometheus-address", s.config.prometheusAddress); err != nil {
			return err
		}
	}
	if s.config.pprofAddress != "" {
		if s.pprofListener, err = s.open(ctx, "pprof", "pprof-address", s.config.pprofAddress); err != nil {
			return err
		}
	}
	if s.config.probeAddress != "" {
		s.probeListener, err = s.open(ctx, "probes", "probe-address", s.config.probeAddress)
	}
	return err
}

// open opens a listener with a name, which is closed at the end.
func (s *service) open(ctx context.Context, name, flag, address string) (net.Listener, error) {
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, preflight.ExplainListen(fmt.Errorf("listen on --%s: %w", flag, err), flag)
	}
	s.cleanups = append(s.cleanups, func() { _ = lis.Close() })
	return listening.New(lis, name, s.registry, s.log)
}

// run serves until ctx ends. Then it stops what is given, asks agents to reconnect and
// waits for their streams, flushes what is pending, and returns; each wait is bounded.
func (s *service) run(ctx context.Context, before ...stages.Stage) error {
	defer s.close()
	s.log.Info("agentstatsd starts", s.places()...)
	stopDraining := context.AfterFunc(ctx, func() {
		s.draining.Store(true)
		if s.replicas != nil {
			s.replicas.Leave()
		}
		s.manager.Stopping()
	})
	defer stopDraining()
	err := stages.Run(ctx, s.log, append(before, s.stages()...)...)
	s.log.Info("agentstatsd stopped")
	return err
}

// How long each stage may take to stop; that of the gRPC server has the drain
// before it. ARCHITECTURE.md has the sum.
const (
	serverStop   = 5 * time.Second  // streams that do not end, the last parts for watchers
	workerStop   = 20 * time.Second // the last flush, of at most 15 s, and what is written after it
	replicaStop  = 5 * time.Second
	pubsubStop   = 5 * time.Second
	endpointStop = 3 * time.Second // scrapes under way have one
)

// stopTimeout bounds the time from the signal to the end.
func (c *config) stopTimeout() time.Duration {
	return c.drainTimeout + serverStop + workerStop + replicaStop + pubsubStop + endpointStop
}

// stages are what runs, in the order in which it stops.
func (s *service) stages() []stages.Stage {
	servers := []stages.Task{{Name: "gRPC", Run: func(ctx context.Context) error { return s.api.Serve(ctx, s.grpcListener) }}}
	workers := []stages.Task{
		{Name: "fleet", Run: s.fleet.Run},
		{Name: "batcher", Run: s.batcher.Run},
		{Name: "pushed", Run: s.pushed.Run},
		{Name: "reports", Run: s.reports.Run},
		{Name: "refusals", Run: s.refusals.Run},
		{Name: "aggregator", Run: s.aggregator.Run},
		{Name: "intervals", Run: s.intervals.Run},
		{Name: "admin", Run: s.admin.Run},
	}
	// This replica is removed when its last writes are done, which the others know at once.
	var membership []stages.Task
	if s.replicas != nil {
		membership = append(membership, stages.Task{Name: "replicas", Run: s.replicas.Run}, stages.Task{Name: "deployment", Run: s.follow})
	}
	return []stages.Stage{
		{Name: "servers", Tasks: servers, Timeout: s.config.drainTimeout + serverStop},
		{Name: "workers", Tasks: workers, Timeout: workerStop},
		{Name: "membership", Tasks: membership, Timeout: replicaStop},
		{Name: "pubsub", Tasks: []stages.Task{{Name: "pubsub", Run: s.pubsub.Run}}, Timeout: pubsubStop},
		{Name: "endpoints", Tasks: s.endpoints(), Timeout: endpointStop},
	}
}

// endpoints are the last to go: readiness and the numbers of the shutdown can be seen.
func (s *service) endpoints() (endpoints []stages.Task) {
	endpoints = append(endpoints, stages.Task{Name: "service manager", Run: s.manager.Run})
	if s.signals != nil {
		endpoints = append(endpoints, s.reloadTask())
	}
	for _, e := range []struct {
		name string
		lis  net.Listener
		http **web.Server
	}{{"HTTP", s.httpListener, &s.http}, {"pprof", s.pprofListener, &s.pprof}, {"probes", s.probeListener, &s.probes}} {
		if e.lis != nil {
			endpoints = append(endpoints, stages.Task{Name: e.name, Run: func(ctx context.Context) error { return (*e.http).Serve(ctx, e.lis) }})
		}
	}
	return endpoints
}

// close releases the service's resources.
func (s *service) close() {
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i]()
	}
	s.cleanups = nil
}
