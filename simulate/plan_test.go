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
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

var (
	at            = time.Unix(1000, 0)
	discardLogger = slog.New(slog.DiscardHandler)
)

func testPlanner(secret string) planner {
	return planner{fleet: "sim", metadataKeys: 10, secret: []byte(secret)}
}

func TestPlan(t *testing.T) {
	p := testPlanner("secret")
	workspaces := p.plan(2000, 0, at)
	identities, ids, tokens := map[string]bool{}, map[string]bool{}, map[string]bool{}
	owners, organizations, templates := map[string]bool{}, map[string]bool{}, map[string]string{}
	var agents, declared, children, prebuilds int
	for i, w := range workspaces {
		require.Equal(t, i, w.number)
		require.Equal(t, agents, w.firstAgent)
		require.Len(t, w.agents, w.agentCount)
		require.Equal(t, agentstatsv1.Build_TRANSITION_START, w.workspace.GetBuild().GetTransition())
		owners[w.workspace.GetOwnerUsername()] = true
		organizations[w.workspace.GetOrganizationName()] = true
		if w.workspace.GetBuild().GetIsPrebuild() {
			prebuilds++
			require.Equal(t, "prebuilds", w.workspace.GetOwnerUsername())
			require.Equal(t, "c42fdf75-3097-471c-8c33-fb52454d81c0", uuid.UUID(w.workspace.GetOwnerId()).String())
		}
		template := w.workspace.GetTemplate().GetName()
		if other, seen := templates[template]; seen {
			require.Equal(t, other, w.workspace.GetOrganizationName(), "a template is one organization's")
		}
		templates[template] = w.workspace.GetOrganizationName()
		for _, a := range w.agents {
			require.Equal(t, agents, a.number)
			agents++
			r := a.registration
			require.Equal(t, w.workspace, r.GetWorkspace())
			identities[string(w.workspace.GetId())+"/"+r.GetName()] = true
			identities[w.workspace.GetOwnerUsername()+"/"+w.workspace.GetName()+"/"+r.GetName()] = true
			ids[string(r.GetId())] = true
			tokens[a.token] = true
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
				require.Equal(t, w.agents[0].id[:], r.GetParentId())
			}
		}
	}
	require.Equal(t, 2000, agents)
	require.Len(t, identities, 4000)
	require.Len(t, ids, 2000)
	require.Len(t, tokens, 2000)
	require.InDelta(t, 1333, declared, 5)
	require.Greater(t, children, 100)
	require.Greater(t, prebuilds, 100)
	require.Len(t, organizations, 2)
	require.Len(t, templates, 5)
	require.Greater(t, len(owners), 400)

	require.Equal(t, workspaces, testPlanner("secret").plan(2000, 0, at))
	for i, w := range testPlanner("another secret").plan(2000, 0, at) {
		require.Equal(t, workspaces[i].id, w.id, "the same workspaces in each run")
		require.Equal(t, workspaces[i].workspace.GetOwnerId(), w.workspace.GetOwnerId())
		for a := range w.agents {
			require.NotEqual(t, workspaces[i].agents[a].id, w.agents[a].id)
			require.NotEqual(t, workspaces[i].agents[a].token, w.agents[a].token)
		}
	}

	p.fleet = "other"
	other := p.plan(2000, 0, at)
	for i := range workspaces {
		require.NotEqual(t, workspaces[i].id, other[i].id)
	}
	require.Equal(t, "other-api-0", other[0].workspace.GetName())

	// Without declared keys a template may not have so many.
	p.metadataKeys = 129
	for _, w := range p.plan(30, 0, at) {
		for _, a := range w.agents {
			require.Len(t, a.registration.GetMetadataKeys(), 129)
		}
	}
}

func TestPlanOfUnreachableAgents(t *testing.T) {
	p := testPlanner("secret")
	reachable := p.plan(25, 0, at)
	all := p.plan(25, 2, at)
	require.Equal(t, reachable, all[:len(reachable)])
	require.Len(t, all, len(reachable)+2)
	for i, w := range all[len(reachable):] {
		require.True(t, w.unreachable)
		require.Equal(t, 25+i, w.firstAgent)
		require.Len(t, w.agents, 1)
	}
}

// Each build of a workspace has a newer build id and other agents under the same
// names.
func TestPlanOfRebuilds(t *testing.T) {
	p := testPlanner("secret")
	for _, first := range p.plan(50, 0, at) {
		stopped := first
		stopped.build = 1
		stopped = p.stop(stopped, at.Add(time.Minute))
		require.Equal(t, agentstatsv1.Build_TRANSITION_STOP, stopped.workspace.GetBuild().GetTransition())
		require.Empty(t, stopped.agents)
		require.Equal(t, first.id, stopped.id)

		next := stopped
		next.build = 2
		next = p.start(next, at.Add(2*time.Minute))
		require.Equal(t, first.workspace.GetName(), next.workspace.GetName())
		require.Equal(t, ownerName(first.number), next.workspace.GetOwnerUsername(), "claimed")
		require.False(t, next.workspace.GetBuild().GetIsPrebuild())
		require.Len(t, next.agents, len(first.agents))
		require.NotEqual(t, first.workspace.GetBuild().GetId(), stopped.workspace.GetBuild().GetId())
		require.NotEqual(t, stopped.workspace.GetBuild().GetId(), next.workspace.GetBuild().GetId())
		for i, a := range next.agents {
			before := first.agents[i]
			require.Equal(t, before.number, a.number)
			require.Equal(t, before.registration.GetName(), a.registration.GetName())
			require.NotEqual(t, before.id, a.id)
			require.NotEqual(t, before.token, a.token)
			require.NotEqual(t, before.apps, a.apps)
			require.Equal(t, before.registration.GetParentId() == nil, a.registration.GetParentId() == nil)
		}
	}
	// Now and then it is of another version of the template.
	w := p.plan(1, 0, at)[0]
	versions := map[string]bool{}
	for w.build = range 20 {
		versions[p.start(w, at).workspace.GetTemplate().GetVersion()] = true
	}
	require.Len(t, versions, 3)
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
	for life, newer := range map[uint64]bool{7: true, 8: false} {
		g, same := newGenerator(seriesOfAgents(60), 1, life), newGenerator(seriesOfAgents(60), 1, life)
		before := map[int]float64{}
		var unknown, moved int
		apps, families := map[string]int64{}, map[string]int64{}
		for range 1000 {
			s := g.next()
			require.True(t, proto.Equal(s, same.next()), "the seed decides")
			require.GreaterOrEqual(t, s.GetRxBytes(), int64(0))
			require.GreaterOrEqual(t, s.GetTxBytes(), int64(0))
			if s.GetConnectionMedianLatencyMs() <= 0 {
				unknown++
			}
			sum := int64(0)
			for app, n := range s.GetSessionCounts() {
				apps[app] += n
				sum += n
			}
			for family, n := range map[string]int64{
				"vscode": s.GetSessionCountVscode(), "ssh": s.GetSessionCountSsh(),
				"jetbrains": s.GetSessionCountJetbrains(), "reconnecting_pty": s.GetSessionCountReconnectingPty(),
			} {
				families[family] += n
				sum += n
			}
			require.Equal(t, s.GetConnectionCount(), 2*sum)
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
		require.Greater(t, unknown, 50)
		require.Greater(t, moved, 50)
		if newer {
			require.Len(t, apps, len(sessionApps))
			require.Contains(t, apps, "cursor")
		} else {
			require.Empty(t, apps)
		}
		for family, n := range families {
			require.Equal(t, newer, n == 0, family)
		}
	}
	g, other := newGenerator(seriesOfAgents(60), 1, 7), newGenerator(seriesOfAgents(60), 1, 9)
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

// A steady agent starts like others. Then its apps stay healthy, and it is not called
// again.
func TestSteadyAgentChangesNoState(t *testing.T) {
	planned := testPlanner("secret").plan(1, 0, at)[0].agents[0]
	conns, err := connect(Options{Targets: []string{"nowhere:1"}, Agents: 1, Dial: client.DialOptions{Plaintext: true}}, discardLogger)
	require.NoError(t, err)
	defer func() { require.NoError(t, conns.close()) }()
	obs := &observer{acks: &latencies{}, values: &latencies{}, unknown: make(chan struct{}, 1), log: discardLogger}
	o := Options{Steady: true}.withDefaults()
	for build := range 100 {
		a, err := newAgent(planned, build, conns, seriesOfAgents(5), o, obs)
		require.NoError(t, err)
		a.start(at)
		var calls int
		for a.live(at) > 0 {
			calls++
			require.Less(t, calls, 5)
		}
		require.GreaterOrEqual(t, calls, 2)
		require.True(t, a.healthy)
	}
}

// An agent that cannot reach anything still takes everything in.
func TestAgentLives(t *testing.T) {
	planned := testPlanner("secret").plan(1, 0, at)[0].agents[0]
	conns, err := connect(Options{Targets: []string{"nowhere:1"}, Agents: 1, Dial: client.DialOptions{Plaintext: true}}, discardLogger)
	require.NoError(t, err)
	defer func() { require.NoError(t, conns.close()) }()
	obs := &observer{acks: &latencies{}, values: &latencies{}, unknown: make(chan struct{}, 1), log: discardLogger}
	o := Options{}.withDefaults()
	reached := map[agentstatsv1.Lifecycle_State]int{}
	ends := map[agentstatsv1.Lifecycle_State]int{}
	var flapping, failed int
	var a *agent
	for build := range 300 {
		a, err = newAgent(planned, build, conns, seriesOfAgents(5), o, obs)
		require.NoError(t, err)
		a.start(at)
		require.Equal(t, agentstatsv1.Lifecycle_STATE_CREATED, a.state)
		require.Greater(t, a.live(at), time.Second)
		require.Equal(t, agentstatsv1.Lifecycle_STATE_STARTING, a.state)
		require.False(t, a.healthy)
		require.GreaterOrEqual(t, a.live(at), 20*time.Second)
		require.True(t, a.healthy)
		reached[a.state]++
		wasHealthy, changes := true, 0
		for range 20 {
			again := a.live(at)
			require.GreaterOrEqual(t, again, 5*time.Second)
			require.Equal(t, a.flaps && a.healthy != wasHealthy, again <= 10*time.Second)
			if a.healthy != wasHealthy {
				wasHealthy = a.healthy
				changes++
			}
		}
		require.NotEqual(t, agentstatsv1.Lifecycle_STATE_START_TIMEOUT, a.state, "its scripts ended after all")
		if a.flaps {
			require.GreaterOrEqual(t, changes, 19)
			flapping++
		} else if changes > 0 {
			failed++
		}
		if build < 299 {
			ends[a.shutDown(at)]++
			require.Equal(t, agentstatsv1.Lifecycle_STATE_SHUTTING_DOWN, a.state)
			require.Zero(t, a.live(at))
		}
	}
	require.Len(t, reached, 3)
	require.Greater(t, reached[agentstatsv1.Lifecycle_STATE_READY], 250)
	require.Len(t, ends, 3)
	require.Greater(t, ends[agentstatsv1.Lifecycle_STATE_OFF], 200)
	require.Greater(t, flapping, 10)
	require.Greater(t, failed, 100)
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
		// How long it takes, as half of each wait is random.
		atLeast, atMost time.Duration
	}{
		{"a service that starts", []error{unavailable, unavailable, errDone}, nil, 750 * time.Millisecond, 1500 * time.Millisecond},
		{"a wrong token", []error{unavailable, unauthenticated}, unauthenticated, 250 * time.Millisecond, 500 * time.Millisecond},
		{"nobody there", []error{unavailable}, unavailable, 10 * time.Second, 10 * time.Second},
		{"a service that hangs in the end", []error{unavailable, nil}, unavailable, 10 * time.Second, 10 * time.Second},
		{"a service that hangs", []error{nil}, context.DeadlineExceeded, 10 * time.Second, 10 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
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
				took := time.Since(began)
				require.GreaterOrEqual(t, took, test.atLeast)
				require.LessOrEqual(t, took, test.atMost)
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
