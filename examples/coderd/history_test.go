package coderd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/examples/coderd/agentproto"
	"github.com/coder/agentstatsd/examples/coderd/agents"
)

// life are the states of an agent's life, in their order, and how they are served. The
// first is that of an agent that said none.
var life = []struct {
	state  agentproto.Lifecycle_State
	served string
}{
	{agentproto.Lifecycle_CREATED, "created"},
	{agentproto.Lifecycle_STARTING, "starting"},
	{agentproto.Lifecycle_START_TIMEOUT, "start_timeout"},
	{agentproto.Lifecycle_READY, "ready"},
	{agentproto.Lifecycle_SHUTTING_DOWN, "shutting_down"},
	{agentproto.Lifecycle_SHUTDOWN_TIMEOUT, "shutdown_timeout"},
	{agentproto.Lifecycle_OFF, "off"},
}

// steps are those that a history is drawn of.
var steps = []string{
	"report", "report", "report", "report", "report", "metadata", "metadata", "lifecycle", "lifecycle", "refused", "streamer",
	"break", "move", "move", "notice", "down", "up", "restart",
}

const (
	histories    = 4
	historySteps = 40
	mostOutages  = 2
)

// history is an agent that talks to one of two coderds, which share a database. What it
// has said is a model of what the service has in the end.
type history struct {
	t       *testing.T
	rand    *rand.Rand
	done    []string
	service *service
	isDown  bool
	outages int

	database *agents.Database
	agentID  uuid.UUID
	coderds  [2]*coderd
	current  *agent
	at       int      // the coderd that it talks to
	stale    []*agent // connections whose end coderd has not noticed

	reports int // each with a bit of its own
	stage   int // of life, the newest
	served  int // the highest stage that was served since the service was started
	said    map[string]string
}

func (h *history) connect(coderd int) {
	h.at = coderd
	h.current = connect(h.t, h.coderds[coderd], token, []string{"", "agent"}[h.rand.IntN(2)])
}

// step lives through a step. What coderd accepts is added to the model.
func (h *history) step(what string) {
	t := h.t
	h.done = append(h.done, what)
	switch what {
	case "report":
		require.NoError(t, h.current.updateStats(&agentproto.Stats{RxBytes: 1 << h.reports, ConnectionCount: 1, Metrics: []*agentproto.Stats_Metric{
			{Name: "work_total", Type: agentproto.Stats_Metric_COUNTER, Value: float64(h.reports + 1)},
		}}))
		h.reports++
	case "metadata":
		key := strconv.Itoa(h.rand.IntN(3))
		h.said[key] = fmt.Sprint("value ", len(h.done))
		require.NoError(t, h.current.updateMetadata(key, " "+h.said[key]+"\n"))
	case "lifecycle":
		if h.stage+1 < len(life) {
			require.NoError(t, h.current.updateLifecycle(life[h.stage+1].state))
			h.stage++
		}
	case "refused":
		require.Error(t, h.current.updateStats(&agentproto.Stats{RxBytes: -1}))
		require.Error(t, h.current.updateLifecycle(agentproto.Lifecycle_STATE_UNSPECIFIED))
	case "streamer":
		streamer := connect(t, h.coderds[h.rand.IntN(2)], token, "logstreamer")
		require.NoError(t, streamer.updateLifecycle(agentproto.Lifecycle_OFF))
		require.NoError(t, streamer.updateStats(&agentproto.Stats{RxBytes: 1 << 61}))
		require.NoError(t, streamer.updateMetadata("0", "a streamer's"))
		require.NoError(t, streamer.session.Close())
	case "break":
		require.NoError(t, h.current.session.Close())
		h.connect(h.at)
	case "move":
		h.stale = append(h.stale, h.current)
		h.connect(1 - h.at)
	case "notice":
		for _, a := range h.stale {
			require.NoError(t, a.session.Close())
		}
		h.stale = nil
	case "down":
		if h.outages < mostOutages && !h.isDown {
			h.service.stop()
			h.outages++
			h.isDown, h.served = true, 0
		}
	case "up":
		if h.isDown {
			h.service.start(t)
			h.isDown = false
		}
	case "restart":
		if !h.isDown {
			h.restart(h.rand.IntN(2))
		}
	}
	h.requireNoFlip()
}

// restart ends a coderd, which the agent leaves, and starts another one in its place.
func (h *history) restart(coderd int) {
	require.Less(h.t, h.coderds[coderd].stop(h.t), endsWithin)
	h.coderds[coderd] = startCoderd(h.t, h.database, h.service.url())
	if h.at == coderd {
		h.connect(1 - coderd)
	}
}

// requireNoFlip requires that the lifecycle that is served does not go back.
func (h *history) requireNoFlip() {
	if h.isDown {
		return
	}
	for _, line := range h.service.scrape(h.t, "coderd_agents_connections") {
		for stage, l := range life {
			if strings.Contains(line, fmt.Sprintf("lifecycle_state=%q", l.served)) {
				require.GreaterOrEqual(h.t, stage, h.served, line)
				require.LessOrEqual(h.t, stage, h.stage, line)
				h.served = stage
			}
		}
	}
}

// watch adds up what watchers of reports get.
func (h *history) watch() (sum func() int64) {
	conn, err := client.DialURL(h.service.url(), grpc.WithConnectParams(grpc.ConnectParams{
		Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1, MaxDelay: 50 * time.Millisecond}, MinConnectTimeout: time.Second,
	}))
	require.NoError(h.t, err)
	watcher, err := client.NewCoderd(conn, client.CoderdOptions{Backoff: client.Backoff{Min: 50 * time.Millisecond, Max: 200 * time.Millisecond}})
	require.NoError(h.t, err)
	var mu sync.Mutex
	var total int64
	var once sync.Once
	started, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ended <- watcher.WatchStats(ctx, client.StatsWatch{
			Name: "history", Started: func(time.Time) { once.Do(func() { close(started) }) },
			Handle: func(b client.StatsBatch) error {
				mu.Lock()
				defer mu.Unlock()
				for _, a := range b.Agents {
					total += a.GetStats().GetRxBytes()
				}
				return nil
			},
		})
	}()
	h.t.Cleanup(func() {
		cancel()
		require.NoError(h.t, <-ended)
		require.NoError(h.t, conn.Close())
	})
	<-started
	return func() int64 {
		mu.Lock()
		defer mu.Unlock()
		return total
	}
}

// Whatever breaks between agents, coderds and the service, each report that coderd
// accepted counts once. Lifecycle and metadata are the newest, and the lifecycle never
// goes back. Nothing is served of an agent that is gone.
func TestHistories(t *testing.T) {
	for seed := range histories {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			t.Parallel()
			h := &history{t: t, rand: rand.New(rand.NewPCG(uint64(seed), 0)), said: make(map[string]string)}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("history: %v", h.done)
				}
			})
			h.service = startService(t, "--report-interval", "1s", "--series-ttl", "2s", "--metadata-flush-interval", "100ms", "--adaptive-intervals=false")
			h.database, h.agentID, _ = newDatabase()
			for i := range h.coderds {
				h.coderds[i] = startCoderd(t, h.database, h.service.url())
			}
			sum := h.watch()
			h.connect(0)
			for range historySteps {
				h.step(steps[h.rand.IntN(len(steps))])
			}
			// All faults end. An older relay has nothing left. The agent says all of its
			// metadata again, as it does each interval.
			h.step("up")
			h.step("notice")
			h.restart(1 - h.at)
			for key, value := range h.said {
				require.NoError(t, h.current.updateMetadata(key, value))
			}
			h.step("report")
			await(t, "the newest report is served", func() bool { return h.service.isServed(t, "work_total", fmt.Sprintf(" %d", h.reports)) })
			h.step("report")
			require.Less(t, h.coderds[h.at].stop(t), endsWithin)
			want := int64(1)<<h.reports - 1
			await(t, "each report is counted", func() bool { return sum() >= want })
			await(t, "metadata is stored", func() bool {
				for key, value := range h.said {
					if h.service.metadata(t, h.agentID, key) != value {
						return false
					}
				}
				return true
			})
			h.requireNoFlip()
			require.Equal(t, h.stage, h.served)
			await(t, "the agent is gone", func() bool { return len(h.service.scrape(t, "work_total", "coderd_agentstats_rx_bytes")) == 0 })
			require.True(t, h.service.isServed(t, "coderd_agents_connections", `status="disconnected"`))
			require.Equal(t, want, sum(), "no report is counted twice")
		})
	}
}
