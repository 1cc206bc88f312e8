package simulate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

var (
	at            = time.Unix(1000, 0)
	discardLogger = slog.New(slog.DiscardHandler)
)

func TestPlan(t *testing.T) {
	o := Options{Agents: 2000}.withDefaults()
	p := newPlan(o, []byte("secret"), at)
	require.Len(t, p.agents, 2000)
	identities, ids, tokens := map[string]bool{}, map[string]bool{}, map[string]bool{}
	var declared, children int
	workspaces := map[string]int{}
	for _, a := range p.agents {
		r := a.registration
		w := r.GetWorkspace()
		identities[w.GetOwnerUsername()+"/"+w.GetName()+"/"+r.GetName()] = true
		ids[string(r.GetId())] = true
		tokens[a.token] = true
		workspaces[string(w.GetId())]++
		require.NotContains(t, a.token, "secret")
		hash := sha256.Sum256([]byte(a.token))
		require.Equal(t, hash[:], r.GetTokenSha256())
		require.Len(t, r.GetApps(), len(a.apps))
		if len(r.GetMetadataKeys()) > 0 {
			declared++
			require.Len(t, r.GetMetadataKeys(), 10)
		}
		if r.GetParentId() != nil {
			children++
			require.True(t, ids[string(r.GetParentId())], "the parent comes first")
		}
	}
	require.Len(t, identities, 2000)
	require.Len(t, ids, 2000)
	require.Len(t, tokens, 2000)
	require.Len(t, workspaces, len(p.workspaces))
	require.InDelta(t, 1333, declared, 5)
	require.Greater(t, children, 100)

	again := newPlan(o, []byte("another secret"), at)
	require.Equal(t, p.workspaces, again.workspaces, "the same workspaces in each run")
	for i := range p.agents {
		require.NotEqual(t, p.agents[i].id, again.agents[i].id)
		require.NotEqual(t, p.agents[i].token, again.agents[i].token)
		require.Equal(t, p.agents[i].registration.GetWorkspace().GetOwnerId(), again.agents[i].registration.GetWorkspace().GetOwnerId())
	}
	require.Equal(t, p.agents[5], newPlan(o, []byte("secret"), at).agents[5])

	o.Fleet = "other"
	other := newPlan(o, []byte("secret"), at)
	for i := range p.workspaces {
		require.NotEqual(t, p.workspaces[i], other.workspaces[i])
	}
	require.Equal(t, "other-api-0", other.agents[0].registration.GetWorkspace().GetName())

	// Without declared keys a template may not have so many.
	o.MetadataKeys = 129
	for _, a := range newPlan(o, nil, at).agents {
		require.Len(t, a.registration.GetMetadataKeys(), 129)
	}
}

func TestSeriesOfAgents(t *testing.T) {
	for _, n := range []int{0, 1, 4, 30, 500} {
		all := seriesOfAgents(n)
		require.Len(t, all, n)
		seen := map[string]bool{}
		for _, s := range all {
			seen[fmt.Sprint(s.name, s.labels)] = true
		}
		require.Len(t, seen, n, "each series once")
	}
	require.Equal(t, "agent_scripts_executed_total", seriesOfAgents(1)[0].name)
}

func TestGenerator(t *testing.T) {
	g, same := newGenerator(seriesOfAgents(60), 1, 7), newGenerator(seriesOfAgents(60), 1, 7)
	before := map[int]float64{}
	var unknown, families, apps, moved int
	for range 1000 {
		s := g.next()
		require.True(t, proto.Equal(s, same.next()), "the seed decides")
		require.GreaterOrEqual(t, s.GetRxBytes(), int64(0))
		require.GreaterOrEqual(t, s.GetTxBytes(), int64(0))
		if s.GetConnectionMedianLatencyMs() <= 0 {
			unknown++
		}
		if s.GetSessionCounts() != nil {
			apps++
		} else if s.GetSessionCountSsh()+s.GetSessionCountVscode()+s.GetSessionCountJetbrains()+s.GetSessionCountReconnectingPty() > 0 {
			families++
		}
		for i, m := range s.GetMetrics() {
			require.GreaterOrEqual(t, m.GetValue(), 0.0)
			if m.GetType() == agentstatsv1.Stats_Metric_TYPE_COUNTER {
				require.GreaterOrEqual(t, m.GetValue(), before[i], m.GetName())
			}
			if m.GetValue() != before[i] {
				moved++
			}
			before[i] = m.GetValue()
		}
	}
	for what, n := range map[string]int{"unknown latency": unknown, "sessions by family": families, "sessions by app": apps, "values": moved} {
		require.Greater(t, n, 50, what)
	}
	other := newGenerator(seriesOfAgents(60), 1, 8)
	require.False(t, proto.Equal(g.next(), other.next()))
}

func TestMetadataValuesAreNumbered(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 20 {
		value, err := metadataValue(r, i, 42, time.Minute)
		require.True(t, strings.HasSuffix(value+err, " #42"), "%q %q", value, err)
		require.True(t, (value == "") != (err == ""))
	}
	require.Equal(t, "12_custom", metadataKey(12))
}

func TestCountConnections(t *testing.T) {
	for _, test := range []struct {
		agents, asked, files, want int
		err                        string
	}{
		{agents: 25, files: 1024, want: 25},
		{agents: 2000, files: 0, want: 2000},
		{agents: 2000, files: 1024, want: 896},
		{agents: 2000, asked: 10, files: 1024, want: 10},
		{agents: 25, asked: 100, files: 1024, want: 25},
		{agents: 2000, asked: 2000, files: 1024, err: "2000 of them need 2128 open files, the limit is 1024"},
		{agents: 1, files: 64, err: "the limit is 64"},
	} {
		n, err := countConnections(test.agents, test.asked, test.files)
		if test.err != "" {
			require.ErrorContains(t, err, test.err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, test.want, n, "%+v", test)
	}
	require.Positive(t, maxOpenFiles())
}

func TestIsLoopback(t *testing.T) {
	for target, want := range map[string]bool{
		"127.0.0.1:2113": true, "localhost:2113": true, "10.0.0.1:2113": false, "[::1]:2113": false,
		"stats.example.com:2113": false, "passthrough:///x": false,
	} {
		require.Equal(t, want, isLoopback(target), target)
	}
}

func TestLatencies(t *testing.T) {
	var l latencies
	require.Zero(t, l.quantile(0.5))
	l.add(0)
	require.Zero(t, l.quantile(0.5), "no round trip")
	for i := range 1000 {
		l.add(time.Duration(i+1) * time.Millisecond)
	}
	l.add(time.Nanosecond)
	l.add(24 * time.Hour)
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.95: 950 * time.Millisecond, 0.99: 990 * time.Millisecond} {
		require.InEpsilon(t, want, l.quantile(q), 0.1, "%v", q)
	}
	require.Equal(t, time.Microsecond, l.quantile(0.0001))
}

func TestSummary(t *testing.T) {
	s := Summary{
		Agents: 25, ReportsSent: 52, ReportsAcked: 52, SamplesSent: 1560, MetadataSent: 1750, MetadataAcked: 1750,
		Refused: 3, Reconnects: 1, DurationSeconds: 61.25,
		Refusals:         map[string]int64{"series_limit": 2, "a_limit": 1},
		ReportAckSeconds: Quantiles{P50: 0.0005, P95: 0.004, P99: 0.0125},
	}
	require.True(t, s.Complete())
	var text bytes.Buffer
	require.NoError(t, s.WriteText(&text))
	require.Equal(t, `agents           25
duration         61.2 s
reports          52 sent, 52 acked
samples          1560 sent
metadata         1750 sent, 1750 durable
acks of reports  0.5 ms median, 4.0 ms p95, 12.5 ms p99
reconnects       1
refused          3 (a_limit: 1) (series_limit: 2)
errors           0
`, text.String())
	text.Reset()
	require.NoError(t, s.WriteJSON(&text))
	require.JSONEq(t, `{
		"agents": 25, "reports_sent": 52, "reports_acked": 52, "samples_sent": 1560, "metadata_sent": 1750,
		"metadata_acked": 1750, "refused": 3, "errors": 0, "reconnects": 1, "duration_seconds": 61.25,
		"refusals": {"a_limit": 1, "series_limit": 2},
		"report_ack_seconds": {"p50": 0.0005, "p95": 0.004, "p99": 0.0125}
	}`, text.String())
	require.Equal(t, 1, strings.Count(text.String(), "\n"))

	for _, change := range []func(*Summary){
		func(s *Summary) { s.Errors = 1 },
		func(s *Summary) { s.ReportsAcked-- },
		func(s *Summary) { s.MetadataAcked-- },
	} {
		incomplete := s
		change(&incomplete)
		require.False(t, incomplete.Complete())
	}
	require.Error(t, s.WriteText(failing{}))
	require.Error(t, s.WriteJSON(failing{}))
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestJournal(t *testing.T) {
	var lines bytes.Buffer
	j := &journal{w: &lines}
	j.write(uuid.UUID{1}, []client.Metadata{{Key: "a", Value: "1 #1"}, {Key: "b", Error: "none #1"}})
	require.NoError(t, j.failed())
	decoder := json.NewDecoder(&lines)
	var a, b Record
	require.NoError(t, decoder.Decode(&a))
	require.NoError(t, decoder.Decode(&b))
	require.Equal(t, Record{Agent: uuid.UUID{1}, Key: "a", Value: "1 #1", At: a.At}, a)
	require.Equal(t, "none #1", b.Error)

	j = &journal{w: failing{}}
	j.write(uuid.UUID{}, []client.Metadata{{}})
	j.write(uuid.UUID{}, []client.Metadata{{}})
	require.EqualError(t, j.failed(), "write journal: full")
	var none *journal
	require.NoError(t, none.failed())
}

// A refusal for a limit may be what is to be tried; any other is an error.
func TestObserverCountsRefusals(t *testing.T) {
	obs := &observer{log: discardLogger}
	obs.onRefusal(&agentstatsv1.Refusal{Code: agentstatsv1.RefusalCode_REFUSAL_CODE_LIMIT, Reason: "limit", Count: 5})
	obs.onRefusal(&agentstatsv1.Refusal{Code: agentstatsv1.RefusalCode_REFUSAL_CODE_INVALID, Reason: "bad", Count: 2})
	obs.onRefusal(&agentstatsv1.Refusal{Code: agentstatsv1.RefusalCode_REFUSAL_CODE_INVALID, Reason: "bad", Count: 1})
	require.Equal(t, int64(3), obs.unexpected.Load())
	require.Equal(t, map[string]int64{"limit": 5, "bad": 3}, obs.refusals.snapshot())
}

// An agent that cannot reach anything still takes everything in.
func TestAgentLives(t *testing.T) {
	o := Options{Agents: 1}.withDefaults()
	p := newPlan(o, nil, at)
	conns, err := connect(Options{Target: "passthrough:///nowhere", Agents: 1, Dial: client.DialOptions{Plaintext: true}}, discardLogger)
	require.NoError(t, err)
	defer func() { require.NoError(t, conns.close()) }()
	obs := &observer{acks: &latencies{}, unknown: make(chan struct{}, 1), log: discardLogger}
	a, err := newAgent(0, p.agents[0], conns.agents[0], seriesOfAgents(5), o, obs)
	require.NoError(t, err)
	a.start(at)
	require.Equal(t, agentstatsv1.Lifecycle_STATE_CREATED, a.state)
	require.Greater(t, a.live(at), time.Second)
	require.Equal(t, agentstatsv1.Lifecycle_STATE_STARTING, a.state)
	for range 100 {
		require.GreaterOrEqual(t, a.live(at), 20*time.Second)
		require.Equal(t, agentstatsv1.Lifecycle_STATE_READY, a.state)
	}
	a.updateMetadata(at)
	a.updateMetadata(at)
	require.Equal(t, int64(20), a.client.Status().Counts.Metadata)
	require.Len(t, a.collect(context.Background()).GetMetrics(), 5)
	a.stopped.Store(true)
	require.Nil(t, a.collect(context.Background()))
}

func TestRetry(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "starting")
	unauthenticated := status.Error(codes.Unauthenticated, "who?")
	for _, test := range []struct {
		name    string
		answers []error // the last one again and again; nil elements: it hangs
		want    error
		after   time.Duration
	}{
		{"a service that starts", []error{unavailable, unavailable, errDone}, nil, time.Second},
		{"a wrong token", []error{unavailable, unauthenticated}, unauthenticated, 500 * time.Millisecond},
		{"nobody there", []error{unavailable}, unavailable, 10 * time.Second},
		{"a service that hangs in the end", []error{unavailable, nil}, unavailable, 10 * time.Second},
		{"a service that hangs", []error{nil}, context.DeadlineExceeded, 10 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				calls := 0
				err := retry(t.Context(), 10*time.Second, func(ctx context.Context) error {
					answer := test.answers[min(calls, len(test.answers)-1)]
					calls++
					if answer == nil {
						<-ctx.Done()
						return ctx.Err()
					}
					if errors.Is(answer, errDone) {
						return nil
					}
					return answer
				})
				require.Equal(t, test.want, err)
				require.Equal(t, test.after, time.Since(began))
			})
		})
	}
}

var errDone = errors.New("done")

func BenchmarkReport(b *testing.B) {
	g := newGenerator(seriesOfAgents(30), 1, 1)
	b.ReportAllocs()
	for b.Loop() {
		g.next()
	}
}
