package integration

import (
	"context"
	"crypto/tls"
	"database/sql"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

const (
	budgetBurn    = "AgentstatsdErrorBudgetBurn"
	databaseFails = "AgentstatsdDatabaseFails"
	notScraped    = "AgentstatsdNotScraped"
	coderdSilent  = "AgentstatsdCoderdSilent"
)

var alertFaults = []alertFault{
	{
		alert: budgetBurn, fault: "agents are connected and say nothing", with: map[string]string{"slo": "fresh"},
		companions: []string{coderdSilent}, start: stoppedFleet,
	},
	{
		alert: budgetBurn, fault: "values wait for the database for longer than 30 s", with: map[string]string{"slo": "durable"},
		companions: []string{databaseFails}, start: databaseAway(swallows),
	},
	{
		alert: databaseFails, fault: "connections to PostgreSQL are reset", with: map[string]string{"cause": "unreachable"},
		quick: true, start: databaseAway(resets),
	},
	{
		alert: databaseFails, fault: "the disk of SQLite is full", with: map[string]string{"cause": "disk_full"},
		start: diskFull,
	},
	{
		alert: "AgentstatsdPendingFull", fault: "values come in, and PostgreSQL does not answer", with: map[string]string{"what": "metadata_pending"},
		companions: []string{databaseFails, "AgentstatsdRefusals", budgetBurn}, start: pendingFull,
	},
	{
		alert: notScraped, fault: "the process is killed",
		companions: []string{budgetBurn, coderdSilent}, quick: true, start: killed,
	},
	{
		alert: notScraped, fault: "somebody else scrapes without a pause",
		companions: []string{budgetBurn}, start: scrapesRefused,
	},
	{alert: "AgentstatsdNobodyLeads", fault: "the lease is somebody's who serves nothing", start: ghostLeader},
	{alert: coderdSilent, fault: "coderd is stopped", start: coderdStopped},
	{
		alert: "AgentstatsdRefusals", fault: "agents send more series than one may have", with: map[string]string{"reason": "too_many_agent_series"},
		start: refusedValues,
	},
	{
		alert: "AgentstatsdRefusals", fault: "coderd registers more agents than there may be", with: map[string]string{"reason": "max_agents"},
		start: refusedAgents,
	},
	{alert: "AgentstatsdAgentFlood", fault: "agents send faster than they may", companions: []string{"AgentstatsdRefusals"}, start: flooded},
	{
		alert: "AgentstatsdBridgeGaveUp", fault: "coderd refuses the API token of the bridge", with: map[string]string{"cause": "token_refused"},
		companions: []string{coderdSilent}, quick: true, start: tokenRefused,
	},
	{
		alert: "AgentstatsdBridgeGaveUp", fault: "an agent speaks a version that the bridge does not know", with: map[string]string{"cause": "version"},
		companions: []string{coderdSilent}, start: unknownVersion,
	},
	{
		alert: "AgentstatsdReplicaLost", fault: "one of two replicas is killed",
		companions: []string{notScraped, budgetBurn, "AgentstatsdNobodyLeads"}, start: replicaKilled,
	},
	{alert: "AgentstatsdPubsubAway", fault: "connections to NATS are reset", quick: true, start: pubsubAway},
	{alert: "AgentstatsdClockSkew", fault: "the clock of PostgreSQL is ahead by an hour", start: clockSkewed},
	{alert: "AgentstatsdCertificateExpires", fault: "a certificate of an hour is installed", with: map[string]string{"listener": "grpc"}, start: certificateOfAnHour},
	{alert: "AgentstatsdMemoryNearLimit", fault: "the process may take no more memory than it has", companions: []string{notScraped, budgetBurn, coderdSilent}, start: littleMemory},
}

// reportEachSecond are options with which agents report often.
var reportEachSecond = []string{"--report-interval", "1s", "--series-ttl", "8s", "--metadata-flush-interval", "500ms", "--agent-idle-timeout", "1m"}

// simulateReports starts agents that report each second, and a coderd that pushes.
func simulateReports(t *testing.T, s *service, token string, args ...string) *simulation {
	t.Helper()
	return runSimulation(t, append([]string{
		"--target", s.grpcAddr, "--coderd-token-file", token, "--json", "--keep", "--agents", "10", "--metrics-per-agent", "10",
		"--report-interval", "1s", "--metadata-interval", "1s", "--push-interval", "1s",
	}, args...)...)
}

// oneReplica is one over PostgreSQL and NATS, each behind a proxy.
type oneReplica struct {
	*service
	database, pubsub *proxy
	token            string
	url              string // of the database, directly
}

// startReplica starts one over a database of the shared server.
func startReplica(t *testing.T, args ...string) *oneReplica {
	t.Helper()
	r := &oneReplica{url: postgrestest.Shared(t).CreateDatabase(t), token: filepath.Join(t.TempDir(), "token")}
	require.NoError(t, os.WriteFile(r.token, []byte(uuid.NewString()), 0o600))
	nats := startNATS(t)
	r.database, r.pubsub = newProxy(t, hostOf(t, r.url)), newProxy(t, hostOf(t, nats))
	r.service = newService(t, append(append([]string{
		"--database-url", r.database.before(t, r.url), "--pubsub-url", r.pubsub.before(t, nats), "--coderd-token-file", r.token,
		"--lease-duration", lease.String(),
	}, reportEachSecond...), args...)...)
	r.start(t)
	return r
}

func (r *oneReplica) open(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", r.url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func execSQL(t *testing.T, db *sql.DB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := db.ExecContext(context.WithoutCancel(t.Context()), statement)
		require.NoError(t, err, statement)
	}
}

// databaseAway has the network to the database fail.
func databaseAway(f fault) func(t *testing.T) faulty {
	return func(t *testing.T) faulty {
		r := startReplica(t)
		simulateReports(t, r.service, r.token)
		return faulty{[]string{r.httpAddr}, func() { r.database.set(f) }, func() { r.database.set(noFault) }}
	}
}

// pendingFull lets few values wait.
func pendingFull(t *testing.T) faulty {
	r := startReplica(t, "--metadata-max-pending", "100", "--metadata-max-pending-per-agent", "100", "--metadata-max-pending-per-owner", "100",
		"--metadata-max-keys", "10", "--metadata-max-declared-keys", "10", "--metadata-batch-size", "50")
	simulateReports(t, r.service, r.token, "--metadata-keys", "5")
	return faulty{[]string{r.httpAddr}, func() { r.database.set(swallows) }, func() { r.database.set(noFault) }}
}

func pubsubAway(t *testing.T) faulty {
	r := startReplica(t)
	simulateReports(t, r.service, r.token)
	return faulty{[]string{r.httpAddr}, func() { r.pubsub.set(resets) }, func() { r.pubsub.set(noFault) }}
}

// stoppedFleet stops the process of agents and coderd, whose connections stay.
func stoppedFleet(t *testing.T) faulty {
	s := newService(t, reportEachSecond...)
	s.start(t)
	sim := simulateReports(t, s, s.tokenFile())
	signal := func(sig syscall.Signal) func() {
		return func() { require.NoError(t, sim.cmd.Process.Signal(sig)) }
	}
	return faulty{[]string{s.httpAddr}, signal(syscall.SIGSTOP), signal(syscall.SIGCONT)}
}

// diskFull has the data directory on a file system of its own, which is filled.
func diskFull(t *testing.T) faulty {
	s := newService(t, reportEachSecond...)
	// One who is not root gets a namespace in which he may mount.
	s.before = []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs -o size=16m,mode=0700 tmpfs "$0" && exec "$@"`, s.dataDir}
	if os.Geteuid() != 0 {
		s.before = append([]string{"unshare", "--user", "--map-root-user"}, s.before[1:]...)
	}
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte(uuid.NewString()), 0o600))
	s.args = append(s.args, "--coderd-token-file", token)
	s.start(t)
	simulateReports(t, s, token)
	filler := fmt.Sprintf("/proc/%d/root%s/filler", s.cmd.Process.Pid, s.dataDir)
	return faulty{[]string{s.httpAddr}, func() {
		err := os.WriteFile(filler, make([]byte, 32<<20), 0o600)
		require.ErrorIs(t, err, syscall.ENOSPC)
	}, func() { require.NoError(t, os.Remove(filler)) }}
}

func killed(t *testing.T) faulty {
	s := newService(t, reportEachSecond...)
	s.start(t)
	simulateReports(t, s, s.tokenFile())
	return faulty{[]string{s.httpAddr}, s.kill, func() { s.start(t) }}
}

// scrapesRefused serves few scrapes a second, of which others take most.
func scrapesRefused(t *testing.T) faulty {
	s := newService(t, append([]string{"--max-concurrent-scrapes", "2", "--max-scrapes-per-second", "10"}, reportEachSecond...)...)
	s.start(t)
	simulateReports(t, s, s.tokenFile())
	done := make(chan struct{})
	var others sync.WaitGroup
	end := sync.OnceFunc(func() { close(done); others.Wait() })
	t.Cleanup(end)
	return faulty{[]string{s.httpAddr}, func() {
		for range 40 {
			untilDone(&others, done, 5*time.Millisecond, func() {
				if resp, err := s.get("/metrics"); err == nil {
					_ = resp.Body.Close()
				}
			})
		}
	}, end}
}

// ghostLeader renews the lease for a replica that does not exist.
func ghostLeader(t *testing.T) faulty {
	r := startReplica(t)
	simulateReports(t, r.service, r.token)
	db := r.open(t)
	done := make(chan struct{})
	var renewing sync.WaitGroup
	end := sync.OnceFunc(func() { close(done); renewing.Wait() })
	t.Cleanup(end)
	renew := func() {
		_, _ = db.ExecContext(context.WithoutCancel(t.Context()), `UPDATE lease SET holder = '11111111-1111-4111-8111-111111111111', beats = beats + 1`)
	}
	return faulty{[]string{r.httpAddr}, func() {
		renew()
		untilDone(&renewing, done, 100*time.Millisecond, renew)
	}, end}
}

func coderdStopped(t *testing.T) faulty {
	s := newService(t, reportEachSecond...)
	s.start(t)
	sim := simulateReports(t, s, s.tokenFile())
	return faulty{
		[]string{s.httpAddr},
		func() { require.NoError(t, sim.stop()) },
		func() { simulateReports(t, s, s.tokenFile()) },
	}
}

// refusedValues has some agents send more than one may.
func refusedValues(t *testing.T) faulty {
	s := newService(t, append([]string{"--max-series-per-agent", "20"}, reportEachSecond...)...)
	s.start(t)
	simulateReports(t, s, s.tokenFile())
	var sim *simulation
	return faulty{
		[]string{s.httpAddr},
		func() { sim = simulateReports(t, s, s.tokenFile(), "--metrics-per-agent", "40") },
		func() { _ = sim.stop() },
	}
}

// refusedAgents has a coderd register more agents than there may be.
func refusedAgents(t *testing.T) faulty {
	s := newService(t, append([]string{"--max-agents", "15"}, reportEachSecond...)...)
	s.start(t)
	simulateReports(t, s, s.tokenFile())
	var sim *simulation
	return faulty{
		[]string{s.httpAddr},
		func() { sim = simulateReports(t, s, s.tokenFile(), "--agents", "20") },
		func() { _ = sim.stop() },
	}
}

// flooded lets agents send less than one of these sends.
func flooded(t *testing.T) faulty {
	s := newService(t, append([]string{"--agent-byte-rate", "8KiB", "--agent-byte-burst", "128KiB", "--max-agent-message-bytes", "128KiB"}, reportEachSecond...)...)
	s.start(t)
	simulateReports(t, s, s.tokenFile())
	var sim *simulation
	return faulty{
		[]string{s.httpAddr},
		func() { sim = simulateReports(t, s, s.tokenFile(), "--metrics-per-agent", "900") },
		func() { _ = sim.stop() },
	}
}

// startBridge starts a stock coderd with an agent, a service and a bridge between them.
func startBridge(t *testing.T) (*standIn, *service, *bridgeProcess) {
	t.Helper()
	c := newStandIn(t, 1)
	s := newService(t, reportEachSecond...)
	s.start(t)
	b := newBridge(t, c, s)
	b.start(t)
	return c, s, b
}

// tokenRefused ends with another token in the file, which the bridge tries at once.
func tokenRefused(t *testing.T) faulty {
	const renewed = "bcdefghijk-0123456789abcdefghijkl"
	c, s, b := startBridge(t)
	file := b.args[slices.Index(b.args, "--coder-api-token-file")+1]
	return faulty{
		[]string{s.httpAddr, b.httpAddr},
		func() { c.rest.SetToken(apiToken, codertest.Token{Role: codertest.Expired}) },
		func() {
			c.rest.SetToken(renewed, codertest.Token{})
			require.NoError(t, os.WriteFile(file, []byte(renewed), 0o600))
		},
	}
}

// unknownVersion has an agent connect again and again whose version is not known.
func unknownVersion(t *testing.T) faulty {
	_, s, b := startBridge(t)
	done := make(chan struct{})
	var connecting sync.WaitGroup
	end := sync.OnceFunc(func() { close(done); connecting.Wait() })
	t.Cleanup(end)
	return faulty{[]string{s.httpAddr, b.httpAddr}, func() {
		untilDone(&connecting, done, 500*time.Millisecond, func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), callTimeout)
			defer cancel()
			if session, err := codertest.Dial(ctx, b.addr, agentToken(0), codertest.DialOptions{Version: "1.0"}); err == nil {
				_, _ = session.Call(ctx, codertest.GetManifest, nil)
				_ = session.Close()
			}
		})
	}, end}
}

// replicaKilled needs the shortest lease: a row stays for 20 of it.
func replicaKilled(t *testing.T) faulty {
	r := startReplicas(t, 2, false, append([]string{"--lease-duration", "2s"}, reportEachSecond...)...)
	r.simulate(t, "--agents", "10", "--metadata-interval", "1s", "--push-interval", "1s")
	return faulty{
		[]string{r.services[0].httpAddr, r.services[1].httpAddr},
		r.services[1].kill,
		func() { r.services[1].start(t) },
	}
}

// clockSkewed has a function take the place of PostgreSQL's clock.
func clockSkewed(t *testing.T) faulty {
	r := startReplica(t)
	db := r.open(t)
	u, err := url.Parse(r.url)
	require.NoError(t, err)
	name := strings.TrimPrefix(u.Path, "/")
	clock := func(ahead string) []string {
		return []string{`CREATE OR REPLACE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() + interval '` + ahead + `' $$`}
	}
	execSQL(t, db, append(clock("0"), `ALTER DATABASE `+name+` SET search_path = public, pg_catalog`)...)
	r.database.set(resets) // so that connections are made that have it
	r.database.set(noFault)
	r.waitReady(t)
	simulateReports(t, r.service, r.token)
	return faulty{[]string{r.httpAddr}, func() { execSQL(t, db, clock("1 hour")...) }, func() { execSQL(t, db, clock("0")...) }}
}

// certificateOfAnHour is in the place of one of a month. It is read with the next connection.
func certificateOfAnHour(t *testing.T) faulty {
	certs := newCertificates(t)
	certs.life = 30 * 24 * time.Hour
	certs.renew()
	s := newService(t, append([]string{"--tls-cert-file", certs.path("tls.crt"), "--tls-key-file", certs.path("tls.key")}, reportEachSecond...)...)
	s.start(t)
	_, port, err := net.SplitHostPort(s.grpcAddr)
	require.NoError(t, err)
	named := *s
	named.grpcAddr = "localhost:" + port
	simulateReports(t, &named, s.tokenFile(), "--tls-ca-file", certs.path("ca.pem"))
	renew := func(life time.Duration) func() {
		return func() {
			certs.life = life
			certs.renew()
			if conn, err := tls.Dial("tcp", s.grpcAddr, &tls.Config{InsecureSkipVerify: true}); err == nil {
				_ = conn.Close()
			}
		}
	}
	return faulty{[]string{s.httpAddr}, renew(time.Hour), renew(30 * 24 * time.Hour)}
}

// littleMemory starts the process again with a limit of less than what it took before.
func littleMemory(t *testing.T) faulty {
	s := newService(t, reportEachSecond...)
	s.start(t)
	simulateReports(t, s, s.tokenFile())
	restart := func(env ...string) {
		s.kill()
		s.env = env
		s.start(t)
	}
	return faulty{
		[]string{s.httpAddr},
		func() {
			restart(fmt.Sprintf("GOMEMLIMIT=%d", s.total(t, "process_resident_memory_bytes")*8/10))
		},
		func() { restart() },
	}
}
