package simulate

import (
	"container/heap"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/client"
)

// maxClosing is how many agents are closed at the same time.
const maxClosing = 64

// Run registers a fleet, lets it live, and returns what it did. When the duration is
// over or ctx is cancelled, the fleet stops producing and waits for its last acks. Then
// it is deregistered, unless it is kept.
//
// The error is about the simulation itself: bad options, a service that cannot
// be reached at the start, a fleet that cannot be deregistered. What went wrong
// on the way is in the summary.
func Run(ctx context.Context, opts Options, log *slog.Logger) (Summary, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return Summary{}, fmt.Errorf("simulate: %w", err)
	}
	conns, err := connect(opts, log)
	if err != nil {
		return Summary{}, fmt.Errorf("simulate: %w", err)
	}
	summary, err := run(ctx, opts, conns, log)
	if err = errors.Join(err, conns.close()); err != nil {
		return summary, fmt.Errorf("simulate: %w", err)
	}
	return summary, nil
}

func run(ctx context.Context, opts Options, conns *connections, log *slog.Logger) (Summary, error) {
	secret := make([]byte, 32)
	// Read never fails.
	_, _ = crand.Read(secret)
	p := planner{fleet: opts.Fleet, metadataKeys: opts.MetadataKeys, secret: secret}
	workspaces := p.plan(opts.Agents, opts.Unreachable, time.Now())
	service, err := client.NewCoderd(conns.coderd, client.CoderdOptions{Logger: log})
	if err != nil {
		return Summary{}, err
	}
	c := newCoderd(service, p, workspaces, log)
	f, err := newFleet(opts, workspaces, conns, c, log)
	if err != nil {
		return Summary{}, err
	}
	pushed, err := newInstances(opts, conns.coderd, log)
	if err != nil {
		return Summary{}, err
	}
	started := time.Now()
	if err := retry(ctx, c.timeout(), c.register); err != nil {
		return Summary{}, err
	}
	log.InfoContext(ctx, "agents are registered", "agents", len(f.agents), "run", shortID(secret))

	// The fleet outlives ctx until its last acks.
	living, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var running sync.WaitGroup
	running.Go(func() { c.run(living, f.observer.unknown) })
	if opts.Progress != nil {
		running.Go(func() { showProgress(living, opts.Progress, f.tally) })
	}
	producing, stop := context.WithCancel(ctx)
	defer stop()
	running.Go(func() { pushed.run(producing) })
	checks := newChecker(opts, f.series, log)
	if checks != nil {
		running.Go(func() { checks.run(producing, f.current) })
	}
	var watched *statsWatcher
	if opts.Watch {
		watched = newStatsWatcher(service, "simulate "+shortName(opts.Fleet), log)
		running.Go(func() { watched.run(living) })
		watched.awaitStart(producing)
	}
	f.live(producing, living, &running)
	stop()

	errs := f.drain(living)
	duration := time.Since(started)
	if watched != nil {
		watched.awaitEnd(living, f.tally().counts.ReportsReceived)
	}
	end()
	running.Wait()
	summary := f.summary(errs, duration)
	if watched != nil {
		received := watched.summary()
		summary.Watched = &received
	}
	pushed.addTo(&summary)
	if checks != nil {
		summary.Check = checks.finish(f.agents)
	}
	err = f.observer.journal.failed()
	if !opts.Keep {
		err = errors.Join(err, c.deregister(context.WithoutCancel(ctx)))
	}
	return summary, err
}

// fleet is a simulated fleet.
type fleet struct {
	opts     Options
	coderd   *coderd
	conns    *connections
	series   []series
	observer *observer
	// rebuilding are the rebuilds under way.
	rebuilding sync.WaitGroup
	rebuilt    chan rebuilt

	// workspaces as they run, for the goroutine that drives the fleet.
	workspaces []workspace
	random     *rand.Rand
	// mover chooses who is moved, moves is how often that was done.
	mover *rand.Rand
	moves int64

	mu sync.Mutex
	// agents by number, in their newest life. Only the goroutine that drives
	// the fleet changes them.
	agents []*agent
	// former is what agents did in earlier lives; rebuilds is how many
	// workspaces were rebuilt.
	former   tally
	rebuilds int64
}

func newFleet(opts Options, workspaces []plannedWorkspace, conns *connections, c *coderd, log *slog.Logger) (*fleet, error) {
	f := &fleet{
		opts:   opts,
		coderd: c,
		conns:  conns,
		series: seriesOfAgents(opts.MetricsPerAgent),
		observer: &observer{
			acks:    &latencies{},
			values:  &latencies{},
			unknown: make(chan struct{}, 1),
			log:     log,
		},
		rebuilt: make(chan rebuilt),
		random:  rand.New(rand.NewPCG(opts.Seed+2, 0)),
		mover:   rand.New(rand.NewPCG(opts.Seed+4, 0)),
	}
	if opts.Journal != nil {
		f.observer.journal = &journal{w: opts.Journal}
	}
	for _, w := range workspaces {
		agents, err := f.agentsOf(w)
		if err != nil {
			return nil, err
		}
		f.workspaces = append(f.workspaces, workspace{plannedWorkspace: w})
		f.agents = append(f.agents, agents...)
	}
	return f, nil
}

// agentsOf makes the agents of a workspace's build; none if they never connect.
func (f *fleet) agentsOf(w plannedWorkspace) ([]*agent, error) {
	if w.unreachable {
		return nil, nil
	}
	agents := make([]*agent, len(w.agents))
	for i, planned := range w.agents {
		var err error
		if agents[i], err = newAgent(planned, w.build, f.conns, f.series, f.opts, f.observer); err != nil {
			return nil, err
		}
	}
	return agents, nil
}

// current returns the agents in their newest life.
func (f *fleet) current() []*agent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.agents)
}

// event is something that an agent does at a time.
type event struct {
	at time.Time
	do func(now time.Time) (again time.Duration)
}

// events are a heap by time.
type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }

// Push implements heap.Interface.
func (e *events) Push(x any) { *e = append(*e, x.(event)) }

// Pop implements heap.Interface.
func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}

// live starts the agents one after the other and drives them until the duration
// is over or ctx is cancelled. Their clients run until living is cancelled.
func (f *fleet) live(ctx, living context.Context, running *sync.WaitGroup) {
	if f.opts.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.opts.Duration)
		defer cancel()
	}
	queue := make(events, 0, 3*len(f.agents))
	// start is an agent's first event. Its metadata changes after the first time,
	// then each interval.
	start := func(a *agent, at time.Time, first time.Duration) event {
		return event{at: at, do: func(now time.Time) time.Duration {
			a.start(now)
			running.Go(func() { _ = a.client.Run(living) })
			heap.Push(&queue, event{at: now.Add(time.Second), do: a.live})
			if a.keys > 0 {
				a.updateMetadata(now)
				heap.Push(&queue, event{at: now.Add(first), do: func(now time.Time) time.Duration {
					if a.stopped.Load() {
						return 0
					}
					a.updateMetadata(now)
					return f.opts.MetadataInterval
				}})
			}
			return 0
		}}
	}
	began := time.Now()
	for i, a := range f.agents {
		part := float64(i) / float64(len(f.agents))
		// Spread over the interval, whatever the ramp was.
		first := time.Duration((1 - part) * float64(f.opts.MetadataInterval))
		queue = append(queue, start(a, began.Add(time.Duration(part*float64(f.opts.Ramp))), first))
	}
	if f.opts.RebuildInterval > 0 {
		queue = append(queue, event{at: began.Add(f.opts.Ramp + f.untilRebuild()), do: func(now time.Time) time.Duration {
			f.rebuildOne(ctx, now)
			return f.untilRebuild()
		}})
	}
	if f.opts.Churn > 0 {
		queue = append(queue, event{at: began.Add(f.untilMove()), do: func(time.Time) time.Duration {
			f.moveOne()
			return f.untilMove()
		}})
	}
	heap.Init(&queue)

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case r := <-f.rebuilt:
			now := time.Now()
			for _, a := range f.replace(r) {
				heap.Push(&queue, start(a, now, f.opts.MetadataInterval))
			}
		}
		now := time.Now()
		for len(queue) > 0 && !queue[0].at.After(now) {
			e := heap.Pop(&queue).(event)
			if again := e.do(now); again > 0 {
				// From its own time, so that a late one does not shift the next.
				heap.Push(&queue, event{at: e.at.Add(again), do: e.do})
			}
		}
		// There is always an event: each agent lives on, or is rebuilt now and
		// then.
		timer.Reset(queue[0].at.Sub(now))
	}
}

// untilMove returns the time to the next move of an agent: each is moved once in
// Churn on average.
func (f *fleet) untilMove() time.Duration {
	return 1 + time.Duration(f.mover.ExpFloat64()*float64(f.opts.Churn)/float64(len(f.agents)))
}

// moveOne breaks the connection of an agent, if the one that it chooses has a
// session.
func (f *fleet) moveOne() {
	if f.conns.balancers[f.mover.IntN(len(f.agents))].move() {
		f.moves++
	}
}

// drain stops the agents, waits for their last acks, and lets them leave. It
// returns how many have something left that is neither a report nor metadata.
func (f *fleet) drain(living context.Context) (unsettled int64) {
	// They have ended with what the fleet produces; agents that they have not
	// replaced are drained here.
	f.rebuilding.Wait()
	ctx, cancel := context.WithTimeout(living, f.opts.DrainTimeout)
	defer cancel()
	for _, a := range f.agents {
		a.stopped.Store(true)
	}
	// All at once: each waits for the next write of metadata.
	var flushing sync.WaitGroup
	var pending atomic.Int64
	for _, a := range f.agents {
		if a.state == 0 {
			// It was not started.
			continue
		}
		flushing.Go(func() {
			if a.client.Flush(ctx) == nil {
				return
			}
			c := a.client.Status().Counts
			if c.Reports == c.ReportsReceived && c.Metadata == c.MetadataDurable+c.MetadataRefused {
				pending.Add(1)
			}
		})
	}
	flushing.Wait()
	unsettled = pending.Load()
	if f.opts.Keep {
		return unsettled
	}
	var leaving sync.WaitGroup
	slots := make(chan struct{}, maxClosing)
	for _, a := range f.agents {
		slots <- struct{}{}
		leaving.Go(func() {
			defer func() { <-slots }()
			// What is not acked is counted above; a goodbye that is lost is
			// no loss, as the agents are deregistered next.
			_ = a.client.Close(ctx)
		})
	}
	leaving.Wait()
	return unsettled
}

// summary sums up after all clients have ended.
func (f *fleet) summary(unsettled int64, duration time.Duration) Summary {
	t := f.tally()
	lost := t.counts.Reports - t.counts.ReportsReceived + t.counts.Metadata - t.counts.MetadataDurable - t.counts.MetadataRefused
	return Summary{
		Agents:           t.agents,
		ReportsSent:      t.counts.Reports,
		ReportsAcked:     t.counts.ReportsReceived,
		SamplesSent:      t.counts.Samples,
		MetadataSent:     t.counts.Metadata,
		MetadataAcked:    t.counts.MetadataDurable,
		Rebuilds:         f.rebuilds,
		Moves:            f.moves,
		Refused:          t.counts.Refused,
		Errors:           lost + unsettled + t.unexpected,
		Reconnects:       t.reconnects,
		DurationSeconds:  duration.Seconds(),
		Refusals:         f.observer.refusals.snapshot(),
		ReportAckSeconds: quantiles(f.observer.acks),
		MetadataSeconds:  quantiles(f.observer.values),
	}
}
