package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
	benchscrape "github.com/coder/agentstatsd/bench/scrape"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/reports"
	"github.com/coder/agentstatsd/scrape"
	"github.com/coder/agentstatsd/store"
)

// serviceArgs are what a service within a child is started with.
type serviceArgs struct {
	// Dir of the database.
	Dir string
	// Token of coderd.
	Token string
	// Cert and Key are files; empty: plaintext.
	Cert, Key string
	// Series that are there from the start, of agents that report every 30 s
	// without a stream.
	Series int
	// Locks has the waits for locks recorded.
	Locks bool
}

// serviceReady says where a service listens, and what its series took.
type serviceReady struct {
	GRPC, HTTP string
	// NanosecondsNew is the time that each series took to be made, HeapPerSeries the
	// bytes of the heap.
	NanosecondsNew, HeapPerSeries float64
}

// service is all of agentstatsd, put together as its main package does. It is
// used where the binary has no way to be asked: what is resident without
// garbage, and who waited for locks.
type service struct {
	agg        *aggregator.Aggregator
	api        *grpcserver.Server
	handler    http.Handler
	background []func(context.Context) error
	close      func() error
}

func newService(ctx context.Context, args serviceArgs) (*service, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	reg := metrics.NewRegistry()
	db, err := store.Open(ctx, store.Options{
		Path: filepath.Join(args.Dir, "agentstatsd.db"), TouchInterval: time.Minute,
	}, reg, log)
	if err != nil {
		return nil, err
	}
	s := &service{close: db.Close}
	if err := s.build(ctx, db, reg, log, args); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *service) build(ctx context.Context, db *store.Store, reg *metrics.Registry, log *slog.Logger, args serviceArgs) error {
	engine, err := pubsub.NewMemory(reg)
	if err != nil {
		return err
	}
	notifications := pubsub.NewMetadata(engine)
	limits := aggregator.Options{} // its defaults
	if args.Series > 1_000_000 {
		limits.MaxSeries, limits.MaxSeriesBytes = 2*args.Series, 200*args.Series
		// To make ten million takes longer than the default, on a busy machine.
		limits.SeriesTTL = time.Hour
	}
	if s.agg, err = aggregator.New(limits, reg); err != nil {
		return err
	}
	pending, err := batcher.New(db, notifications, batcher.Options{}, reg, log)
	if err != nil {
		return err
	}
	agents, err := fleet.New(db, s.agg, pending, fleet.Options{SessionAge: time.Hour}, reg, log)
	if err != nil {
		return err
	}
	pushed, err := pushed.New(db, s.agg, pushed.Options{}, reg, log)
	if err != nil {
		return err
	}
	opts := grpcserver.Options{
		Tokens: grpcserver.Tokens{Coderd: []grpcserver.Token{grpcserver.NewToken("default", args.Token)}},
		// Idle streams are measured, and thousands come at once from one address.
		IdleTimeout: time.Hour, MaxConnections: 1 << 20, MaxStrangersPerAddress: 1 << 20,
	}
	if args.Cert != "" {
		if opts.Credentials, err = serverTLS(args.Cert, args.Key); err != nil {
			return err
		}
	}
	watched, err := reports.New(db, reports.Options{}, reg, log)
	if err == nil {
		err = watched.Load(ctx)
	}
	if err != nil {
		return err
	}
	if s.api, err = grpcserver.New(agents, opts, reg, log); err != nil {
		return err
	}
	if _, err = agentapi.New(s.api, agentapi.Components{
		Fleet: agents, Stats: s.agg, Metadata: pending, Reports: watched,
	}, agentapi.Options{}, reg, log); err != nil {
		return err
	}
	if _, err = coderdapi.New(s.api, coderdapi.Components{
		Fleet: agents, Reader: db, Subscriber: notifications, Pushes: pushed, Reports: watched,
	}, coderdapi.Options{StoreReady: db.Ping}, reg, log); err != nil {
		return err
	}
	if s.handler, err = scrape.NewHandler(reg, scrape.Options{Log: log}, s.agg.Beside(pushed)); err != nil {
		return err
	}
	s.background = []func(context.Context) error{agents.Run, pending.Run, pushed.Run, s.agg.Run, watched.Run, engine.Run}
	return nil
}

// serveAll is the role of the service.
func serveAll(ctx context.Context, c *process.Console) (err error) {
	var args serviceArgs
	if err := c.Args(&args); err != nil {
		return err
	}
	s, err := newService(ctx, args)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var lc net.ListenConfig
	listeners := make([]net.Listener, 2)
	for i := range listeners {
		if listeners[i], err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	if args.Locks {
		recordLocks()
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	for _, run := range s.background {
		group.Go(func() error { return run(ctx) })
	}
	group.Go(func() error { return s.api.Serve(ctx, listeners[0]) })
	web := &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second}
	group.Go(func() error {
		if err := web.Serve(listeners[1]); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	ready := serviceReady{GRPC: listeners[0].Addr().String(), HTTP: listeners[1].Addr().String()}
	agents := load.Agents(args.Series)
	before, start := heap(), time.Now()
	if err := s.fill(agents); err != nil {
		return err
	}
	if args.Series > 0 {
		ready.NanosecondsNew = float64(time.Since(start)) / float64(args.Series)
		ready.HeapPerSeries = float64(heap()-before) / float64(args.Series)
		group.Go(func() error { return s.reportAll(ctx, agents) })
	}
	locks, stops := new(lockWatch), new(stopWatch)
	err = c.Serve(ready, map[string]process.Handler{
		"free":        freeMemory,
		"watch locks": func(func(any) error) (any, error) { stops.start(); locks.start(); return nil, nil },
		"locks":       func(func(any) error) (any, error) { return locks.stop(), nil },
		"stops":       func(func(any) error) (any, error) { return stops.longest(), nil },
		"report": func(decode func(any) error) (any, error) {
			var n int
			if err := decode(&n); err != nil {
				return nil, err
			}
			return s.timeReports(agents, n)
		},
	})
	stop()
	_ = web.Close()
	// The agents that are still there are not waited for: the process ends.
	return err
}

// seriesAgents is where the agents begin that have no stream.
const seriesAgents = 1_000_000

// reportEvery is how often they report, as their settings say.
const reportEvery = 30 * time.Second

// fill makes the series of agents without a stream.
func (s *service) fill(agents int) error {
	r := load.NewReport(seriesAgents, load.Forwarded)
	for n := range agents {
		s.agg.Open(load.ID(seriesAgents+n), load.Identity(seriesAgents+n), agent.Session{Epoch: 1})
		if err := s.report(r, n, 0); err != nil {
			return err
		}
	}
	return nil
}

// reportAll has agents without a stream report, evenly over time.
func (s *service) reportAll(ctx context.Context, agents int) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	r := load.NewReport(seriesAgents, load.Forwarded)
	start, done := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		due := int(float64(agents) * time.Since(start).Seconds() / reportEvery.Seconds())
		for ; done < due; done++ {
			if err := s.report(r, done%agents, 1+done/agents); err != nil {
				return err
			}
		}
	}
}

func (s *service) report(r *load.Report, n, round int) error {
	r.Of(seriesAgents+n, round)
	return benchscrape.Take(s.agg, seriesAgents+n, time.Now(), r)
}

// heap returns the bytes that are in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools had
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
