package simulation

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/memstore"
	"github.com/coder/agentstatsd/intervals"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/replica"
)

// source draws random numbers for actors by what they do and when. So the order of
// several actors at one moment does not matter.
type source struct {
	seed, stream uint64
}

func newSource(seed, stream uint64) *source { return &source{seed, stream} }

// float returns a number within [0, 1) for what is done now.
func (s *source) float(doing string) float64 {
	h := fnv.New64a()
	_ = binary.Write(h, binary.LittleEndian, []uint64{s.seed, s.stream, uint64(time.Now().UnixNano())})
	_, _ = h.Write([]byte(doing))
	return rand.New(rand.NewPCG(h.Sum64(), s.seed)).Float64()
}

// upTo returns a duration below d for what is done now.
func (s *source) upTo(d time.Duration, doing string) time.Duration {
	return time.Duration(s.float(doing) * float64(d))
}

// road is one process's way to the database.
type road struct {
	draw *source
	// down is that of all roads.
	down *bool

	mu *sync.Mutex // of all roads
	// Guarded by mu.

	cut, hangs bool
	slow       bool
	flaky      bool
	// Some transactions fail: those that read, that write sessions and values, or values.
	deaf, noWrites, noValues bool
}

// poison is the start of keys that the database refuses.
const poison = "poison"

// fault decides what happens to an attempt at a transaction.
func (r *road) fault(doing string, writes bool) memstore.Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := memstore.Fault{
		Before: time.Microsecond + r.draw.upTo(time.Millisecond, "before "+doing),
		Work:   time.Microsecond + r.draw.upTo(2*time.Millisecond, "work "+doing),
		After:  time.Microsecond + r.draw.upTo(time.Millisecond, "after "+doing),
	}
	if r.slow {
		f.Before, f.Work = r.draw.upTo(500*time.Millisecond, "before "+doing), r.draw.upTo(time.Second, "work "+doing)
	}
	cut := r.cut || r.deaf && !writes || r.noWrites && doing == "save sessions" ||
		(r.noWrites || r.noValues) && (doing == "save states" || doing == "upsert metadata")
	switch {
	case *r.down:
		f.Err = memstore.ErrRefused
	case cut && r.hangs:
		f.Hang = true
	case cut:
		f.Err = memstore.ErrReset
	case r.flaky:
		switch x := r.draw.float(doing); {
		case x < 0.10:
			f.Err = memstore.ErrSerialization
		case x < 0.15:
			f.Err = memstore.ErrReset
		case x < 0.20:
			f.Hang = true
		case x < 0.30 && writes:
			f.Lost = true
		case x < 0.40 && writes:
			f.Lost, f.Late = true, r.draw.upTo(20*time.Second, "late "+doing)
		}
	}
	return f
}

// ledgerRegistry is a registry that knows which collector has the ledger of
// metadata, which is looked at after each step.
type ledgerRegistry struct {
	*prometheus.Registry
	ledger prometheus.Collector
}

func (r *ledgerRegistry) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 100)
	c.Describe(descs)
	close(descs)
	for desc := range descs {
		if strings.Contains(desc.String(), `"`+ledgerFamily+`"`) {
			r.ledger = c
		}
	}
	return r.Registry.Register(c)
}

const ledgerFamily = "agentstatsd_metadata_entries_total"

// process is one process of the service, put together as cmd/agentstatsd does.
type process struct {
	slot int
	name string
	id   agent.ID
	road *road
	end  *busEnd
	db   *memstore.Store

	replicas *replica.Replicas
	series   *aggregator.Aggregator
	pending  *batcher.Batcher
	fleet    *fleet.Fleet
	pushed   *pushed.Families
	watched  *watched
	// intervals and what it measures; nil: they stay as they are.
	intervals *intervals.Intervals
	processor *processor
	// registries are those of the components.
	registries []*prometheus.Registry
	metadata   *ledgerRegistry
	counters   map[string]float64 // as of the last look
	counted    map[agent.ID][]countedReport

	serving bool            // agents and coderd reach it
	ctx     context.Context // ends when the process stops
	stop    context.CancelFunc
	leave   context.CancelFunc
	workers sync.WaitGroup
	done    chan struct{} // closed when all of it has ended
}

// flushInterval of metadata.
const flushInterval = 2 * time.Second

// sessionAge is short, so that sessions age in a run.
const sessionAge = 90 * time.Second

// start runs a new process in a slot.
func (w *world) start(slot int) *process {
	w.processes++
	draw := newSource(w.seed, 100+uint64(w.processes))
	p := &process{
		slot:     slot,
		name:     fmt.Sprintf("r%d.%d", slot, w.processes),
		id:       agent.ID{0: 0xee, 1: byte(draw.float("id") * 256), 14: byte(slot), 15: byte(w.processes)},
		road:     &road{draw: draw, down: &w.databaseDown, mu: &w.roads},
		end:      &busEnd{bus: w.bus, name: fmt.Sprint(w.processes)},
		counters: make(map[string]float64),
		counted:  make(map[agent.ID][]countedReport),
		serving:  true,
		done:     make(chan struct{}),
	}
	p.db = w.db.Open(memstore.Options{
		TouchInterval: 30 * time.Second,
		Fault:         p.road.fault,
		Random:        func() float64 { return draw.float("pause") },
		Rejects:       func(m *agent.Metadata) bool { return len(m.Key) > len(poison) && m.Key[:len(poison)] == poison },
	})
	log := slog.New(slog.DiscardHandler)
	registry := func() *prometheus.Registry {
		r := prometheus.NewRegistry()
		p.registries = append(p.registries, r)
		return r
	}
	p.metadata = &ledgerRegistry{Registry: registry()}
	var err error
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	p.replicas, err = replica.New(p.db, p.end, replica.Options{ID: p.id, Name: p.name}, registry(), log)
	must(err)
	p.series, err = aggregator.New(aggregator.Options{}, registry())
	must(err)
	p.pending, err = batcher.New(p.db, pubsub.NewMetadata(p.end), batcher.Options{
		TouchInterval: time.Minute,
		FlushInterval: flushInterval, Random: func() float64 { return draw.float("batcher") },
	}, p.metadata, log)
	must(err)
	skew := w.skew[slot]
	age := sessionAge
	if !w.with("age") {
		age = 0
	}
	p.fleet, err = fleet.New(p.db, p.series, p.pending, fleet.Options{
		SessionAge: age,
		Random:     func() float64 { return draw.float("fleet") },
		Now:        func() time.Time { return time.Now().Add(time.Duration(skew.Load())) },
	}, registry(), log)
	must(err)
	p.fleet.Join(p.replicas, p.end)
	p.pushed, err = pushed.New(p.db, p.series, pushed.Options{
		Lease: p.replicas, Notifier: p.end, Random: func() float64 { return draw.float("pushed") },
	}, registry(), log)
	must(err)

	ctx, stop := context.WithCancel(context.Background())
	member, leave := context.WithCancel(context.Background())
	p.ctx, p.stop, p.leave = ctx, stop, leave
	if w.watcher != nil {
		p.startReports(ctx, registry(), log)
	}
	if w.adapts() {
		p.startIntervals(ctx, newSource(w.seed, 1000+uint64(w.processes)), registry(), log)
	}
	for _, run := range []func(context.Context) error{p.fleet.Run, p.pending.Run, p.series.Run, p.pushed.Run} {
		p.workers.Go(func() { must(run(ctx)) })
	}
	var membership sync.WaitGroup
	membership.Go(func() { must(p.replicas.Run(member)) })
	go func() {
		defer close(p.done)
		p.workers.Wait()
		leave()
		membership.Wait()
		p.end.kill()
	}()
	return p
}

// kill ends the process at once: nothing that it had not written is.
func (p *process) kill() {
	p.db.Kill()
	p.end.kill()
	p.serving = false
	p.stop()
	p.leave()
}

// shutDown ends the process in its order, after its streams have ended.
func (p *process) shutDown() {
	p.serving = false
	p.replicas.Leave()
	p.stop()
}
