package integration

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/postgrestest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/simulate"
)

// replicas are several services over one database and pubsub, each behind a proxy
// of its own to both.
type replicas struct {
	services []*service
	// database and pubsub stand between a replica and these; pubsub is nil where
	// the database is the pubsub too.
	database, pubsub []*proxy
	postgres         *postgrestest.Server
	url              string // of the database, directly
	tokenFile        string
}

// lease is shorter than the default, so that tests need not wait as long.
const lease = 3 * time.Second

// startReplicas starts n replicas over PostgreSQL, with NATS or NOTIFY.
func startReplicas(t *testing.T, n int, nats bool, args ...string) *replicas {
	t.Helper()
	r := &replicas{postgres: postgrestest.Start(t), tokenFile: filepath.Join(t.TempDir(), "token")}
	r.url = r.postgres.CreateDatabase(t)
	require.NoError(t, os.WriteFile(r.tokenFile, []byte(uuid.NewString()), 0o600))
	natsURL := ""
	if nats {
		natsURL = startNATS(t)
	}
	for range n {
		database := newProxy(t, hostOf(t, r.url))
		r.database = append(r.database, database)
		all := append([]string{
			"--database-url", database.before(t, r.url), "--coderd-token-file", r.tokenFile,
			"--lease-duration", lease.String(),
			// Agents that report no more wait for their last acks, also from a slow database.
			"--agent-idle-timeout", "1m",
		}, args...)
		if nats {
			pubsub := newProxy(t, hostOf(t, natsURL))
			r.pubsub = append(r.pubsub, pubsub)
			all = append(all, "--pubsub-url", pubsub.before(t, natsURL))
		}
		r.services = append(r.services, newService(t, all...))
	}
	var starting sync.WaitGroup
	for _, s := range r.services {
		starting.Go(func() { s.start(t) }) // together: they migrate one database
	}
	starting.Wait()
	return r
}

func startNATS(t *testing.T) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	require.NoError(t, err)
	go s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	require.True(t, s.ReadyForConnections(10*time.Second))
	return s.ClientURL()
}

func hostOf(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	require.NoError(t, err)
	return u.Host
}

// simulate starts a fleet over all replicas, which checks that each agent is
// served once.
func (r *replicas) simulate(t *testing.T, args ...string) *simulation {
	t.Helper()
	all := []string{"--coderd-token-file", r.tokenFile, "--json", "--keep"}
	for _, s := range r.services {
		all = append(all, "--target", s.grpcAddr, "--check-metrics", "http://"+s.httpAddr+"/metrics")
	}
	return runSimulation(t, append(all, args...)...)
}

// waitConnected waits until each replica reaches the database and the pubsub.
func (r *replicas) waitConnected(t *testing.T) {
	t.Helper()
	for _, s := range r.services {
		s.waitReady(t)
	}
	deadline := time.Now().Add(30 * time.Second)
	for sumOf(t, r.services, "agentstatsd_pubsub_connected") < float64(len(r.services)) {
		require.True(t, time.Now().Before(deadline), "a replica has no connection to the pubsub after 30 s")
		time.Sleep(100 * time.Millisecond)
	}
}

// stored returns the values in the database.
func (r *replicas) stored(t *testing.T) values {
	t.Helper()
	db, err := sql.Open("pgx", r.url)
	require.NoError(t, err)
	defer db.Close()
	rows, err := db.QueryContext(t.Context(), `SELECT agent_id::text, key, value, error FROM metadata`)
	require.NoError(t, err)
	defer rows.Close()
	found := make(values)
	for rows.Next() {
		var id, name, value, text string
		require.NoError(t, rows.Scan(&id, &name, &value, &text))
		found[key{uuid.MustParse(id), name}] = number(t, value, text)
	}
	require.NoError(t, rows.Err())
	return found
}

// watcher follows the metadata of all agents over one replica.
type watcher struct {
	mu   sync.Mutex
	seen values
}

// maxWatched is how many agents one watch may name.
const maxWatched = 1000

// watch watches all registered agents over each replica until the test ends.
func (r *replicas) watch(t *testing.T) []*watcher {
	t.Helper()
	token, err := os.ReadFile(r.tokenFile)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var watching sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		watching.Wait()
	})
	all := make([]*watcher, 0, len(r.services))
	for _, s := range r.services {
		conn, err := client.Dial(s.grpcAddr, client.DialOptions{Plaintext: true, Token: string(token)})
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
		require.NoError(t, err)
		var ids []uuid.UUID
		for a, err := range coderd.Agents(ctx) {
			require.NoError(t, err)
			ids = append(ids, uuid.UUID(a.GetId()))
		}
		w := &watcher{seen: make(values)}
		all = append(all, w)
		for part := range slices.Chunk(ids, maxWatched) {
			watching.Go(func() {
				if err := coderd.WatchMetadata(ctx, part, w.handle); err != nil {
					t.Errorf("watch metadata: %v", err)
				}
			})
		}
	}
	return all
}

func (w *watcher) handle(resp *agentstatsv1.WatchMetadataResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range resp.GetAgents() {
		for _, v := range a.GetValues() {
			n, err := numberOf(v.GetValue(), v.GetError())
			if err != nil {
				panic(err)
			}
			w.seen[key{uuid.UUID(a.GetAgentId()), v.GetKey()}] = n
		}
	}
}

// requireWatched waits until each watcher has seen what the database has.
func requireWatched(t *testing.T, watchers []*watcher, found values) {
	t.Helper()
	for _, w := range watchers {
		require.Eventually(t, func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return maps.Equal(w.seen, found)
		}, 40*time.Second, 100*time.Millisecond, "a watcher has not seen the newest values")
	}
}

// ended stops a simulation, and fails unless all that it sent was acked and every
// agent was served once all the time.
func ended(t *testing.T, sim *simulation) simulate.Summary {
	t.Helper()
	err := sim.stop()
	t.Logf("%s", &sim.stdout)
	require.NoError(t, err)
	var summary simulate.Summary
	require.NoError(t, json.Unmarshal(sim.stdout.Bytes(), &summary))
	require.Zero(t, summary.Errors)
	require.Equal(t, summary.ReportsSent, summary.ReportsAcked)
	require.Equal(t, summary.MetadataSent, summary.MetadataAcked)
	require.NotNil(t, summary.Check)
	require.True(t, summary.Check.Clean(), "%v", summary.Check.Violations)
	require.Positive(t, summary.Check.Agents)
	return summary
}

// size is how large a test over replicas is.
type size struct {
	agents int
	// step is the time between two of its faults.
	step  time.Duration
	churn time.Duration
	// check is the time between two scrapes of all replicas, and what one may take.
	check                            time.Duration
	reportInterval, metadataInterval time.Duration
}

// sizeOf returns the size of a test. Small ones run beside one another: they
// mostly wait.
func sizeOf(t *testing.T) size {
	if *soak {
		return size{3000, 30 * time.Second, 2 * time.Minute, 10 * time.Second, 10 * time.Second, 10 * time.Second}
	}
	beside(t)
	return size{60, 5 * time.Second, 15 * time.Second, 2 * time.Second, time.Second, time.Second}
}

func (s size) args(journalFile string) []string {
	return []string{
		"--agents", fmt.Sprint(s.agents), "--metadata-keys", "10", "--metrics-per-agent", "30",
		"--metadata-interval", s.metadataInterval.String(), "--churn", s.churn.String(),
		"--check-interval", s.check.String(), "--ack-deadline", "60s", "--journal", journalFile,
	}
}

// TestReplicas kills one of three replicas and restarts another gracefully while agents
// move between them. Each agent is served once. Nothing that was acked is missing.
// Watchers on all replicas end with what is in the database.
func TestReplicas(t *testing.T) {
	parallel(t)
	for name, nats := range map[string]bool{"NOTIFY": false, "NATS": true} {
		t.Run(name, func(t *testing.T) {
			size := sizeOf(t)
			r := startReplicas(t, 3, nats, "--report-interval", size.reportInterval.String())
			journalFile := filepath.Join(t.TempDir(), "journal")
			sim := r.simulate(t, size.args(journalFile)...)
			time.Sleep(size.step)
			watchers := r.watch(t)

			r.services[1].kill()
			time.Sleep(size.step)
			r.services[1].start(t)
			time.Sleep(size.step)
			took, err := r.services[0].stop(syscall.SIGTERM)
			require.NoError(t, err)
			require.Less(t, took, 15*time.Second)
			r.services[0].start(t)
			time.Sleep(size.step)

			ended(t, sim)
			found := r.stored(t)
			require.Equal(t, journal(t, journalFile), found)
			requireWatched(t, watchers, found)
		})
	}
}

// TestReplicaCutOff cuts one of three replicas off from the database, in each of the
// ways in which a network fails, then from the pubsub. It keeps its agents and serves
// them, and no other replica does. Each fault is mended before the next: a replica that
// gets notifications only and one that reads the database only cannot know of each
// other.
func TestReplicaCutOff(t *testing.T) {
	size := sizeOf(t)
	r := startReplicas(t, 3, true, "--report-interval", size.reportInterval.String())
	journalFile := filepath.Join(t.TempDir(), "journal")
	// A replica without notifications reads the database each 2 s. What it reads was
	// written within 500 ms. Scrapes are further apart than both.
	size.check = max(size.check, 4*time.Second)
	sim := r.simulate(t, size.args(journalFile)...)
	time.Sleep(size.step)
	watchers := r.watch(t)
	for _, p := range []*proxy{r.database[0], r.pubsub[0], r.database[1]} {
		for _, f := range []fault{swallows, resets} {
			p.set(f)
			time.Sleep(size.step)
			p.set(noFault)
			r.waitConnected(t)
			time.Sleep(size.step / 2)
		}
	}
	ended(t, sim)
	found := r.stored(t)
	require.Equal(t, journal(t, journalFile), found)
	requireWatched(t, watchers, found)
}

// TestDatabaseAway takes the database away from all replicas under load: stopped,
// and by each fault of a network. Meanwhile nothing is acked as durable, streams
// and scrapes go on; after it, all is in the database and the accounts are right.
func TestDatabaseAway(t *testing.T) {
	size := sizeOf(t)
	if *soak {
		size.step = time.Minute
	}
	r := startReplicas(t, 2, true, "--report-interval", size.reportInterval.String())
	journalFile := filepath.Join(t.TempDir(), "journal")
	size.churn = 0
	away := map[string]struct{ begin, end func() }{
		"stopped": {func() { r.postgres.Stop(t) }, func() { r.postgres.Restart(t) }},
	}
	for name, f := range map[string]fault{"reset": resets, "black hole": swallows} {
		away[name] = struct{ begin, end func() }{
			func() { r.database[0].set(f); r.database[1].set(f) },
			func() { r.database[0].set(noFault); r.database[1].set(noFault) },
		}
	}
	sim := r.simulate(t, size.args(journalFile)...)
	time.Sleep(size.step)
	for name, fault := range away {
		sessions := sumOf(t, r.services, "agentstatsd_sessions_ended_total")
		fault.begin()
		time.Sleep(2 * time.Second) // what was written before is acked
		began := time.Now()
		series := 0
		for time.Since(began) < size.step {
			for _, s := range r.services {
				_, body := s.scrape(t, "/metrics", "Accept", acceptText)
				series = max(series, len(body))
			}
			time.Sleep(200 * time.Millisecond)
		}
		until := time.Now()
		require.Positive(t, series)
		require.Equal(t, sessions, sumOf(t, r.services, "agentstatsd_sessions_ended_total"), "%s: no stream ended", name)
		require.LessOrEqual(t, sumOf(t, r.services, "agentstatsd_metadata_pending"), float64(20*size.agents), "%s: at most each key twice", name)
		for _, s := range r.services {
			require.Equal(t, http.StatusServiceUnavailable, status(t, "http://"+s.httpAddr+"/-/ready"), name)
		}
		fault.end()
		for _, at := range ackTimes(t, journalFile) {
			require.False(t, at.After(began) && at.Before(until), "%s: acked as durable at %v", name, at)
		}
		for _, s := range r.services {
			s.waitReady(t)
		}
		time.Sleep(size.step)
	}
	// The same with a slow network, which is no fault: all goes on.
	slow := time.Now()
	for _, p := range r.database {
		p.set(delays)
	}
	time.Sleep(size.step)
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(ackTimes(t, journalFile), slow.Add(size.step/2).Before)
	}, time.Minute, 100*time.Millisecond, "nothing is acked as durable by a slow network")
	for _, p := range r.database { // the last pushes of coderds have few seconds
		p.set(noFault)
	}
	ended(t, sim)
	require.Equal(t, journal(t, journalFile), r.stored(t))
	accounts := sumOf(t, r.services, "agentstatsd_metadata_entries_total") + sumOf(t, r.services, "agentstatsd_metadata_pending")
	received := sumOf(t, r.services, "agentstatsd_metadata_entries_total", "outcome", "received")
	require.Positive(t, received)
	require.Equal(t, received, accounts-received, "all that was received is accounted for")
	require.Positive(t, sumOf(t, r.services, "agentstatsd_metadata_entries_total", "outcome", "coalesced"))
}

// ackTimes returns when values were acked as durable.
func ackTimes(t *testing.T, path string) []time.Time {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var times []time.Time
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var rec simulate.Record
		require.NoError(t, json.Unmarshal(line, &rec))
		times = append(times, rec.At)
	}
	return times
}

// sumOf returns the sum over services of all series of a family that have the
// labels, given as names and values.
func sumOf(t *testing.T, services []*service, family string, with ...string) float64 {
	t.Helper()
	sum := 0.0
	for _, s := range services {
		_, body := s.scrape(t, "/metrics", "Accept", acceptText)
		eachSample(t, body, acceptText, func(l labels.Labels, v float64) {
			for i := 0; i < len(with); i += 2 {
				if l.Get(with[i]) != with[i+1] {
					return
				}
			}
			if l.Get(model.MetricNameLabel) == family {
				sum += v
			}
		})
	}
	return sum
}

func status(t *testing.T, url string) int {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode
}
