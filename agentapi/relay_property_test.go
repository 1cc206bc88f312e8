package agentapi

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/pubsub"
)

// replica is what a Server has to do with watches of reports.
type replica struct {
	*relay
	stop func()
}

// testRetention is the default.
const testRetention = 10 * time.Minute

func newBus(t testing.TB) *FaultyBus {
	t.Helper()
	memory, err := pubsub.NewMemory(prometheus.NewRegistry())
	require.NoError(t, err)
	return &FaultyBus{Memory: memory}
}

func newReplica(t testing.TB, bus Bus, n byte) *replica {
	t.Helper()
	names := newStatsNames(newFeed(), testRetention, 4, 1000, newMetrics(prometheus.NewRegistry()))
	r := &replica{relay: newRelay(bus, agent.ID{15: n}, names, slog.New(slog.DiscardHandler))}
	require.NoError(t, r.begin())
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { r.run(ctx) })
	r.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		names.close()
	})
	t.Cleanup(r.stop)
	return r
}

// tell has agent n report.
func (r *replica) tell(n byte, bytes int64) {
	if !r.feed.idle() {
		r.feed.tell(reportOf{agent: agent.ID{n}, workspace: agent.ID{1, n}, now: time.Now(), stats: &agentstatsv1.Stats{RxBytes: bytes, ConnectionCount: bytes}})
	}
}

func (r *replica) enter(t testing.TB, name string, last processed) *statsTurn {
	t.Helper()
	turn, err := r.names.enter(name, func() *statsWatch { return newStatsWatch(nil, 1000, r.metrics) }, last)
	require.NoError(t, err)
	return turn
}

// next returns what the stream would send now.
func (t *statsTurn) next() *agentstatsv1.WatchStatsResponse {
	select {
	case <-t.taken:
		return nil
	default:
	}
	if t.unsettled() {
		return nil
	}
	return t.watch.next(true)
}

// told counts what a watcher was told.
type told struct {
	bytes, reports map[byte]int64
}

func newTold() told { return told{make(map[byte]int64), make(map[byte]int64)} }

func (c told) add(n byte, bytes, reports int64) {
	c.bytes[n] += bytes
	c.reports[n] += reports
}

func (c told) addAll(resp *agentstatsv1.WatchStatsResponse) {
	for _, a := range resp.GetAgents() {
		c.add(a.GetAgentId()[0], a.GetStats().GetRxBytes(), a.GetReports())
	}
}

// relayStep is something that happens to the replicas.
type relayStep struct {
	what    string
	replica int
	agent   byte
	bytes   int64
	after   time.Duration
	fault   BusFault
}

var relaySteps = rapid.Custom(func(t *rapid.T) relayStep {
	return relayStep{
		what: rapid.SampledFrom([]string{
			"report", "report", "report", "report", "read", "read", "read", "ack is lost", "response is lost", "move", "move", "late", "fault", "restart",
		}).Draw(t, "what"),
		replica: rapid.IntRange(0, 2).Draw(t, "replica"),
		agent:   byte(rapid.IntRange(1, 3).Draw(t, "agent")),
		bytes:   rapid.Int64Range(0, 1000).Draw(t, "bytes"),
		after:   rapid.SampledFrom([]time.Duration{0, time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond, 3 * time.Second, 7 * time.Second}).Draw(t, "after"),
		fault:   BusFault(rapid.IntRange(0, int(BusFails)).Draw(t, "fault")),
	}
})

// relayModel is a watcher that wanders over three replicas.
type relayModel struct {
	t        *testing.T
	bus      *FaultyBus
	replicas [3]*replica
	made     byte
	at       int // the replica that the watcher is on
	turn     *statsTurn
	last     processed
	late     []func() // ends of streams that replicas do not know of yet
	reported told
	told     told
}

func (m *relayModel) enter(at int) {
	m.at = at
	m.turn = m.replicas[at].enter(m.t, "insights", m.last)
}

// leave breaks the stream. The replica may learn of it much later.
func (m *relayModel) leave(late bool) {
	names, turn := m.replicas[m.at].names, m.turn
	end := func() { names.leave("insights", turn) }
	if late {
		m.late = append(m.late, end)
	} else {
		end()
	}
}

func (m *relayModel) endLate() {
	for _, end := range m.late {
		end()
	}
	m.late = nil
}

// read processes the next response, if there is one, and acks it.
func (m *relayModel) read() bool {
	resp := m.turn.next()
	if resp == nil {
		return false
	}
	m.process(resp)
	_, err := m.turn.watch.ack(resp.GetSequence())
	require.NoError(m.t, err)
	return true
}

func (m *relayModel) process(resp *agentstatsv1.WatchStatsResponse) {
	m.told.addAll(resp)
	m.last = processed{resp.GetEpoch(), resp.GetSequence()}
}

func (m *relayModel) report(at int, n byte, bytes int64) {
	m.replicas[at].tell(n, bytes)
	m.reported.add(n, bytes, 1)
}

// restart replaces a replica that the watcher is not on by a new one, whose
// first agent reports at once.
func (m *relayModel) restart(at int, n byte) {
	m.bus.Set(BusWorks)
	time.Sleep(8 * time.Second)
	synctest.Wait()
	m.endLate()
	m.insist()
	if at == m.at {
		return
	}
	time.Sleep(time.Second)
	m.replicas[at].stop()
	m.made++
	m.replicas[at] = newReplica(m.t, m.bus, m.made)
	m.report(at, n, 1)
}

// insist takes the watch back if another stream has it: streams that enter on
// two replicas in the same nanosecond are in the order of the replicas.
func (m *relayModel) insist() {
	select {
	case <-m.turn.taken:
		m.leave(false)
		m.enter(m.at)
	default:
	}
}

func (m *relayModel) step(s relayStep) {
	m.insist()
	switch s.what {
	case "report":
		m.report(s.replica, s.agent, s.bytes)
	case "read":
		m.read()
	case "ack is lost":
		if resp := m.turn.next(); resp != nil {
			m.process(resp)
			m.leave(s.bytes%2 == 0)
			m.enter(s.replica)
		}
	case "response is lost":
		if m.turn.next() != nil {
			m.leave(s.bytes%2 == 0)
			m.enter(s.replica)
		}
	case "move":
		m.leave(s.bytes%2 == 0)
		m.enter(s.replica)
	case "late":
		m.endLate()
	case "fault":
		m.bus.Set(s.fault)
	case "restart":
		m.restart(s.replica, s.agent)
	}
	time.Sleep(s.after)
	synctest.Wait()
}

// TestRelayIsExact shows that a watcher that wanders from replica to replica is
// told each report once, whatever becomes of the messages between them.
func TestRelayIsExact(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		history := rapid.SliceOfN(relaySteps, 1, 60).Draw(rt, "history")
		var reported, toldOf told
		var unsettled float64
		var waiting int64
		synctest.Test(t, func(t *testing.T) {
			m := &relayModel{t: t, bus: newBus(t), reported: newTold(), told: newTold()}
			for i := range m.replicas {
				m.made++
				m.replicas[i] = newReplica(t, m.bus, m.made)
			}
			m.enter(0)
			synctest.Wait()
			for _, s := range history {
				m.step(s)
			}
			m.bus.Set(BusWorks)
			for range 120 {
				m.insist()
				for m.read() {
				}
				time.Sleep(250 * time.Millisecond)
				synctest.Wait()
			}
			for _, r := range m.replicas {
				unsettled += testutil.ToFloat64(r.metrics.unsettled)
				waiting += r.names.waiting()
			}
			m.leave(false)
			m.endLate()
			reported, toldOf = m.reported, m.told
		})
		if fmt.Sprint(reported) != fmt.Sprint(toldOf) || waiting > 0 {
			rt.Fatalf("reported %v, told %v, %d wait (%v unsettled)", reported, toldOf, waiting, unsettled)
		}
	})
}
