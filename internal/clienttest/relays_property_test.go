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

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
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

// aHistory is one of outages, of a replica of the service if it restarts.
func aHistory(restarts, replicated bool) *rapid.Generator[[]relayStep] {
	kinds := []string{
		"report", "report", "report", "report", "metadata", "metadata", "lifecycle", "lifecycle", "lifecycle",
		"network", "network", "app", "app", "move", "move", "break", "notice", "streamer", "away", "away", "back", "back", "cut", "strand", "strand",
	}
	if restarts {
		kinds = append(kinds, "outage", "outage")
	}
	if replicated {
		kinds = append(kinds, "replica", "replica")
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
// in grouped counters. The newest metadata, lifecycle, network, health of each app and
// count of sessions arrive, each said once. What one replica serves never goes back. Of an
// agent that is gone nothing is served.
func TestRelaysLoseAndDoubleNothing(t *testing.T) {
	for seed := range relayHistories {
		restarts, replicas := seed%3 == 0, 1+seed%2
		history := aHistory(restarts, replicas > 1).Example(seed)
		var err error
		bubble.Test(t, func(t *testing.T) { err = liveRelayed(t.Context(), history, replicas, restarts) })
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
	replicas []*service
	conn     *grpc.ClientConn
	relays   *client.Relays
	coderd   *client.Coderd

	mu    sync.Mutex
	at    int        // the replica that it reaches
	away  bool       // it cannot reach the service
	conns []net.Conn // those that it dialed
}

func newRelayingCoderd(replicas []*service) (*relayingCoderd, error) {
	c := &relayingCoderd{replicas: replicas}
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
	away, s := c.away, c.replicas[c.at]
	c.mu.Unlock()
	if away {
		return nil, errors.New("there is no way to the service")
	}
	conn, err := s.dial(ctx, target)
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

// reach makes the coderd reach another replica.
func (c *relayingCoderd) reach() {
	c.mu.Lock()
	c.at = (c.at + 1) % len(c.replicas)
	c.mu.Unlock()
	c.cut()
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
	replicas []*service
	coderds  [2]*relayingCoderd
	current  *client.RelayedAgent
	at       int
	stale    []*client.RelayedAgent // of connections whose end coderd has not noticed
	reports  int
	counter  float64
	stage    int // of life; 0: it said none
	said     map[string]string
	newest   int    // the highest served stage
	node     uint64 // that it said last
	served   uint64 // that is served
	apps     map[uuid.UUID]agentstatsv1.AppHealth
}

// appIDs are the agent's apps. healths are those that it gives them.
var (
	appIDs  = []uuid.UUID{appID, {14: 1, 15: 7}}
	healths = []agentstatsv1.AppHealth{
		agentstatsv1.AppHealth_APP_HEALTH_INITIALIZING, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY, agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY,
	}
)

// relayedRegistration is that of an agent with all the apps.
func relayedRegistration() *agentstatsv1.AgentRegistration {
	r := registration()
	app := proto.CloneOf(r.GetApps()[0])
	app.Id, app.Slug, app.DisplayName = appIDs[1][:], "other", "other"
	r.Apps = append(r.GetApps(), app)
	return r
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
		l.current.Report(&agentstatsv1.Stats{RxBytes: 1 << l.reports, ConnectionCount: 1, SessionCountSsh: int64(l.reports + 1), Metrics: []*agentstatsv1.Stats_Metric{
			{Name: "work_total", Type: agentstatsv1.Stats_Metric_TYPE_COUNTER, Value: l.counter},
		}})
		l.reports++
	case "metadata":
		key := strconv.Itoa(s.key)
		l.said[key] = fmt.Sprint(time.Now().UnixNano())
		return l.current.UpdateMetadata(client.Metadata{Key: key, Value: l.said[key]})
	case "network":
		l.node++
		return l.current.SetNetwork(&agentstatsv1.Network{NodeId: l.node})
	case "app":
		app := appIDs[s.coderd]
		l.apps[app] = healths[s.key]
		return l.current.SetAppHealth(app, healths[s.key])
	case "lifecycle":
		if l.stage < len(life) {
			l.current.SetLifecycle(life[l.stage], time.Now())
			l.stage++
		}
	case "move":
		l.stale = append(l.stale, l.current)
		return l.connect(1 - l.at)
	case "strand": // it moves from a coderd that cannot send what it said last
		l.coderds[l.at].setAway(true)
		for _, what := range []string{"report", "metadata", "network", "app"} {
			s.what, s.after = what, 300*time.Millisecond
			if err := errors.Join(l.step(s), l.pass(s.after)); err != nil {
				return err
			}
		}
		return l.step(relayStep{what: "move"})
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
	case "replica":
		c.reach()
	case "outage":
		replica := l.replicas[s.key%len(l.replicas)]
		replica.stopped()
		time.Sleep(s.after)
		replica.start()
	}
	return nil
}

// pass lets time pass, and checks that what a single replica serves does not go back.
func (l *relayedLife) pass(d time.Duration) error {
	for {
		info, err := l.replicas[0].fleet.Agent(agentID)
		if err != nil {
			return err
		}
		stage := slices.Index(served, info.State.CurrentLifecycle())
		if alone := len(l.replicas) == 1; alone && (stage < l.newest || stage > l.stage) {
			return fmt.Errorf("lifecycle %s is served after %s, the newest is stage %d", served[stage], served[l.newest], l.stage)
		} else if alone && info.State.Network.NodeID < l.served {
			return fmt.Errorf("node %d is served after %d", info.State.Network.NodeID, l.served)
		}
		l.newest, l.served = stage, info.State.Network.NodeID
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
	for _, replica := range l.replicas {
		must(replica.aggregator.WriteText(&b))
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// liveRelayed lives through a history, and checks the laws at its end.
func liveRelayed(ctx context.Context, history []relayStep, replicas int, restarts bool) (err error) {
	l := &relayedLife{said: make(map[string]string), apps: make(map[uuid.UUID]agentstatsv1.AppHealth)}
	if replicas == 1 {
		l.replicas = []*service{startService("template_name")}
	} else {
		l.replicas = startReplicas(replicas, "template_name")
	}
	for _, s := range l.replicas {
		defer s.close()
	}
	for i := range l.coderds {
		if l.coderds[i], err = newRelayingCoderd(l.replicas); err != nil {
			return err
		}
		defer func() {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, l.coderds[i].relays.Close(closing), l.coderds[i].conn.Close())
		}()
	}
	watcher, err := newRelayingCoderd(l.replicas)
	if err != nil {
		return err
	}
	defer func() { _ = watcher.conn.Close() }()
	if _, err = watcher.coderd.Register(ctx, []*agentstatsv1.AgentRegistration{relayedRegistration()}, nil); err != nil {
		return err
	}
	var mu sync.Mutex
	var sum, sessions int64
	var newest time.Time
	var started bool
	stop := run(ctx, func(ctx context.Context) error {
		return watcher.coderd.WatchStats(ctx, client.StatsWatch{
			Name: "test", Started: func(time.Time) { mu.Lock(); defer mu.Unlock(); started = true },
			Handle: func(b client.StatsBatch) error {
				mu.Lock()
				defer mu.Unlock()
				for _, a := range b.Agents {
					sum += a.GetStats().GetRxBytes()
					if at := a.GetReceivedAt().AsTime(); at.After(newest) {
						newest, sessions = at, a.GetStats().GetSessionCountSsh()
					}
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
	// All faults end.
	for _, c := range l.coderds {
		c.setAway(false)
	}
	if err = errors.Join(l.step(relayStep{what: "notice"}), l.pass(2*time.Minute)); err != nil {
		return err
	}
	l.current.Disconnect()
	if err = l.pass(time.Minute); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	if l.reports > 0 && sessions != int64(l.reports) {
		return fmt.Errorf("watchers got %d sessions of the newest report, reported were %d", sessions, l.reports)
	}
	if want := int64(1)<<l.reports - 1; sum != want {
		return fmt.Errorf("watchers got %b, reported was %b", sum, want)
	}
	for _, s := range l.replicas {
		if err = l.checkStates(s); err != nil {
			return err
		}
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
	// Another replica takes the first value that it gets for counted.
	counted := 0.0
	for _, line := range l.lines("work_total") {
		value, err := strconv.ParseFloat(strings.Fields(line)[1], 64)
		if err != nil {
			return err
		}
		counted += value
	}
	if !restarts && (counted > l.counter || replicas == 1 && counted != l.counter) {
		return fmt.Errorf("grouped counter %v, counted was %v", counted, l.counter)
	}
	time.Sleep(3 * time.Minute)
	if got := l.lines("coderd_agentstats_rx_bytes{"); len(got) > 0 {
		return fmt.Errorf("served of an agent that has left: %q", got)
	}
	return nil
}

// checkStates checks what a replica serves of the agent's state after all.
func (l *relayedLife) checkStates(s *service) error {
	info, err := s.fleet.Agent(agentID)
	if err != nil {
		return err
	}
	st := &info.State
	if info.Status != agent.StatusDisconnected {
		return fmt.Errorf("the agent is %s after it has left", info.Status)
	}
	if got := st.CurrentLifecycle(); got != served[l.stage] {
		return fmt.Errorf("lifecycle %s is served, the newest is %s", got, served[l.stage])
	}
	if st.Network.NodeID != l.node {
		return fmt.Errorf("node %d is served, the newest is %d", st.Network.NodeID, l.node)
	}
	for app, health := range l.apps {
		if want := strings.ToLower(strings.TrimPrefix(health.String(), "APP_HEALTH_")); string(st.AppHealth[app]) != want {
			return fmt.Errorf("app %s is %s, the newest is %s", app, st.AppHealth[app], want)
		}
	}
	return nil
}
