package integration

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/postgrestest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxBit is the last report of an agent. Each has a bit of its own as bytes, and a
// report may have 1<<50 bytes at most.
const maxBit = 50

// watchedFleet is a fleet of agents over three replicas, and a coderd that watches
// their reports.
type watchedFleet struct {
	t         *testing.T
	services  []*service
	tokenFile string
	interval  time.Duration
	agents    []*watchedAgent

	mu sync.Mutex
	// Guarded by mu.

	kills int
	// What coderd stores in one transaction: position and received.
	position client.StatsPosition
	received map[uuid.UUID]int64
	problems []error
	// crash is what happens to coderd at its next batch, restarts how often it did.
	crash    crashPoint
	restarts int
}

type crashPoint int

const (
	noCrash crashPoint = iota
	beforeStore
	beforeAck
)

// watchedAgent sends each report once: one whose ack does not come is not sent again.
type watchedAgent struct {
	id    uuid.UUID
	token string
	// Its goroutine's own, until that has ended.
	sent, acked int64 // bits
}

func (f *watchedFleet) kill(replica int) {
	f.services[replica].kill()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kills++
}

// dial returns a connection to a replica until ctx ends.
func (f *watchedFleet) dial(ctx context.Context, replica int, options client.DialOptions) *grpc.ClientConn {
	options.Plaintext = true
	conn, err := client.Dial(f.services[replica].grpcAddr, options)
	if err != nil {
		panic(err) // the address is malformed
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn
}

// register registers the agents.
func (f *watchedFleet) register(ctx context.Context, n int) {
	coderd, err := client.NewCoderd(f.dial(ctx, 0, client.DialOptions{TokenFile: f.tokenFile}), client.CoderdOptions{})
	require.NoError(f.t, err)
	made := timestamppb.New(time.Now().Add(-time.Minute))
	var registrations []*agentstatsv1.AgentRegistration
	for i := range n {
		a := &watchedAgent{id: uuid.New(), token: fmt.Sprint("token of watched agent ", i)}
		f.agents = append(f.agents, a)
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
	_, err = coderd.Register(ctx, registrations, nil)
	require.NoError(f.t, err)
}

// run has an agent report until ctx ends, to one replica after another. conns are those
// to the replicas.
func (a *watchedAgent) run(ctx context.Context, f *watchedFleet, random *rand.Rand, conns [3]*grpc.ClientConn) {
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.token)
	instance := uuid.New()
	next := 0
	pause(ctx, rand.N(f.interval))
	for ctx.Err() == nil && next <= maxBit {
		replica := random.IntN(len(conns))
		streamCtx, cancel := context.WithCancel(ctx)
		_ = a.follow(streamCtx, f, agentstatsv1.NewAgentServiceClient(conns[replica]), instance, &next)
		cancel()
		pause(ctx, 500*time.Millisecond+rand.N(time.Second))
	}
}

// follow reports on one stream until that ends.
func (a *watchedAgent) follow(ctx context.Context, f *watchedFleet, to agentstatsv1.AgentServiceClient, instance uuid.UUID, next *int) error {
	stream, err := to.Connect(ctx)
	if err != nil {
		return err
	}
	err = stream.Send(&agentstatsv1.ConnectRequest{Hello: &agentstatsv1.Hello{InstanceId: instance[:], ProtocolVersion: 1}})
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	for ; *next <= maxBit && ctx.Err() == nil; pause(ctx, f.interval) {
		bit := *next
		*next++
		sequence := int64(bit) + 1 // it rises for the life of the instance
		a.sent |= 1 << bit
		err := stream.Send(&agentstatsv1.ConnectRequest{
			Sequence: sequence,
			Stats:    &agentstatsv1.Stats{RxBytes: 1 << bit, ConnectionCount: 1},
			AckNow:   true,
		})
		if err != nil {
			return err
		}
		for acked := int64(0); acked < sequence; {
			resp, err := stream.Recv()
			if err != nil {
				return err
			}
			if len(resp.GetRefusals()) > 0 {
				return fmt.Errorf("refused: %v", resp.GetRefusals())
			}
			acked = max(acked, resp.GetAck().GetReceivedSequence())
		}
		a.acked |= 1 << bit
	}
	return nil
}

// watch is coderd, one instance after another until ctx ends. started is called when
// the first receives all that agents report.
func (f *watchedFleet) watch(ctx context.Context, started func()) {
	for n := 0; ctx.Err() == nil; n++ {
		instance, crash := context.WithCancel(ctx)
		coderd, err := client.NewCoderd(f.dial(instance, n%3, client.DialOptions{TokenFile: f.tokenFile}), client.CoderdOptions{})
		if err != nil {
			panic(err)
		}
		_ = coderd.WatchStats(instance, client.StatsWatch{
			Name: "insights",
			Load: func(context.Context) (client.StatsPosition, error) {
				f.mu.Lock()
				defer f.mu.Unlock()
				return f.position, nil
			},
			Started: func(time.Time) { started() },
			Handle:  func(batch client.StatsBatch) error { return f.handle(batch, crash) },
		})
		crash()
	}
}

var errCrashed = errors.New("coderd crashed")

// handle stores a batch with its position, unless another one is stored than it follows.
func (f *watchedFleet) handle(batch client.StatsBatch, crash func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	point := f.crash
	if len(batch.Agents) == 0 {
		point = noCrash
	}
	if point != noCrash {
		f.crash = noCrash
		f.restarts++
		defer crash()
	}
	if point == beforeStore {
		return errCrashed
	}
	if f.position != batch.Previous {
		return errors.New("another position is stored")
	}
	f.position = batch.Position
	for _, a := range batch.Agents {
		id, bytes := uuid.UUID(a.GetAgentId()), a.GetStats().GetRxBytes()
		switch {
		case f.received[id]&bytes != 0:
			f.problems = append(f.problems, fmt.Errorf("%s: %b was received, now %b", id, f.received[id], bytes))
		case int64(bits.OnesCount64(uint64(bytes))) != a.GetReports():
			f.problems = append(f.problems, fmt.Errorf("%s: %d reports have %b", id, a.GetReports(), bytes))
		}
		f.received[id] |= bytes
	}
	if point == beforeAck {
		return errCrashed
	}
	return nil
}

// restartCoderd has coderd crash at its next batch.
func (f *watchedFleet) restartCoderd(n int) {
	f.mu.Lock()
	f.crash = beforeStore + crashPoint(n%2)
	before := f.restarts
	f.mu.Unlock()
	require.Eventually(f.t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.restarts > before
	}, time.Minute, 50*time.Millisecond, "coderd receives nothing")
}

// journalWrites has the database note what is added to sums, in the transactions that
// add it.
func journalWrites(t *testing.T, db *sql.DB) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), `
CREATE TABLE journal (agent_id uuid, bits bigint);
CREATE FUNCTION note_sum() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.pending THEN
        INSERT INTO journal VALUES (NEW.agent_id, NEW.rx_bytes - CASE WHEN TG_OP = 'UPDATE' AND OLD.pending THEN OLD.rx_bytes ELSE 0 END);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note_sum AFTER INSERT OR UPDATE ON report_sums FOR EACH ROW EXECUTE FUNCTION note_sum();`)
	require.NoError(t, err)
}

// written returns the bits that the database ever had of each agent. That each was
// written once is checked.
func written(t *testing.T, db *sql.DB) map[uuid.UUID]int64 {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT agent_id::text, bits FROM journal`)
	require.NoError(t, err)
	defer rows.Close()
	all := make(map[uuid.UUID]int64)
	for rows.Next() {
		var id string
		var added int64
		require.NoError(t, rows.Scan(&id, &added))
		a := uuid.MustParse(id)
		require.Zero(t, all[a]&added, "%s: %b was written, now %b", id, all[a], added)
		all[a] |= added
	}
	require.NoError(t, rows.Err())
	return all
}

// TestWatchedReportsOfAFleet kills all replicas in turn and at once, crashes PostgreSQL
// and restarts coderd, while a fleet reports. coderd receives each written report once,
// and all that were acked. With -soak the fleet has the size of a deployment.
func TestWatchedReportsOfAFleet(t *testing.T) {
	agents, rounds, restarts, step, interval := 60, 1, 1, time.Second, time.Second
	if *soak {
		agents, rounds, restarts, step, interval = 2000, 2, 2, 6*time.Second, 6*time.Second
	}
	beside(t)
	server := postgrestest.Start(t)
	database := server.CreateDatabase(t)
	f := &watchedFleet{
		t: t, tokenFile: filepath.Join(t.TempDir(), "token"), interval: interval,
		received: make(map[uuid.UUID]int64),
	}
	require.NoError(t, os.WriteFile(f.tokenFile, []byte(uuid.NewString()), 0o600))
	for range 3 {
		s := newService(t, "--database-url", database, "--pubsub-url", database, "--coderd-token-file", f.tokenFile,
			"--report-interval", interval.String())
		s.start(t)
		f.services = append(f.services, s)
	}
	db, err := sql.Open("pgx", database)
	require.NoError(t, err)
	defer db.Close()
	journalWrites(t, db)

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	reporting, stopReporting := context.WithCancel(ctx)
	var running, fleet sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		fleet.Wait()
		running.Wait()
	})
	f.register(ctx, agents)
	started := make(chan struct{})
	running.Go(func() { f.watch(ctx, sync.OnceFunc(func() { close(started) })) })
	<-started
	const perConnection = 20
	var conns [3]*grpc.ClientConn
	for i, a := range f.agents {
		if i%perConnection == 0 {
			for replica := range conns {
				conns[replica] = f.dial(ctx, replica, client.DialOptions{})
			}
		}
		random, to := rand.New(rand.NewPCG(uint64(i), 1)), conns
		fleet.Go(func() { a.run(reporting, f, random, to) })
	}

	restart := func(replicas ...int) func() {
		return func() {
			for _, replica := range replicas {
				f.kill(replica)
			}
			time.Sleep(step / 4)
			for _, replica := range replicas {
				f.services[replica].start(t)
			}
		}
	}
	events := []func(){restart(0), restart(1), restart(2), func() {
		server.Crash(t)
		time.Sleep(step)
		server.Restart(t)
	}, restart(0, 1, 2)}
	for n := range rounds * len(events) {
		time.Sleep(step)
		for i := range restarts {
			f.restartCoderd(n + i)
		}
		time.Sleep(step)
		events[n%len(events)]()
	}
	time.Sleep(step)
	stopReporting()
	fleet.Wait()
	requireWritten(t, f)
	require.Eventually(t, func() bool {
		all := written(t, db)
		f.mu.Lock()
		defer f.mu.Unlock()
		for id, bits := range all {
			if f.received[id] != bits {
				return false
			}
		}
		return true
	}, time.Minute, time.Second, "coderd does not receive all that was written")
	time.Sleep(3 * time.Second) // what is sent twice would come
	f.requireAccounts(written(t, db), rounds*len(events)*restarts)
}

// requireWritten waits until the replicas have written what they gathered.
func requireWritten(t *testing.T, f *watchedFleet) {
	t.Helper()
	require.Eventually(t, func() bool {
		pending := 0.0
		for _, s := range f.services {
			_, body := s.scrape(t, "/metrics")
			pending += sample(t, body, "agentstatsd_report_sums_pending")
		}
		return pending == 0
	}, time.Minute, 100*time.Millisecond, "reports are not written")
}

// requireAccounts compares what was sent, written and received.
func (f *watchedFleet) requireAccounts(written map[uuid.UUID]int64, restarts int) {
	t := f.t
	f.mu.Lock()
	defer f.mu.Unlock()
	require.NoError(t, errors.Join(f.problems...))
	require.Equal(t, written, f.received, "each report that was written is received, once")
	require.GreaterOrEqual(t, f.restarts, restarts)
	sent, acked := 0, 0
	for _, a := range f.agents {
		sent += bits.OnesCount64(uint64(a.sent))
		acked += bits.OnesCount64(uint64(a.acked))
		require.Zero(t, f.received[a.id]&^a.sent, "%s: what was never sent", a.id)
		require.Zero(t, a.acked&^f.received[a.id], "%s: acked, and not received", a.id)
	}
	t.Logf("%d agents, %d reports sent, %d acked; %d replicas killed, coderd restarted %d times",
		len(f.agents), sent, acked, f.kills, f.restarts)
	require.Positive(t, acked)
}
