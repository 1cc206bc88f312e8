package simulation

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/memstore"
)

const (
	// slots for processes of the service.
	slots = 3
	// agents that there may be.
	agents = 6
	// maxSkew is how much two clocks differ at most.
	maxSkew = 40 * time.Minute
	// quiesceTime after all faults have ended, everything must be as it should be. It
	// covers the backoff of a write (15 s) and transactions that commit late (20 s). A
	// lease that runs out takes 15 s, watched anew after a failed heartbeat. Then
	// agents connect again.
	quiesceTime = 60 * time.Second
	// reconnectTime is within which an agent has its next session while nothing is wrong.
	// It waits up to 2 s, and up to 3 s more if a replica refuses it.
	reconnectTime = 5 * time.Second
)

// world is all there is in a run, and what is known of it.
type world struct {
	seed   uint64
	random *rand.Rand // of the steps
	began  time.Time
	index  int // of the newest value
	step   int
	faults int
	trace  []string

	db           *memstore.Database
	bus          *bus
	roads        sync.Mutex
	databaseDown bool // guarded by roads
	skew         [slots]*atomic.Int64

	slots     [slots]*process
	all       []*process
	processes int
	agents    [agents + 1]*simAgent
	zombies   []zombie
	refusals  map[refusal]struct{}
	coderd    *coderd
	// pushers are the processes of coderd that push, gone those that did.
	pushers     [2]*pusher
	gone        []*pusher
	pushersMade int
	pushedSum   float64 // the newest that was served
	mends       []mend
	watcher     *watcher // nil: nobody watches what agents report
	watching    sync.WaitGroup
	unwatch     context.CancelFunc
	partial     *source  // draws which parts coderd's registrations lack; nil: none
	decided     decision // the newest factor of intervals that was stored

	// profile is what the run concentrates on. Each does without some kinds of what can
	// happen, so that what one kind leads to is not hidden by others.
	profile int
	omitted map[string]bool
	// pace is the time between two steps, at most; few agents do all that is done.
	pace time.Duration
	few  int
	// calm runs have no faults but that processes stop.
	calm bool
}

// The kinds of what happens that a run may do without.
var kinds = []string{
	"move", "unnoticed", "process", "lifecycle", "health", "network", "poison", "many",
	"deregister", "bounce", "sync", "push", "age",
	"cut", "deaf", "writes", "values", "slow", "flaky", "down", "failover", "pubsub", "alone", "reorder", "skew", "kill", "stop",
}

// with reports whether the run has this kind.
func (w *world) with(kind string) bool {
	if !slices.Contains(kinds, kind) {
		panic(kind)
	}
	return !w.omitted[kind]
}

func (w *world) omittedKinds() (list []string) {
	for _, kind := range kinds {
		if w.omitted[kind] {
			list = append(list, kind)
		}
	}
	return list
}

// mend is the end of a fault.
type mend struct {
	at   time.Time
	what string
	do   func()
}

func newWorld(seed uint64) *world {
	w := &world{
		seed:     seed,
		random:   rand.New(rand.NewPCG(seed, 0)),
		began:    time.Now(),
		db:       memstore.New(),
		bus:      newBus(newSource(seed, 1)),
		refusals: make(map[refusal]struct{}),
		coderd:   &coderd{named: make(map[agent.ID]time.Time), said: make(map[agent.ID]parts), removedAt: make(map[agent.ID]time.Time), desired: make(map[int]bool)},
		decided:  decision{factor: 1},
	}
	for i := range w.pushers {
		w.newPusher(i)
	}
	w.db.OnChange(w.coderd.onChange)
	w.drawProfile()
	for kind := range strings.SplitSeq(*without, ",") {
		w.omitted[kind] = true
	}
	if seed%7 == 5 {
		w.partial = newSource(seed, 3)
	}
	if seed%2 == 0 {
		w.watcher = &watcher{draw: newSource(seed, 2), received: make(map[agent.ID]reported)}
	}
	for i := range w.slots {
		w.skew[i] = new(atomic.Int64)
		if w.with("skew") {
			w.skew[i].Store(w.random.Int64N(int64(maxSkew)) - int64(maxSkew)/2)
		}
		w.begin(i)
		time.Sleep(w.within(time.Millisecond, time.Second)) // their ticks are of different moments
	}
	if w.watcher != nil {
		var ctx context.Context
		ctx, w.unwatch = context.WithCancel(context.Background())
		w.watching.Go(func() { w.watcher.run(ctx) })
	}
	for n := 1; n <= agents; n++ {
		w.agents[n] = &simAgent{number: n, reg: w.registration(n), said: make(map[string][]value), acked: make(map[string]int)}
	}
	return w
}

// adapts reports whether intervals follow the load.
func (w *world) adapts() bool { return w.seed%4 == 0 }

func (w *world) begin(slot int) {
	w.slots[slot] = w.start(slot)
	if w.watcher != nil {
		w.watcher.setTarget(slot, w.slots[slot])
	}
	w.all = append(w.all, w.slots[slot])
	w.log("%s starts", w.slots[slot].name)
}

func clock(t time.Time) string { return t.UTC().Format("04:05.000000") }

func (w *world) log(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%4d %s ", w.step, clock(time.Now()))+fmt.Sprintf(format, args...))
}

// tick has a little time pass, so that no two values are of one moment.
func (w *world) tick() { time.Sleep(time.Microsecond) }

// within draws a duration.
func (w *world) within(from, to time.Duration) time.Duration {
	return from + time.Duration(w.random.Int64N(int64(to-from)))
}

// serving returns the processes that agents reach.
func (w *world) serving() (list []*process) {
	for _, p := range w.slots {
		if p.serving && p.fleet.Ready() == nil && (p.watched == nil || p.watched.ready()) {
			list = append(list, p)
		}
	}
	return list
}

func (w *world) anyProcess() *process {
	if list := w.serving(); len(list) > 0 {
		return list[w.random.IntN(len(list))]
	}
	return nil
}

// anyTarget returns a process for an agent to connect to, with a liking for those
// that are in trouble.
func (w *world) anyTarget() *process {
	if list := w.serving(); w.random.IntN(3) == 0 {
		w.roads.Lock()
		defer w.roads.Unlock()
		list = slices.DeleteFunc(list, func(p *process) bool { return !p.road.cut && !p.road.deaf && !p.end.isCut() })
		if len(list) > 0 {
			return list[w.random.IntN(len(list))]
		}
	}
	return w.anyProcess()
}

func (w *world) anyAgent() *simAgent { return w.agents[1+w.random.IntN(w.few)] }

// sortedParts returns the parts of values in order.
func sortedParts[V any](values map[string]V) []string { return slices.Sorted(maps.Keys(values)) }

// parseLifecycle is the inverse of the text of a lifecycle.
func parseLifecycle(text string) agent.Lifecycle {
	var state string
	var at int64
	_, _ = fmt.Sscan(text, &state, &at)
	return agent.Lifecycle{State: agent.LifecycleState(state), ChangedAt: time.Unix(0, at).UTC()}
}

func lifecycleText(l agent.Lifecycle) string {
	return fmt.Sprintf("%s %d", l.State, l.ChangedAt.UnixNano())
}

// drainChanges takes in which agents were removed or made known: what was said
// before counts no more.
func (w *world) drainChanges() {
	c := w.coderd
	c.mu.Lock()
	removed, added, lines := c.removed, c.added, c.lines
	c.removed, c.added, c.lines = nil, nil, nil
	c.mu.Unlock()
	for _, line := range lines {
		w.log("%s", line)
	}
	for _, id := range removed {
		w.agents[id[15]].removals++
		w.log("agent %d is removed", id[15])
	}
	for _, id := range slices.Concat(removed, added) {
		a := w.agents[id[15]]
		a.void, a.started = w.index, 0
		clear(a.acked)
	}
}

// end stops everything.
func (w *world) end() {
	for _, m := range w.mends {
		m.do()
	}
	w.coderd.calls.Wait()
	if w.watcher != nil {
		w.unwatch()
		w.watching.Wait()
	}
	for _, p := range w.slots {
		if p.serving {
			p.kill()
		}
	}
	for _, p := range w.all {
		<-p.done
	}
	w.db.Wait()
}

func (c *client) partsSent() string {
	var parts []string
	for _, r := range c.sent {
		parts = append(parts, fmt.Sprint(r))
	}
	return strings.Join(parts, ", ")
}
