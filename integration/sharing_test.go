package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/freeport"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Debian's Prometheus scrapes replicas each second while one joins, one leaves, one is
// killed, and one starts after that. Its sums over all of them are right, but for one scrape
// when the shares of what is not connected move. Of one that is killed the others have to
// know first. With -soak there are more workspaces, and each happens ten times.
func TestSumsWhileSharesMove(t *testing.T) {
	beside(t)
	rounds, f := 1, sharedFleet{workspaces: 90, connected: 10, observed: 60}
	if *soak {
		rounds, f = 10, sharedFleet{workspaces: 20_000, connected: 10, observed: 10_000}
	}
	r := startReplicas(t, 2, false)
	joins := newService(t, r.services[0].args...)
	f.replicas = slices.Concat(r.services, []*service{joins})
	f.register(t, r.tokenFile)
	f.startPrometheus(t)
	f.awaitRight(t, f.replicas[:2])
	began := f.awaitScrapes(t, time.Now())
	for range rounds {
		f.change(t, "joins", f.replicas, func() { joins.start(t) })
		f.change(t, "leaves", []*service{f.replicas[0], joins}, func() {
			_, err := f.replicas[1].stop(syscall.SIGTERM)
			require.NoError(t, err)
		})
		f.change(t, isKilled, f.replicas[:1], joins.kill)
		f.change(t, "starts again", f.replicas[:2], func() { f.replicas[1].start(t) })
	}
	f.check(t, began, time.Now())
}

// sharedFleet are replicas with workspaces of one agent each, which a Prometheus scrapes.
// Some agents are connected to the first replica. Coderd said that some others are.
type sharedFleet struct {
	workspaces, connected, observed int
	replicas                        []*service
	prometheus                      string // its address
	changes                         []change
}

// isKilled is what a killed replica is.
const isKilled = "is killed"

// change is a replica that joins, leaves or is killed.
type change struct {
	what string
	left []*service // that serve after it
	// began is before it. It is known when all replicas serve what is right. scraped is when
	// the first scrape after that has begun of each.
	began, known, scraped time.Time
}

// register registers all agents, and connects some.
func (f *sharedFleet) register(t *testing.T, tokenFile string) {
	t.Helper()
	dial := func(token string) *grpc.ClientConn {
		conn, err := client.Dial(f.replicas[0].grpcAddr, client.DialOptions{Plaintext: true, Token: token})
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	token, err := os.ReadFile(tokenFile)
	require.NoError(t, err)
	coderd, err := client.NewCoderd(dial(string(token)), client.CoderdOptions{})
	require.NoError(t, err)
	var agents []*pb.AgentRegistration
	for n := range f.workspaces {
		a := registrationOf(fmt.Sprintf("user%d", n%7), n)
		if n >= f.connected && n < f.connected+f.observed {
			a.Observed = &pb.Observation{At: timestamppb.Now(), Status: pb.AgentStatus_AGENT_STATUS_CONNECTED}
		}
		agents = append(agents, a)
	}
	for part := range slices.Chunk(agents, 500) {
		_, err := coderd.Register(t.Context(), part, nil)
		require.NoError(t, err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for n := range f.connected {
		a, err := client.NewAgent(dial(tokenOf(n)), client.AgentOptions{})
		require.NoError(t, err)
		running.Go(func() { _ = a.Run(ctx) })
	}
}

// startPrometheus starts a Prometheus that scrapes all replicas each second, also those that
// do not run yet.
func (f *sharedFleet) startPrometheus(t *testing.T) {
	t.Helper()
	var targets []string
	for _, s := range f.replicas {
		targets = append(targets, strconv.Quote(s.httpAddr))
	}
	f.prometheus = freeport.Addr()
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
scrape_configs:
  - job_name: agentstatsd
    scrape_interval: 1s
    scrape_timeout: 1s
    static_configs:
      - targets: [%s]
`, strings.Join(targets, ", ")), 0o600))
	cmd, output := exec.Command(debian(t, "prometheus"), "--config.file="+file, "--storage.tsdb.path="+dir, "--web.listen-address="+f.prometheus), new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = output, output
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of Prometheus:\n%s", output.tail(4<<10))
		}
	})
}

// samples are the values of a series, by when they are of.
type samples []sampleAt

type sampleAt struct {
	at    time.Time
	value float64
}

// query asks Prometheus, and returns the series of the answer by their instances. One that
// has none has the empty one. It returns nothing while Prometheus starts.
func (f *sharedFleet) query(t *testing.T, path string, parameters url.Values) map[string]samples {
	t.Helper()
	resp, err := http.PostForm("http://"+f.prometheus+"/api/v1/"+path, parameters)
	if err != nil {
		return nil
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Error string
		Data  struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
	}
	if json.NewDecoder(resp.Body).Decode(&answer) != nil {
		return nil
	}
	require.Empty(t, answer.Error)
	all := make(map[string]samples)
	for _, series := range answer.Data.Result {
		of := series.Metric[model.InstanceLabel]
		for _, v := range series.Values {
			value, err := strconv.ParseFloat(v[1].(string), 64)
			require.NoError(t, err)
			all[of] = append(all[of], sampleAt{time.UnixMilli(int64(v[0].(float64)*1000 + 0.5)), value})
		}
	}
	return all
}

// scrapes returns the scrapes of each replica since then, whether they failed or not.
func (f *sharedFleet) scrapes(t *testing.T, since time.Time) map[string]samples {
	t.Helper()
	window := int(time.Since(since).Seconds()) + 2
	return f.query(t, "query", url.Values{"query": {fmt.Sprintf("up[%ds]", window)}})
}

// awaitScrapes waits until each replica was scraped after since, or could not be. It returns
// when the last of the first of these scrapes began.
func (f *sharedFleet) awaitScrapes(t *testing.T, since time.Time) (last time.Time) {
	t.Helper()
	require.Eventually(t, func() bool {
		last = time.Time{}
		all := f.scrapes(t, since)
		for _, of := range all {
			of = slices.DeleteFunc(of, func(p sampleAt) bool { return p.at.Before(since) })
			if len(of) == 0 {
				return false
			}
			if of[0].at.After(last) {
				last = of[0].at
			}
		}
		return len(all) == len(f.replicas)
	}, time.Minute, 100*time.Millisecond, "not all replicas are scraped")
	return last
}

// awaitRight waits until these replicas serve each workspace once, as it is, and each has its
// share of them.
func (f *sharedFleet) awaitRight(t *testing.T, live []*service) {
	t.Helper()
	require.Eventually(t, func() bool {
		served := make(map[string]int)
		up := 0.0
		for _, s := range live {
			share := 0
			_, body := s.scrape(t, "/metrics", "Accept", acceptText)
			eachSample(t, body, acceptText, func(l labels.Labels, v float64) {
				switch l.Get(model.MetricNameLabel) {
				case "coderd_agents_connections":
					served[l.Get("workspace_name")]++
					share++
				case "coderd_agents_up":
					up += v
				}
			})
			if share < (f.workspaces-f.connected)/len(live)/2 {
				return false
			}
		}
		return up == float64(f.connected+f.observed) && len(served) == f.workspaces &&
			!slices.ContainsFunc(slices.Collect(maps.Values(served)), func(n int) bool { return n != 1 })
	}, time.Minute, 20*time.Millisecond, "not each workspace is served once")
}

// change has a replica come or go, so that these are left.
func (f *sharedFleet) change(t *testing.T, what string, left []*service, do func()) {
	t.Helper()
	c := change{what: what, left: left, began: time.Now()}
	do()
	f.awaitRight(t, left)
	c.known = time.Now()
	c.scraped = f.awaitScrapes(t, c.known)
	f.changes = append(f.changes, c)
	t.Logf("a replica %s: known after %v", what, c.known.Sub(c.began))
}

const (
	// resolution is the time between two moments at which sums are looked at.
	resolution = 20 * time.Millisecond
	// asked is how long one query asks for. Prometheus loads at most 50,000,000 samples for it:
	// 500 of each series.
	asked = 10 * time.Second
)

// check checks all sums of the time.
func (f *sharedFleet) check(t *testing.T, from, until time.Time) {
	t.Helper()
	from, until = from.Truncate(time.Second).Add(time.Second), until.Truncate(time.Second)
	scrapes := f.scrapes(t, from)
	for query, want := range map[string]int{
		"sum(coderd_agents_up)":                                                                   f.connected + f.observed,
		"sum(coderd_agents_connections)":                                                          f.workspaces,
		`sum(coderd_agents_connections{status="connected"})`:                                      f.connected + f.observed,
		"count(sum by (username, workspace_name) (coderd_agents_up) == 1)":                        f.connected + f.observed,
		"count(count by (username, workspace_name) (coderd_agents_up) == 1)":                      f.workspaces,
		"count(count by (username, workspace_name, agent_name) (coderd_agents_connections) == 1)": f.workspaces,
	} {
		right := 0
		var wrong []time.Time // moments in a row
		for at := from; at.Before(until); at = at.Add(asked) {
			values := make(map[int64]float64)
			for _, p := range f.query(t, "query_range", url.Values{
				"query": {query}, "step": {resolution.String()},
				"start": {at.Format(time.RFC3339)}, "end": {at.Add(asked).Format(time.RFC3339)},
			})[""] {
				values[p.at.UnixMilli()] = p.value
			}
			for moment := at; moment.Before(until) && moment.Before(at.Add(asked)); moment = moment.Add(resolution) {
				if values[moment.UnixMilli()] != float64(want) && !f.isLate(moment, scrapes) {
					wrong = append(wrong, moment)
					continue
				}
				right++
				f.judge(t, query, wrong, scrapes)
				wrong = nil
			}
		}
		f.judge(t, query, wrong, scrapes)
		require.Positive(t, right, query)
	}
}

// isLate reports whether a replica that runs was not scraped in time, on a slow machine:
// Prometheus has nothing of it then.
func (f *sharedFleet) isLate(moment time.Time, scrapes map[string]samples) bool {
	live, since := f.replicas[:2], time.Time{}
	for _, c := range f.changes {
		if moment.Before(c.began) {
			break
		}
		if moment.Before(c.known) {
			live = slices.DeleteFunc(slices.Clone(live), func(s *service) bool { return !slices.Contains(c.left, s) })
			break
		}
		live, since = c.left, c.known
	}
	return slices.ContainsFunc(live, func(s *service) bool {
		last := 1.0
		for _, scrape := range scrapes[s.httpAddr] {
			if scrape.at.After(since) && !scrape.at.After(moment) {
				last = scrape.value
			}
		}
		return last == 0
	})
}

// judge fails unless these moments, in which a sum is wrong, are of one change, and before
// each replica was scraped once since all had noticed it. They do not have two scrapes of
// each replica, unless one was killed: the others had to notice that first.
func (f *sharedFleet) judge(t *testing.T, query string, wrong []time.Time, scrapes map[string]samples) {
	t.Helper()
	if len(wrong) == 0 {
		return
	}
	first, last := wrong[0], wrong[len(wrong)-1]
	at := slices.IndexFunc(f.changes, func(c change) bool { return !first.Before(c.began) && last.Before(c.scraped) })
	if !assert.GreaterOrEqual(t, at, 0, "%s is wrong from %v to %v: %v", query, first, last, f.changes) {
		return
	}
	c := f.changes[at]
	fewest := math.MaxInt
	for _, of := range scrapes {
		n := 0
		for _, scrape := range of {
			if scrape.at.After(first) && !scrape.at.After(last) {
				n++
			}
		}
		fewest = min(fewest, n)
	}
	t.Logf("a replica %s: %s is wrong for %v, in %d scrapes of each", c.what, query, last.Sub(first)+resolution, fewest)
	if c.what != isKilled {
		assert.LessOrEqual(t, fewest, 1, "%s, as a replica %s", query, c.what)
	}
}
