package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	byteorder "encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/internal/freeport"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func freeAddr() string { return freeport.Addr() }

// Numbers of agents: the good one, and the first whose token an attacker has. They
// belong to two owners.
const (
	goodAgent     = 1
	firstAttacker = 100
)

// victim is a service under attack, with an agent and a scraper that behave.
type victim struct {
	service *service
	target  target
	pprof   string
	conn    *grpc.ClientConn
	scraper *http.Client
	user    string // of the scraper; empty: none
	leave   context.CancelFunc
	attacks int // so far

	mu       sync.Mutex
	acks     latencies
	scrapes  latencies
	failures []string
}

// seen is what was observed in some time.
type seen struct {
	acks, scrapes latencies
	failures      []string
	resident      int64 // bytes at most
	cores         float64
}

// latencies are times in no order.
type latencies []time.Duration

func (l latencies) p99() time.Duration {
	if len(l) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(l))
	return sorted[(len(sorted)*99+99)/100-1].Round(10 * time.Microsecond)
}

// newVictim starts a service, registers the agents, and begins to report and, once
// the good agent's series are served, to scrape.
func newVictim(t *testing.T, c campaign, args []string) *victim {
	v := &victim{service: newService(t, args...), target: c.target, pprof: args[1]}
	v.scraper = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	if c.password != "" {
		v.user = goodUser
	}
	v.service.https, v.service.user, v.service.password = c.target.Web, v.user, c.password
	v.service.start(t)
	token, err := os.ReadFile(v.service.tokenFile())
	require.NoError(t, err)
	v.target.Token = strings.TrimSpace(string(token))
	v.target.GRPC, v.target.HTTP = v.service.grpcAddr, v.service.httpAddr

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	v.leave = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(v.leave)
	conn, err := v.target.dial()
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, register(ctx, conn, v.target.Token, "good", goodAgent))
	v.conn = conn
	running.Go(func() { v.behave(ctx, conn) })
	await(t, 30*time.Second, "the good agent's series are served", func() (bool, string) {
		v.mu.Lock()
		failures := v.failures
		v.mu.Unlock()
		err := v.scrapeOnce(ctx)
		return err == nil, fmt.Sprintf("scrape: %v, failures: %q", err, failures)
	})
	running.Go(func() { v.scrapeOften(ctx) })
	return v
}

// registerAttackers registers agents for the next attack.
func (v *victim) registerAttackers(t *testing.T) {
	v.target.First = max(firstAttacker, v.target.First+v.target.Agents)
	for i := range v.target.Agents {
		require.NoError(t, register(t.Context(), v.conn, v.target.Token, "attacker", v.target.First+i))
	}
}

// observe returns what is seen until then.
func (v *victim) observe(t *testing.T, until <-chan time.Time) seen {
	v.take()
	var s seen
	began, cpu := time.Now(), v.cpu(t)
	for over := false; !over; {
		s.resident = max(s.resident, v.resident())
		select {
		case <-until:
			over = true
		case err := <-v.service.exited:
			v.service.cmd = nil
			t.Fatalf("the service ended: %v\n%s", err, v.service.log.tail(8<<10))
		case <-time.After(10 * time.Millisecond):
		}
	}
	// A scrape takes longer than the rest: at least one must have begun and ended.
	await(t, 30*time.Second, "a scrape and an ack", func() (bool, string) {
		v.mu.Lock()
		defer v.mu.Unlock()
		return len(v.failures) > 0 || len(v.acks) > 0 && len(v.scrapes) > 0, fmt.Sprintf("%d acks, %d scrapes", len(v.acks), len(v.scrapes))
	})
	s.cores = (v.cpu(t) - cpu).Seconds() / time.Since(began).Seconds()
	s.acks, s.scrapes, s.failures = v.take()
	return s
}

// take returns what was noted since the last call.
func (v *victim) take() (acks, scrapes latencies, failures []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	acks, scrapes, failures = v.acks, v.scrapes, v.failures
	v.acks, v.scrapes, v.failures = nil, nil, nil
	return acks, scrapes, failures
}

func (v *victim) fail(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.failures) < 20 {
		v.failures = append(v.failures, fmt.Sprintf(format, args...))
	}
}

// resident returns the resident bytes of the process.
func (v *victim) resident() int64 {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", v.service.cmd.Process.Pid))
	if err != nil {
		return 0 // it has ended, which observe sees
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// cpu returns the time that the process has run.
func (v *victim) cpu(t *testing.T) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.service.cmd.Process.Pid))
	require.NoError(t, err)
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		require.NoError(t, err)
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}

// inUse returns the bytes of heap and stacks that are in use after a collection.
func (v *victim) inUse(t *testing.T) int64 {
	resp, err := http.Get("http://" + v.pprof + "/debug/pprof/heap?gc=1&debug=1")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var sum int64
	for _, name := range []string{"# HeapAlloc = ", "# Stack = "} {
		_, rest, ok := strings.Cut(string(body), name)
		require.True(t, ok, name)
		number := rest[:strings.IndexAny(rest, " \n")]
		n, err := strconv.ParseInt(number, 10, 64)
		require.NoError(t, err)
		sum += n
	}
	return sum
}

// scrapeOften scrapes as Prometheus does, but twice a second, over one
// connection.
func (v *victim) scrapeOften(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		err := v.scrapeOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			v.fail("scrape after %s: %v", time.Since(began), err)
		default:
			v.mu.Lock()
			v.scrapes = append(v.scrapes, time.Since(began))
			v.mu.Unlock()
		}
		pause(ctx, 500*time.Millisecond)
	}
}

func (v *victim) scrapeOnce(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.target.url("/metrics"), nil)
	if err != nil {
		return err
	}
	if v.user != "" {
		req.SetBasicAuth(v.user, goodPassword)
	}
	resp, err := v.scraper.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("status %d: %.100s", resp.StatusCode, body)
	case !bytes.Contains(body, []byte("good_metric_0{")):
		return errors.New("it lacks the good agent's series")
	}
	return nil
}

// behave is the agent that behaves, ten times as lively as a real one. It sends each
// report when the one before is acked, at most every 100 ms.
func (v *victim) behave(ctx context.Context, conn *grpc.ClientConn) {
	s, err := openSession(ctx, conn, goodAgent)
	if err != nil {
		v.fail("open a session: %v", err)
		return
	}
	report := goodReport()
	changing := gauge("good_changes", "number", "")
	report.Metrics = append(report.Metrics, changing)
	for seq := int64(1); ctx.Err() == nil; seq += 2 {
		began := time.Now()
		// It needs room for another series each time, and gives up the one before.
		changing.Labels[0].Value = strconv.FormatInt(seq%50, 10)
		value := &pb.Metadata{Key: "k", Result: &pb.Metadata_Result{Value: strconv.FormatInt(seq, 10)}}
		err := errors.Join(
			s.Send(&pb.ConnectRequest{Sequence: seq, Stats: report, AckNow: true}),
			s.Send(&pb.ConnectRequest{Sequence: seq + 1, Metadata: &pb.MetadataReport{Metadata: []*pb.Metadata{value}}}),
		)
		for acked := int64(0); err == nil && acked < seq; {
			var resp *pb.ConnectResponse
			if resp, err = s.Recv(); err != nil {
				break
			}
			acked = max(acked, resp.GetAck().GetReceivedSequence())
			for _, r := range resp.GetRefusals() {
				v.fail("the good agent was refused %s: %s", r.GetReason(), r.GetMessage())
			}
			if resp.GetReconnect() != nil {
				v.fail("the good agent was asked to go: %s", resp.GetReconnect().GetReason())
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			v.fail("the good agent's stream: %v", err)
			return
		}
		v.mu.Lock()
		v.acks = append(v.acks, time.Since(began))
		v.mu.Unlock()
		pause(ctx, 100*time.Millisecond-time.Since(began))
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// goodReport is the report of a real agent: some 30 samples.
func goodReport() *pb.Stats {
	report := &pb.Stats{ConnectionCount: 3, RxBytes: 1000, TxBytes: 2000, SessionCounts: map[string]int64{"ssh": 1}}
	for i := range 28 {
		report.Metrics = append(report.Metrics, gauge(fmt.Sprintf("good_metric_%d", i), "k", "v"))
	}
	return report
}

func gauge(name string, labels ...string) *pb.Stats_Metric {
	m := &pb.Stats_Metric{Name: name, Type: pb.Stats_Metric_TYPE_GAUGE, Value: 1}
	for i := 0; i < len(labels); i += 2 {
		m.Labels = append(m.Labels, &pb.Stats_Metric_Label{Name: labels[i], Value: labels[i+1]})
	}
	return m
}

func (at target) url(path string) string {
	if at.Web {
		return "https://" + at.HTTP + path
	}
	return "http://" + at.HTTP + path
}

// dial connects to the gRPC listener.
func (at target) dial() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if at.TLS {
		creds = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	}
	return grpc.NewClient(at.GRPC, grpc.WithTransportCredentials(creds), grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return attackerDialer.DialContext(ctx, "tcp", address)
	}), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func tokenOf(agent int) string { return fmt.Sprintf("token-of-agent-%d", agent) }

// idOf returns the id of one of several kinds of things.
func idOf(kind byte, n int) []byte {
	var id uuid.UUID
	id[0] = kind
	byteorder.BigEndian.PutUint64(id[8:], uint64(n)+1)
	return id[:]
}

func registrationOf(owner string, n int) *pb.AgentRegistration {
	hash := sha256.Sum256([]byte(tokenOf(n)))
	now := timestamppb.Now()
	return &pb.AgentRegistration{
		Id: idOf('a', n), Name: "main", CreatedAt: now, ConnectionTimeout: durationpb.New(2 * time.Minute), TokenSha256: hash[:],
		Workspace: &pb.Workspace{
			Id: idOf('w', n), Name: fmt.Sprintf("workspace-%d", n), OwnerId: idOf(owner[0], 0), OwnerUsername: owner,
			Template: &pb.Template{Id: idOf('t', 1), Name: "docker", Version: "v1"}, OrganizationName: "default",
			Build: &pb.Build{Id: idOf('b', n), CreatedAt: now, Transition: pb.Build_TRANSITION_START},
		},
	}
}

func register(ctx context.Context, conn *grpc.ClientConn, token, owner string, n int) error {
	_, err := pb.NewCoderdServiceClient(conn).RegisterAgents(withToken(ctx, token), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{registrationOf(owner, n)}})
	return err
}

func helloMessage() *pb.ConnectRequest {
	instance := make([]byte, 16)
	_, _ = rand.Read(instance)
	return &pb.ConnectRequest{Hello: &pb.Hello{InstanceId: instance, ProtocolVersion: 1, Session: 1}}
}

// openSession opens an agent's session and reads its settings.
func openSession(ctx context.Context, conn *grpc.ClientConn, agent int) (pb.AgentService_ConnectClient, error) {
	s, err := pb.NewAgentServiceClient(conn).Connect(withToken(ctx, tokenOf(agent)))
	if err != nil {
		return nil, err
	}
	if err := s.Send(helloMessage()); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if _, err := s.Recv(); err != nil {
		return nil, err
	}
	return s, nil
}
