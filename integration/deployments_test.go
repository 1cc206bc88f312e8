package integration

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"os"
	"path/filepath"

	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/postgrestest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// deployment is two replicas and their coderd. Its agent is connected to the second of
// them, coderd to the first: what coderd sees has come by the pubsub.
type deployment struct {
	name      string
	tokenFile string
	services  []*service
	coderd    *client.Coderd
	agent     *client.Agent

	mu       sync.Mutex
	received int64           // bytes that coderd received
	values   map[string]bool // of metadata that coderd received
}

// newDeployment makes a deployment with its two services, which it does not start.
func newDeployment(t *testing.T, name, databaseURL, pubsubURL string) *deployment {
	t.Helper()
	d := &deployment{name: name, tokenFile: filepath.Join(t.TempDir(), "token"), values: make(map[string]bool)}
	require.NoError(t, os.WriteFile(d.tokenFile, []byte(uuid.NewString()), 0o600))
	for range 2 {
		d.services = append(d.services, newService(t, "--database-url", databaseURL, "--pubsub-url", pubsubURL,
			"--coderd-token-file", d.tokenFile, "--lease-duration", lease.String(), "--metadata-flush-interval", "100ms"))
	}
	return d
}

// dial returns a connection to one of the services until the test ends.
func (d *deployment) dial(t *testing.T, replica int, options client.DialOptions) *grpc.ClientConn {
	t.Helper()
	options.Plaintext = true
	conn, err := client.Dial(d.services[replica].grpcAddr, options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// run starts the services, registers the agent, watches it and connects it. All that is
// running has ended when the test has.
func (d *deployment) run(t *testing.T, agentID uuid.UUID) {
	t.Helper()
	for _, s := range d.services {
		s.start(t)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	var err error
	d.coderd, err = client.NewCoderd(d.dial(t, 0, client.DialOptions{TokenFile: d.tokenFile}), client.CoderdOptions{})
	require.NoError(t, err)
	workspaceID := uuid.NewSHA1(agentID, []byte("workspace"))
	token := "token of the agent of " + d.name
	hash, made := sha256.Sum256([]byte(token)), timestamppb.New(time.Now().Add(-time.Minute))
	_, err = d.coderd.Register(ctx, []*agentstatsv1.AgentRegistration{{
		Id: agentID[:], Name: "main", CreatedAt: made, TokenSha256: hash[:],
		Workspace: &agentstatsv1.Workspace{
			Id: workspaceID[:], Name: "dev", OwnerId: agentID[:], OwnerUsername: d.name,
			Template: &agentstatsv1.Template{Id: agentID[:], Name: "docker"},
			Build:    &agentstatsv1.Build{Id: agentID[:], CreatedAt: made, Transition: agentstatsv1.Build_TRANSITION_START},
		},
	}}, nil)
	require.NoError(t, err)

	counts := make(chan struct{})
	watched := sync.OnceFunc(func() { close(counts) })
	running.Go(func() {
		_ = d.coderd.WatchStats(ctx, client.StatsWatch{
			Name:    "insights",
			Started: func(time.Time) { watched() },
			Handle: func(batch client.StatsBatch) error {
				d.mu.Lock()
				defer d.mu.Unlock()
				for _, a := range batch.Agents {
					d.received += a.GetStats().GetRxBytes()
				}
				return nil
			},
		})
	})
	synced := make(chan struct{})
	running.Go(func() {
		first := sync.OnceFunc(func() { close(synced) })
		_ = d.coderd.WatchMetadata(ctx, []uuid.UUID{agentID}, func(r *agentstatsv1.WatchMetadataResponse) {
			d.mu.Lock()
			defer d.mu.Unlock()
			for _, a := range r.GetAgents() {
				for _, v := range a.GetValues() {
					d.values[v.GetValue()] = true
				}
			}
			first()
		})
	})
	<-synced
	<-counts
	d.agent, err = client.NewAgent(d.dial(t, 1, client.DialOptions{Token: token}), client.AgentOptions{})
	require.NoError(t, err)
	running.Go(func() { _ = d.agent.Run(ctx) })
}

// send has the agent report n times bytes, and a value.
func (d *deployment) send(t *testing.T, n int, bytes int64, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range n {
		d.agent.Report(&agentstatsv1.Stats{RxBytes: bytes})
		require.NoError(t, d.agent.Flush(ctx))
	}
	require.NoError(t, d.agent.UpdateMetadata(client.Metadata{Key: "where", Value: value}))
	require.NoError(t, d.agent.Flush(ctx))
}

// wait waits until coderd received a value and so many bytes.
func (d *deployment) wait(t *testing.T, bytes int64, value string) {
	t.Helper()
	require.Eventually(t, func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.received >= bytes && d.values[value]
	}, 40*time.Second, 50*time.Millisecond, "coderd of %s received nothing of its agent", d.name)
}

// TestDeployments runs two deployments over one NATS, and in two schemas of one
// database. The second has the agents of the first under the same ids, like a staging
// deployment that began as a copy of production. Neither learns of the other's agents,
// sessions, leases, reports and metadata.
func TestDeployments(t *testing.T) {
	parallel(t)
	for name, shared := range map[string]func(*testing.T) (pubsubURL string, databases [2]string){
		"one NATS": func(t *testing.T) (string, [2]string) {
			postgres := postgrestest.Start(t)
			return startNATS(t), [2]string{postgres.CreateDatabase(t), postgres.CreateDatabase(t)}
		},
		"two schemas": func(t *testing.T) (string, [2]string) {
			database := postgrestest.Start(t).CreateDatabase(t)
			db, err := sql.Open("pgx", database)
			require.NoError(t, err)
			defer db.Close()
			_, err = db.ExecContext(t.Context(), `CREATE SCHEMA a; CREATE SCHEMA b`)
			require.NoError(t, err)
			return database, [2]string{database + "&search_path=a", database + "&search_path=b"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			beside(t)
			pubsubURL, databases := shared(t)
			agentID := uuid.New()
			production := newDeployment(t, "production", databases[0], pubsubURL)
			staging := newDeployment(t, "staging", databases[1], pubsubURL)
			both := []*deployment{production, staging}
			for _, d := range both {
				d.run(t, agentID)
			}
			const reports = 5
			production.send(t, reports, 1000, "production")
			staging.send(t, reports, 7, "staging")
			production.wait(t, reports*1000, "production")
			staging.wait(t, reports*7, "staging")

			// Served once, whichever replica leads.
			for i, d := range both {
				pushed := newCoderd()
				pushed.requests.WithLabelValues("200", "GET", "/").Add(float64(100 + i))
				d.push(t, pushed)
			}
			// What came last has gone through the same channels as all before it.
			for _, d := range both {
				d.send(t, 0, 0, d.name+" ends")
			}
			for i, d := range both {
				d.wait(t, 0, d.name+" ends")
				require.Eventually(t, func() bool {
					return sumOf(t, d.services, "coderd_api_requests_processed_total") == float64(100+i)
				}, 30*time.Second, 200*time.Millisecond, "%s: its own counter, once", d.name)
				d.mu.Lock()
				require.Equal(t, map[string]bool{d.name: true, d.name + " ends": true}, d.values, d.name)
				require.Equal(t, []int64{reports * 1000, reports * 7}[i], d.received, d.name)
				d.mu.Unlock()
				for _, s := range d.services {
					require.Equal(t, 2.0, sumOf(t, []*service{s}, "agentstatsd_replicas_live"), d.name)
				}
				for family, want := range map[string]float64{
					"agentstatsd_replica_leads":                 1,
					"agentstatsd_replica_strangers":             0,
					"agentstatsd_sessions_ended_total":          0, // none has ended
					"agentstatsd_pubsub_refused_messages_total": 0, // not even on the channels
				} {
					require.Equal(t, want, sumOf(t, d.services, family), "%s: %s", d.name, family)
				}
				require.Eventually(t, func() bool {
					return sumOf(t, d.services, "coderd_agents_up", "username", d.name) == 1 && sumOf(t, d.services, "coderd_agents_up") == 1
				}, 30*time.Second, 200*time.Millisecond, "%s: its own agent, once", d.name)
			}
		})
	}
}

// push pushes a last snapshot of an instance of coderd to the second replica.
func (d *deployment) push(t *testing.T, c *coderd) {
	t.Helper()
	pusher, err := client.NewPusher(d.dial(t, 1, client.DialOptions{TokenFile: d.tokenFile}), client.PushOptions{Gatherer: c.registry})
	require.NoError(t, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, pusher.Run(ended))
}
