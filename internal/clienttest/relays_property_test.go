package clienttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// relayHistories is how many histories are lived through.
const relayHistories = 30

// life are the states of an agent's life, in their order.
var life = []agentstatsv1.Lifecycle_State{
	agentstatsv1.Lifecycle_STATE_STARTING, agentstatsv1.Lifecycle_STATE_START_TIMEOUT, agentstatsv1.Lifecycle_STATE_READY,
	agentstatsv1.Lifecycle_STATE_SHUTTING_DOWN, agentstatsv1.Lifecycle_STATE_SHUTDOWN_TIMEOUT, agentstatsv1.Lifecycle_STATE_OFF,
}

// served are the states as they are served.
var served = []agent.LifecycleState{
	agent.LifecycleCreated, agent.LifecycleStarting, agent.LifecycleStartTimeout, agent.LifecycleReady,
	agent.LifecycleShuttingDown, agent.LifecycleShutdownTimeout, agent.LifecycleOff,
}

// relayStep is one step of a history of an agent, two coderds that relay for it, and the
// service.
type relayStep struct {
	what   string
	coderd int
	key    int
	after  time.Duration
}

func (s relayStep) String() string {
	return fmt.Sprintf("%s@%s coderd=%d key=%d", s.what, s.after, s.coderd, s.key)
}

// aHistory is one of outages, of the whole service if it restarts.
func aHistory(restarts bool) *rapid.Generator[[]relayStep] {
	kinds := []string{
		"report", "report", "report", "report", "metadata", "metadata", "lifecycle", "lifecycle", "lifecycle", "move", "move", "break", "notice", "streamer",
		"away", "away", "back", "cut",
	}
	if restarts {
		kinds = append(kinds, "outage", "outage")
	}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) relayStep {
		return relayStep{
			what:   rapid.SampledFrom(kinds).Draw(t, "what"),
			coderd: rapid.IntRange(0, 1).Draw(t, "coderd"),
			key:    rapid.IntRange(0, 2).Draw(t, "key"),
			after:  time.Duration(rapid.SampledFrom([]int{300, 300, 500, 1000, 3000, 12_000}).Draw(t, "after")) * time.Millisecond,
		}
	}), 10, 30)
}

// Whatever breaks: each report that was accepted counts once, for watchers of reports and
// in grouped counters. The newest metadata and lifecycle arrive. The served lifecycle
// never goes back. Of an agent that is gone nothing is served.
func TestRelaysLoseAndDoubleNothing(t *testing.T) {
	for seed := range relayHistories {
		restarts := seed%3 == 0
		history := aHistory(restarts).Example(seed)
		var err error
		bubble.Test(t, func(t *testing.T) { err = liveRelayed(t.Context(), history, restarts) })
		if err != nil {
			var steps strings.Builder
			for _, s := range history {
				fmt.Fprintln(&steps, s)
			}
			t.Fatalf("history %d: %v\n%s", seed, err, steps.String())
		}
	}
}

// relayingCoderd is a coderd that relays, over a network of its own.
type relayingCoderd struct {
	service *service
	conn    *grpc.ClientConn
	relays  *client.Relays
	coderd  *client.Coderd

	mu    sync.Mutex
	away  bool       // it cannot reach the service
	conns []net.Conn // those that it dialed
}

func newRelayingCoderd(s *service) (*relayingCoderd, error) {
	c := &relayingCoderd{service: s}
	var err error
	c.conn, err = client.Dial("passthrough:///service", client.DialOptions{Plaintext: true, Token: coderdToken}, grpc.WithContextDialer(c.dial))
	if err != nil {
		return nil, err
	}
	if c.coderd, err = client.NewCoderd(c.conn, client.CoderdOptions{}); err != nil {
		return nil, err
	}
	c.relays, err = c.coderd.Relays(client.RelaysOptions{Backoff: client.Backoff{Max: 4 * time.Second}})
	return c, err
}

func (c *relayingCoderd) dial(ctx context.Context, target string) (net.Conn, error) {
	c.mu.Lock()
	away := c.away
	c.mu.Unlock()
	if away {
		return nil, errors.New("there is no way to the service")
	}
	conn, err := c.service.dial(ctx, target)
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	return conn, err
}

// setAway cuts the coderd off, or mends that.
func (c *relayingCoderd) setAway(away bool) {
	c.mu.Lock()
	c.away = away
	c.mu.Unlock()
	if away {
		c.cut()
	}
}

func (c *relayingCoderd) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}

// relayedLife is an agent that talks to one of two coderds, and what it has said.
type relayedLife struct {
	service *service
	coderds [2]*relayingCoderd
	current *client.RelayedAgent
	at      int
	stale   []*client.RelayedAgent // of connections whose end coderd has not noticed
	reports int
	counter float64
	stage   int // of life; 0: it said none
	said    map[string]string
	newest  int // the highest served stage
}

func (l *relayedLife) connect(coderd int) error {
	handle, err := l.coderds[coderd].relays.Connect(agentID, "")
	l.current, l.at = handle, coderd
	return err
}

func (l *relayedLife) step(s relayStep) error {
	c := l.coderds[s.coderd]
	switch s.what {
	case "report":
		if l.reports == 60 {
			return nil
		}
		l.counter += float64(s.key + 1)
		l.current.Report(&agentstatsv1.Stats{RxBytes: 1 << l.reports, ConnectionCount: 1, Metrics: []*agentstatsv1.Stats_Metric{
			{Name: "work_total", Type: agentstatsv1.Stats_Metric_TYPE_COUNTER, Value: l.counter},
		}})
		l.reports++
	case "metadata":
		l.said[strconv.Itoa(s.key)] = fmt.Sprint(len(l.said), s.after, l.reports, l.counter)
		return l.sayMetadata()
	case "lifecycle":
		if l.stage < len(life) {
			l.current.SetLifecycle(life[l.stage], time.Now())
			l.stage++
		}
	case "move":
		l.stale = append(l.stale, l.current)
		return l.connect(1 - l.at)
	case "break":
		l.current.Disconnect()
		time.Sleep(s.after)
		return l.connect(l.at)
	case "notice":
		for _, h := range l.stale {
			h.Disconnect()
		}
		l.stale = nil
	case "streamer":
		handle, err := c.relays.Connect(agentID, "logstreamer")
		if err != nil {
			return err
		}
		handle.SetLifecycle(agentstatsv1.Lifecycle_STATE_OFF, time.Now())
		handle.Report(&agentstatsv1.Stats{RxBytes: 1 << 61})
		handle.Disconnect()
	case "away":
		c.setAway(true)
	case "back":
		c.setAway(false)
	case "cut":
		c.cut()
	case "outage":
		l.service.stopped()
		time.Sleep(s.after)
		l.service.start()
	}
	return nil
}

func (l *relayedLife) sayMetadata() error {
	for key, value := range l.said {
		if err := l.current.UpdateMetadata(client.Metadata{Key: key, Value: value}); err != nil {
			return err
		}
	}
	return nil
}

// pass lets time pass, and checks that the served lifecycle does not go back.
func (l *relayedLife) pass(d time.Duration) error {
	for {
		info, err := l.service.fleet.Agent(agentID)
		if err != nil {
			return err
		}
		stage := slices.Index(served, info.State.CurrentLifecycle())
		if stage < l.newest || stage > l.stage {
			return fmt.Errorf("lifecycle %s is served after %s, the newest is stage %d", served[stage], served[l.newest], l.stage)
		}
		l.newest = stage
		if d <= 0 {
			return nil
		}
		time.Sleep(min(d, 200*time.Millisecond))
		d -= 200 * time.Millisecond
	}
}

// lines returns the served lines of agents with the prefix.
func (l *relayedLife) lines(prefix string) (lines []string) {
	var b bytes.Buffer
	must(l.service.aggregator.WriteText(&b))
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// liveRelayed lives through a history, and checks the laws at its end.
func liveRelayed(ctx context.Context, history []relayStep, restarts bool) (err error) {
	s := startService("template_name")
	defer s.close()
	l := &relayedLife{service: s, said: make(map[string]string)}
	for i := range l.coderds {
		if l.coderds[i], err = newRelayingCoderd(s); err != nil {
			return err
		}
		defer func() {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, l.coderds[i].relays.Close(closing), l.coderds[i].conn.Close())
		}()
	}
	watcher, err := newRelayingCoderd(s)
	if err != nil {
		return err
	}
	defer func() { _ = watcher.conn.Close() }()
	if _, err = watcher.coderd.Register(ctx, []*agentstatsv1.AgentRegistration{registration()}, nil); err != nil {
		return err
	}
	var mu sync.Mutex
	var sum int64
	var started bool
	stop := run(ctx, func(ctx context.Context) error {
		return watcher.coderd.WatchStats(ctx, client.StatsWatch{
			Name: "test", Started: func(time.Time) { mu.Lock(); defer mu.Unlock(); started = true },
			Handle: func(b client.StatsBatch) error {
				mu.Lock()
				defer mu.Unlock()
				for _, a := range b.Agents {
					sum += a.GetStats().GetRxBytes()
				}
				return nil
			},
		})
	})
	defer func() { err = errors.Join(err, stop()) }()
	time.Sleep(20 * time.Second)
	mu.Lock()
	ok := started
	mu.Unlock()
	if !ok {
		return errors.New("the watch has not started")
	}
	if err = l.connect(0); err != nil {
		return err
	}
	for _, step := range history {
		if err = errors.Join(l.step(step), l.pass(step.after)); err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
	}
	// All faults end. What an agent says of its metadata it says again each interval.
	for _, c := range l.coderds {
		c.setAway(false)
	}
	if err = errors.Join(l.step(relayStep{what: "notice"}), l.pass(time.Minute), l.sayMetadata(), l.pass(20*time.Second)); err != nil {
		return err
	}
	l.current.Disconnect()
	if err = l.pass(time.Minute); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	if want := int64(1)<<l.reports - 1; sum != want {
		return fmt.Errorf("watchers got %b, reported was %b", sum, want)
	}
	if l.newest != l.stage {
		return fmt.Errorf("lifecycle %s is served, the newest is %s", served[l.newest], served[l.stage])
	}
	stored, err := watcher.coderd.Metadata(ctx, agentID)
	if err != nil {
		return err
	}
	values := make(map[string]string)
	for _, a := range stored {
		for _, v := range a.GetValues() {
			values[v.GetKey()] = v.GetValue()
		}
	}
	if !maps.Equal(values, l.said) {
		return fmt.Errorf("metadata %v is stored, the newest is %v", values, l.said)
	}
	if got := l.lines("work_total"); !restarts && l.reports > 0 {
		fields := strings.Fields(strings.Join(got, " "))
		if len(fields) != 2 || fields[1] != fmt.Sprint(l.counter) {
			return fmt.Errorf("grouped counter %q, counted was %v", got, l.counter)
		}
	}
	info, err := l.service.fleet.Agent(agentID)
	if err != nil || info.Status != agent.StatusDisconnected {
		return errors.Join(err, fmt.Errorf("the agent is %s after it has left", info.Status))
	}
	time.Sleep(3 * time.Minute)
	if got := l.lines("coderd_agentstats_rx_bytes{"); len(got) > 0 {
		return fmt.Errorf("served of an agent that has left: %q", got)
	}
	return nil
}
