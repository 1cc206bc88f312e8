package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/codertest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// longestPhase bounds the waits of a phase: after a minute without the service some relays
// try again after another one, and those that were superseded come back after that.
const longestPhase = 5 * time.Minute

// callTimeout bounds a call of an agent: none hangs.
const callTimeout = time.Minute

// reportSet is a set of reports. A report has one bit of its own, in one of the counts.
type reportSet [4]int64

const (
	bitsOfCount = 48 // the service takes counts below 2^50
	maxReports  = 4 * bitsOfCount
)

func bit(n int) (b reportSet) {
	b[n/bitsOfCount] = 1 << (n % bitsOfCount)
	return b
}

func (b reportSet) stats() *agentstatsv1.Stats {
	return &agentstatsv1.Stats{RxBytes: b[0], RxPackets: b[1], TxBytes: b[2], TxPackets: b[3]}
}

func reportsOf(s *agentstatsv1.Stats) reportSet {
	return reportSet{s.GetRxBytes(), s.GetRxPackets(), s.GetTxBytes(), s.GetTxPackets()}
}

func (b reportSet) and(o reportSet) reportSet {
	for i := range b {
		b[i] &= o[i]
	}
	return b
}

func (b reportSet) or(o reportSet) reportSet {
	for i := range b {
		b[i] |= o[i]
	}
	return b
}

func (b reportSet) without(o reportSet) reportSet {
	for i := range b {
		b[i] &^= o[i]
	}
	return b
}

// through is a bridge, from its start to its end.
type through struct{ bridge, life int }

// bridgedAgent is an agent that speaks Coder's own protocol. The mu of the fleet guards its
// fields.
type bridgedAgent struct {
	reports int
	// known are the reports that it knows to be accepted, over those of them through each
	// bridge, sum is what the watcher has got.
	known, sum reportSet
	over       map[through]reportSet
	// due is what is counted before the phase ends.
	due reportSet
	oks int // calls that were accepted since the last fault
}

// bridgedFleet has agents that connect through bridges to a coderd.
type bridgedFleet struct {
	t       *testing.T
	coderd  *standIn
	service *service
	bridges []*bridgeProcess
	pause   time.Duration // between two reports of an agent
	churns  int           // reports between two reconnects of an agent, about

	mu sync.Mutex
	// Guarded by mu.

	agents   []*bridgedAgent
	phase    string
	lives    []int                 // of the bridges
	breaks   func(of through) bool // whether connections may break now
	killed   through
	problems []string
	broken   map[string]int // connections that broke, by phase
}

func (f *bridgedFleet) problemLocked(format string, args ...any) {
	if len(f.problems) < 20 {
		f.problems = append(f.problems, f.phase+": "+fmt.Sprintf(format, args...))
	}
}

// handle adds a batch of the watcher. No report comes twice.
func (f *bridgedFleet) handle(batch client.StatsBatch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, entry := range batch.Agents {
		id, added := uuid.UUID(entry.GetAgentId()), reportsOf(entry.GetStats())
		n := int(id[14])<<8 | int(id[15])
		a := f.agents[n]
		if again := a.sum.and(added); again != (reportSet{}) {
			f.problemLocked("agent %d: %x came again", n, again)
		}
		a.sum = a.sum.or(added)
	}
	return nil
}

// run is the life of agent n: it connects through one bridge, or else the next, reports, and
// connects again now and then.
func (f *bridgedFleet) run(ctx context.Context, n int) {
	a := f.agents[n]
	said := false
	for attempt := n; ctx.Err() == nil; attempt++ {
		f.mu.Lock()
		over := through{attempt % len(f.bridges), f.lives[attempt%len(f.bridges)]}
		f.mu.Unlock()
		s, err := dialThrough(ctx, f.bridges[over.bridge].addr, n)
		if err != nil {
			f.note(ctx, over, err)
			rest(ctx, 100*time.Millisecond) // as an agent's backoff
			continue
		}
		if !said {
			said = f.call(ctx, a, over, s, codertest.UpdateLifecycle, &agentstatsv1.Lifecycle{State: agentstatsv1.Lifecycle_STATE_READY}, reportSet{})
		}
		for reports := f.churns/2 + rand.IntN(f.churns); reports > 0 && ctx.Err() == nil; reports-- {
			report := f.nextReport(a)
			if !f.call(ctx, a, over, s, codertest.UpdateStats, report.stats(), report) {
				break
			}
			rest(ctx, f.pause)
		}
		_ = s.Close()
	}
}

// rest waits, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// nextReport returns a report of its own; empty: the agent has had all.
func (f *bridgedFleet) nextReport(a *bridgedAgent) reportSet {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.reports == maxReports {
		return reportSet{}
	}
	a.reports++
	return bit(a.reports - 1)
}

// call makes a call, and notes what became of it. It returns false if the connection broke,
// which has to be one that may.
func (f *bridgedFleet) call(ctx context.Context, a *bridgedAgent, over through, s *codertest.Session, name string, m proto.Message, report reportSet) bool {
	encoded, err := proto.Marshal(m)
	if err == nil {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		_, err = s.Call(bounded, name, protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), encoded))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.broken[f.phase]++
		f.noteLocked(over, err)
		return false
	}
	a.oks++
	a.known = a.known.or(report)
	a.over[over] = a.over[over].or(report)
	return true
}

// note notes that a connection broke, or none was made, which has to be one that may.
func (f *bridgedFleet) note(ctx context.Context, over through, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() == nil {
		f.noteLocked(over, err)
	}
}

func (f *bridgedFleet) noteLocked(over through, err error) {
	if !f.breaks(over) {
		f.problemLocked("the connection of an agent through bridge %d, life %d, broke: %v", over.bridge, over.life, err)
	}
}

// noBreaks is of times at which no connection may break.
func noBreaks(through) bool { return false }

// keptLocked returns what an agent knows to be accepted, but for what the killed bridge may
// not have sent. What was counted before is in sum.
func (f *bridgedFleet) keptLocked(a *bridgedAgent) reportSet {
	return a.known.without(a.over[f.killed])
}

// do goes through one phase: a fault, during which some connections may break, and the time
// until all agents go on; with -soak also until all that they know to be accepted is counted.
func (f *bridgedFleet) do(phase string, breaks func(through) bool, fault func()) {
	f.mu.Lock()
	f.phase, f.breaks = phase, breaks
	f.mu.Unlock()
	fault()
	f.mu.Lock()
	for _, a := range f.agents {
		a.oks = 0
	}
	f.mu.Unlock()
	f.until("all agents go on", func() bool {
		for _, a := range f.agents {
			if a.oks < 2 { // the first may have been under way before
				return false
			}
		}
		return true
	})
	if *soak {
		f.requireCounted()
	}
	f.requireUp()
}

// requireUp waits until each agent was up. While they reconnect all the time, hardly ever are
// all at once.
func (f *bridgedFleet) requireUp() {
	up := make(map[string]int)
	looks, least := 0, len(f.agents)
	require.Eventually(f.t, func() bool {
		all := f.service.served(f.t, "coderd_agents_up", "1")
		for _, series := range all {
			up[series]++
		}
		looks, least = looks+1, min(least, len(all))
		return len(up) == len(f.agents)
	}, time.Minute, 100*time.Millisecond, "%s: not all agents are up", f.phase)
	f.t.Logf("%s: all agents were up after %d looks, at least %d of them at once", f.phase, looks, least)
}

// requireCounted waits until all is counted that agents know to be accepted by now. A relay
// that another one superseded comes back for what it has not delivered after 10 s and more.
func (f *bridgedFleet) requireCounted() {
	f.mu.Lock()
	for _, a := range f.agents {
		a.due = f.keptLocked(a)
	}
	f.mu.Unlock()
	f.until("all is counted", func() bool {
		for _, a := range f.agents {
			if a.due.without(a.sum) != (reportSet{}) {
				return false
			}
		}
		return true
	})
}

// until waits until something has happened. happened is called under the lock.
func (f *bridgedFleet) until(what string, happened func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(longestPhase); ; time.Sleep(20 * time.Millisecond) {
		f.mu.Lock()
		ok, problems, phase := happened(), f.problems, f.phase
		f.mu.Unlock()
		require.Empty(f.t, problems)
		if ok {
			return
		}
		if time.Now().After(deadline) {
			f.mu.Lock()
			defer f.mu.Unlock()
			for n, a := range f.agents {
				f.t.Logf("agent %d: %d reports, missing %x, sum %x, over %x", n, a.reports, f.keptLocked(a).without(a.sum), a.sum, a.over)
			}
			f.t.Fatalf("%s: not within %s: %s", phase, longestPhase, what)
		}
	}
}

// restart starts a bridge again, for those that connect from now on.
func (f *bridgedFleet) restart(bridge int) {
	f.bridges[bridge].start(f.t)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lives[bridge]++
}

// TestBridges has agents of a stock coderd behind two bridges. They reconnect now and then,
// the service goes away, one bridge is drained, coderd crashes, and the other bridge is
// killed. Connections of agents break only with their own hop. Each report that coderd
// accepted is counted once, but for what the killed bridge had not sent. With -soak the fleet
// has the size of a deployment, and the service is away for a minute. What a killed bridge may
// lose is little then.
func TestBridges(t *testing.T) {
	agents, pause, quiet, away, drain := 20, 50*time.Millisecond, 500*time.Millisecond, time.Duration(0), "500ms"
	if *soak {
		agents, pause, quiet, away, drain = 500, 3*time.Second, 15*time.Second, time.Minute, "10s"
	}
	beside(t)
	f := &bridgedFleet{t: t, pause: pause, churns: 10, phase: "start", breaks: noBreaks, lives: make([]int, 2), killed: through{-1, -1}, broken: make(map[string]int)}
	f.service = newService(t, "--report-interval", "1s", "--drain-timeout", "1s")
	f.service.start(t)
	f.coderd = newStandIn(t, agents)
	for range 2 {
		b := newBridge(t, f.coderd, f.service, "--drain-delay", "0s", "--drain-timeout", drain, "--close-timeout", "30s")
		b.start(t)
		f.bridges = append(f.bridges, b)
	}
	for range agents {
		f.agents = append(f.agents, &bridgedAgent{over: make(map[through]reportSet)})
	}

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	watching, stopWatching := context.WithCancel(context.WithoutCancel(t.Context()))
	var running, watcher sync.WaitGroup
	defer watcher.Wait()
	defer stopWatching()
	defer running.Wait()
	defer cancel()
	conn, err := client.Dial(f.service.grpcAddr, client.DialOptions{TokenFile: f.service.tokenFile(), Plaintext: true})
	require.NoError(t, err)
	defer conn.Close()
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	started := make(chan struct{})
	start := sync.OnceFunc(func() { close(started) })
	watcher.Go(func() {
		_ = coderd.WatchStats(watching, client.StatsWatch{Name: "insights", Started: func(time.Time) { start() }, Handle: f.handle})
	})
	<-started
	for n := range agents {
		running.Go(func() { f.run(ctx, n) })
	}

	f.do("start", noBreaks, func() { time.Sleep(quiet) })
	f.do("the service is away", noBreaks, func() {
		_, err := f.service.stop(syscall.SIGTERM)
		require.NoError(t, err)
		time.Sleep(away)
		f.service.start(t)
	})
	f.do("one bridge is drained", func(of through) bool { return of == through{1, 0} }, func() {
		time.Sleep(quiet)
		f.bridges[1].drain(t)
		f.restart(1)
	})
	f.do("coderd crashes", func(through) bool { return true }, func() {
		time.Sleep(quiet)
		f.coderd.stop()
		time.Sleep(quiet)
		f.coderd.start()
	})
	f.do("one bridge is killed", func(of through) bool { return of == through{0, 0} }, func() {
		time.Sleep(quiet)
		f.bridges[0].kill()
		f.mu.Lock()
		f.killed = through{0, 0}
		f.mu.Unlock()
		f.restart(0)
	})
	f.do("quiet", noBreaks, func() { time.Sleep(quiet) })
	cancel()
	running.Wait()
	for _, b := range f.bridges {
		require.Zero(t, b.total(t, "agentstatsd_bridge_decoders_given_up_total"))
		require.Zero(t, b.total(t, "agentstatsd_bridge_relay_errors_total"))
		b.drain(t)
	}
	f.requireCounted()
	f.requireNothingElse()
}

// requireNothingElse checks that nothing is counted that coderd did not accept.
func (f *bridgedFleet) requireNothingElse() {
	accepted := make(map[uuid.UUID]reportSet)
	calls := 0
	for _, c := range f.coderd.rpc.Accepted() {
		if c.Name != codertest.UpdateStats {
			continue
		}
		_, _, tag := protowire.ConsumeTag(c.Request)
		encoded, _ := protowire.ConsumeBytes(c.Request[tag:])
		stats := &agentstatsv1.Stats{}
		require.NoError(f.t, proto.Unmarshal(encoded, stats))
		accepted[c.Agent] = accepted[c.Agent].or(reportsOf(stats))
		calls++
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	lost := 0
	for n, a := range f.agents {
		require.Equal(f.t, reportSet{}, a.sum.without(accepted[coderID('a', n)]), "agent %d: coderd did not accept what is counted", n)
		if a.known.without(a.sum) != (reportSet{}) {
			lost++
		}
	}
	require.Positive(f.t, f.broken["coderd crashes"])
	require.Positive(f.t, f.broken["one bridge is killed"])
	f.t.Logf("%d accepted reports; connections that broke: %v; agents of which the killed bridge lost something: %d", calls, f.broken, lost)
}
