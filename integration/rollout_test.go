package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/postgrestest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// rollout is a Deployment of replicas as the chart makes it, with agents on them.
type rollout struct {
	t        *testing.T
	release  *release
	manifest manifest
	drain    time.Duration // of each replica, in which its agents go elsewhere
	database string
	roots    *x509.CertPool
	service  *balancer
	agents   []*rolledAgent

	mu sync.Mutex
	// Guarded by mu.

	// pods are those whose process runs.
	pods []*pod
	// received are bytes by agent, of reports that coderd has received.
	received map[uuid.UUID]int64
	position client.StatsPosition
	// reconnects are the times at which agents had sessions again.
	reconnects []time.Time
	problems   []string
}

// rolledAgent reports bytes, and a value of metadata that rises.
type rolledAgent struct {
	*client.Agent
	id      uuid.UUID
	token   string
	sent    atomic.Int64 // bytes
	value   atomic.Int64 // the last one that was handed over
	durable atomic.Int64 // the last one that is in the database, as the service has said
}

// endpointLag is the time in which nodes learn that a pod is none of a Service's any more.
const endpointLag = 500 * time.Millisecond

// TestRollingUpdate replaces three replicas one after another, as a Deployment of the chart
// is: a new pod is ready before an old one is asked to stop, and the settings are those that
// the chart makes. Meanwhile agents report through the Service. Nothing that was acked is
// lost, coderd receives exactly what was reported, no agent is served twice, and those of a
// pod that stops go elsewhere spread over its drain.
func TestRollingUpdate(t *testing.T) {
	agents, file := 300, chartFile("rollout")
	if *soak {
		agents, file = 1500, "../deploy/kubernetes/replicated.yaml"
	}
	beside(t)
	r := newRollout(t, file)
	update := r.manifest.Spec.Strategy.RollingUpdate
	require.Equal(t, 3, r.manifest.Spec.Replicas)
	require.Equal(t, 1, update.MaxSurge, "what is done below")
	require.Zero(t, update.MaxUnavailable, "what is done below")
	minReady := time.Duration(r.manifest.Spec.MinReadySeconds) * time.Second

	var old []*pod
	for range r.manifest.Spec.Replicas {
		old = append(old, r.newPod())
	}
	for _, p := range old {
		r.admit(p)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	reporting, stopReporting := context.WithCancel(ctx)
	r.start(ctx, reporting, &running, agents)
	r.waitServed(agents)
	looking, stopLooking := context.WithCancel(ctx)
	var looked sync.WaitGroup
	looked.Go(func() { r.look(looking, agents) })
	t.Cleanup(func() { stopLooking(); looked.Wait() })

	var stopping sync.WaitGroup
	for _, p := range old {
		r.admit(r.newPod())
		time.Sleep(minReady)
		stopping.Go(func() { r.replace(p) })
	}
	stopping.Wait()
	r.waitServed(agents)
	stopLooking()
	looked.Wait()
	stopReporting()
	r.settle(ctx)
	require.Len(t, r.pods, r.manifest.Spec.Replicas)
	require.Empty(t, r.problems)
}

// newRollout reads what the chart makes. Nothing runs yet but the database.
func newRollout(t *testing.T, file string) *rollout {
	t.Helper()
	certificate, roots := certificateFiles(t)
	database := postgrestest.Start(t).CreateDatabase(t)
	r := &rollout{
		t: t, roots: roots, database: database, service: newBalancer(t), received: make(map[uuid.UUID]int64),
		release: readRelease(t, file, map[string]files{
			"agentstatsd-tls":          certificate,
			"agentstatsd-coderd-token": {"token": tokenText + "coderd"},
			"agentstatsd-database":     {"url": database},
		}),
	}
	r.manifest = r.release.workload(t, "agentstatsd")
	p := newPod(t, r.release, "agentstatsd")
	cmd := exec.Command(binary, append(slices.Clone(p.args), "--print-config")...)
	cmd.Env = p.env
	out, err := cmd.Output()
	require.NoError(t, err)
	var inForce struct {
		GRPC struct {
			DrainTimeout time.Duration `yaml:"drain_timeout"`
		}
	}
	require.NoError(t, yaml.Unmarshal(out, &inForce))
	r.drain = inForce.GRPC.DrainTimeout
	require.Positive(t, r.drain)
	return r
}

// newPod starts a pod.
func (r *rollout) newPod() *pod {
	r.t.Helper()
	p := newPod(r.t, r.release, "agentstatsd")
	p.start(r.t)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods = append(r.pods, p)
	return p
}

// admit waits until a pod is ready, and makes it an endpoint of the Service.
func (r *rollout) admit(p *pod) {
	r.t.Helper()
	p.waitReady(r.t)
	r.service.set(p.ports["grpc"], true)
}

// replace ends a pod as Kubernetes does: it is none of the Service's any more, which nodes
// learn a little later, while it sleeps; then it is asked to stop.
func (r *rollout) replace(p *pod) {
	time.AfterFunc(endpointLag, func() { r.service.set(p.ports["grpc"], false) })
	sessions := sumAt(r.t, p, "agentstatsd_sessions")
	began := time.Now().Add(p.preStop)
	forced, took := p.stop()
	time.Sleep(time.Second) // the last ones try again after a wait of as long at most
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods = slices.DeleteFunc(r.pods, func(other *pod) bool { return other == p })
	moved := slices.DeleteFunc(slices.Clone(r.reconnects), func(at time.Time) bool { return at.Before(began) || at.After(began.Add(took+time.Second)) })
	r.t.Logf("a pod with %v sessions stopped in %s of %s: %s", sessions, took.Round(time.Millisecond), p.grace, spread(moved))
	if forced {
		r.problems = append(r.problems, "a pod was killed at the end of its grace period")
	}
	if len(moved) < int(sessions)*3/4 || sessions < 10 { // some few wait for longer
		r.problems = append(r.problems, fmt.Sprintf("a pod had %v sessions, and %d were opened while it stopped", sessions, len(moved)))
		return
	}
	// The drain asks agents over three quarters of its time. Of even times, four fifths are
	// within three fifths of it. A slow machine makes it longer only.
	if middle := moved[len(moved)*9/10].Sub(moved[len(moved)/10]); middle < r.drain*3/10 {
		r.problems = append(r.problems, fmt.Sprintf("four fifths of the agents of a pod came elsewhere within %s, its drain is %s", middle, r.drain))
	}
	if most := mostWithin(moved, time.Second); most > len(moved)*9/10 {
		r.problems = append(r.problems, fmt.Sprintf("%d of %d agents of a pod came elsewhere within one second", most, len(moved)))
	}
}

// spread says how times are spread.
func spread(times []time.Time) string {
	if len(times) == 0 {
		return "no reconnects"
	}
	return fmt.Sprintf("%d reconnects in %s, at most %d in one second", len(times), times[len(times)-1].Sub(times[0]).Round(time.Millisecond), mostWithin(times, time.Second))
}

// mostWithin returns how many of ordered times are within d at most.
func mostWithin(times []time.Time, d time.Duration) int {
	most, first := 0, 0
	for i, at := range times {
		for at.Sub(times[first]) > d {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// dial returns a connection through the Service until ctx ends.
func (r *rollout) dial(ctx context.Context, token string) (*grpc.ClientConn, error) {
	conn, err := client.Dial(r.service.lis.Addr().String(), client.DialOptions{TLS: &tls.Config{RootCAs: r.roots}, Token: token})
	if err == nil {
		context.AfterFunc(ctx, func() { _ = conn.Close() })
	}
	return conn, err
}

// start registers agents, watches what they report, and has them report; values of metadata
// until reporting ends.
func (r *rollout) start(ctx, reporting context.Context, running *sync.WaitGroup, n int) {
	r.t.Helper()
	conn, err := r.dial(ctx, tokenText+"coderd")
	require.NoError(r.t, err)
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(r.t, err)
	r.register(ctx, coderd, n)
	started := make(chan struct{})
	begin := sync.OnceFunc(func() { close(started) })
	running.Go(func() {
		_ = coderd.WatchStats(ctx, client.StatsWatch{
			Name: "insights",
			Load: func(context.Context) (client.StatsPosition, error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.position, nil
			},
			Started: func(time.Time) { begin() },
			Handle:  r.handle,
		})
	})
	<-started
	for _, a := range r.agents {
		a.Agent, err = client.NewDialingAgent(
			func() (*grpc.ClientConn, error) { return r.dial(ctx, a.token) },
			client.AgentOptions{
				Collect: func(context.Context) *agentstatsv1.Stats {
					bytes := 1 + rand.Int64N(1000)
					a.sent.Add(bytes)
					return &agentstatsv1.Stats{RxBytes: bytes, ConnectionCount: 1}
				},
				OnState: func(s client.State) { r.noteState(s) },
				OnDurable: func(values []client.Metadata) {
					for _, v := range values {
						n, _ := strconv.ParseInt(v.Value, 10, 64)
						a.durable.Store(max(n, a.durable.Load()))
					}
				},
				OnRefusal: func(refused *agentstatsv1.Refusal) { r.note("refused: %v", refused) },
			})
		require.NoError(r.t, err)
		running.Go(func() {
			pause(ctx, rand.N(time.Duration(n)*2*time.Millisecond)) // 500 handshakes a second
			_ = a.Run(ctx)
		})
		running.Go(func() { a.update(reporting) })
	}
}

// update hands over a value each second.
func (a *rolledAgent) update(ctx context.Context) {
	for pause(ctx, rand.N(time.Second)); ctx.Err() == nil; pause(ctx, time.Second) {
		_ = a.UpdateMetadata(client.Metadata{Key: "n", Value: strconv.FormatInt(a.value.Add(1), 10)})
	}
}

func (r *rollout) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// noteState notes when an agent has a session again.
func (r *rollout) noteState(s client.State) {
	if s.Connection == client.Connected {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.reconnects = append(r.reconnects, time.Now())
	}
}

func (r *rollout) register(ctx context.Context, coderd *client.Coderd, n int) {
	r.t.Helper()
	made := timestamppb.New(time.Now().Add(-time.Minute))
	var registrations []*agentstatsv1.AgentRegistration
	for i := range n {
		a := &rolledAgent{id: uuid.New(), token: fmt.Sprint("token of agent ", i, " in the rollout")}
		r.agents = append(r.agents, a)
		hash := sha256.Sum256([]byte(a.token))
		registrations = append(registrations, &agentstatsv1.AgentRegistration{
			Id: a.id[:], Name: "main", CreatedAt: made, TokenSha256: hash[:],
			Workspace: &agentstatsv1.Workspace{
				Id: a.id[:], Name: fmt.Sprint("dev", i), OwnerId: a.id[:], OwnerUsername: fmt.Sprint("user", i),
				Template: &agentstatsv1.Template{Id: a.id[:], Name: "docker"},
				Build:    &agentstatsv1.Build{Id: a.id[:], CreatedAt: made, Transition: agentstatsv1.Build_TRANSITION_START},
			},
		})
	}
	_, err := coderd.Register(ctx, registrations, nil)
	require.NoError(r.t, err)
}

// handle adds a batch to what coderd has received, as one that is stored with its position.
func (r *rollout) handle(batch client.StatsBatch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.position != batch.Previous {
		return errors.New("another position is stored")
	}
	r.position = batch.Position
	for _, a := range batch.Agents {
		r.received[uuid.UUID(a.GetAgentId())] += a.GetStats().GetRxBytes()
	}
	return nil
}

// sumAt returns the sum of a family's samples of one pod; 0 if it does not answer.
func sumAt(t *testing.T, p *pod, family string) (sum float64) {
	for _, v := range samplesAt(t, p, family) {
		sum += v
	}
	return sum
}

// samplesAt returns a family's samples of a pod by their labels; none if it does not answer.
func samplesAt(t *testing.T, p *pod, family string) map[string]float64 {
	resp, err := anyServer.Get("http://" + p.ports["http-metrics"] + "/metrics")
	if err != nil {
		return nil
	}
	defer func() { _ = resp.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return nil
	}
	found := make(map[string]float64)
	for line := range strings.Lines(body.String()) {
		if strings.HasPrefix(line, family+"{") || strings.HasPrefix(line, family+" ") {
			eachSample(t, []byte(line), acceptText, func(l labels.Labels, v float64) {
				found[l.MatchLabels(false, model.MetricNameLabel).String()] += v
			})
		}
	}
	return found
}

// served returns how often each agent is served as connected by the pods that run, scraped
// at once, as a Prometheus would scrape them.
func (r *rollout) served() (times map[string]int, sum int) {
	r.mu.Lock()
	pods := slices.Clone(r.pods)
	r.mu.Unlock()
	all := make([]map[string]float64, len(pods))
	var scraping sync.WaitGroup
	for i, p := range pods {
		scraping.Go(func() { all[i] = samplesAt(r.t, p, "coderd_agents_up") })
	}
	scraping.Wait()
	times = make(map[string]int)
	for _, samples := range all {
		for agent, v := range samples {
			times[agent] += int(v)
			sum += int(v)
		}
	}
	return times, sum
}

// waitServed waits until each agent is served once.
func (r *rollout) waitServed(n int) {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		times, sum := r.served()
		if sum == n && len(times) == n && twice(times) == nil {
			return
		}
		require.True(r.t, time.Now().Before(deadline), "after two minutes %d of %d agents are served, %d of them twice", sum, n, len(twice(times)))
	}
}

// look scrapes until ctx ends: no agent is served twice. One that moved between two scrapes
// of one round is not in the next round.
func (r *rollout) look(ctx context.Context, n int) {
	rounds, least := 0, n
	for ; ctx.Err() == nil; pause(ctx, 200*time.Millisecond) {
		rounds++
		times, sum := r.served()
		least = min(least, sum)
		if sum <= n && twice(times) == nil {
			continue
		}
		again, _ := r.served()
		for _, agent := range twice(again) {
			if times[agent] > 1 {
				r.note("%s is served %d times", agent, again[agent])
			}
		}
	}
	r.t.Logf("%d scrapes of all pods, with %d of %d agents at least", rounds, least, n)
}

// twice returns the agents that are served more than once.
func twice(times map[string]int) (agents []string) {
	for agent, n := range times {
		if n > 1 {
			agents = append(agents, agent)
		}
	}
	return agents
}

// settle waits until all that agents have handed over is acked, and compares it with what
// coderd has received and with the database.
func (r *rollout) settle(ctx context.Context) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	durable := make(map[uuid.UUID]int64)
	var closing sync.WaitGroup
	for _, a := range r.agents {
		durable[a.id] = a.durable.Load()
		closing.Go(func() {
			if err := a.Close(ctx); err != nil {
				r.note("%s: %v", a.id, err)
			}
		})
	}
	// What was acked as durable before is in the database already.
	for id, n := range r.stored() {
		if n < durable[id] {
			r.note("%s: %d was acked as durable, %d is in the database", id, durable[id], n)
		}
	}
	closing.Wait()
	stored := r.stored()
	for _, a := range r.agents {
		if stored[a.id] < a.durable.Load() || a.durable.Load() == 0 {
			r.note("%s: %d was acked as durable, %d is in the database", a.id, a.durable.Load(), stored[a.id])
		}
	}
	require.Eventually(r.t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return !slices.ContainsFunc(r.agents, func(a *rolledAgent) bool { return r.received[a.id] < a.sent.Load() })
	}, 30*time.Second, 100*time.Millisecond, "coderd has not received all that was reported")
	total := int64(0)
	for _, a := range r.agents {
		total += a.sent.Load()
		if got := r.received[a.id]; got != a.sent.Load() {
			r.note("%s: %d bytes were reported, %d received", a.id, a.sent.Load(), got)
		}
	}
	r.t.Logf("%d bytes of %d agents were received as reported", total, len(r.agents))
}

// stored returns the values in the database by agent.
func (r *rollout) stored() map[uuid.UUID]int64 {
	r.t.Helper()
	db, err := sql.Open("pgx", r.database)
	require.NoError(r.t, err)
	defer db.Close()
	rows, err := db.QueryContext(r.t.Context(), `SELECT agent_id::text, value::bigint FROM metadata WHERE key = 'n'`)
	require.NoError(r.t, err)
	defer rows.Close()
	values := make(map[uuid.UUID]int64)
	for rows.Next() {
		var id string
		var n int64
		require.NoError(r.t, rows.Scan(&id, &n))
		values[uuid.MustParse(id)] = n
	}
	require.NoError(r.t, rows.Err())
	return values
}
