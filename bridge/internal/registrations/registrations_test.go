package registrations

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/bridge/internal/coder"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/edgetest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "abcdefghij-0123456789abcdefghijkl"

var day = time.Date(1999, 12, 31, 12, 0, 0, 0, time.UTC)

// setup has Registrations between a stand-in of coderd and the real service.
type setup struct {
	*Registrations
	t       *testing.T
	rest    *codertest.REST
	service *edgetest.Service
	coderd  *client.Coderd
	reg     *prometheus.Registry
	path    string // of the token
	log     lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newSetup(t *testing.T, rest *codertest.REST, pageSize int) *setup {
	s := &setup{t: t, rest: rest, reg: prometheus.NewPedanticRegistry(), path: codertest.TokenFile(t, token)}
	s.service = edgetest.Start(t, edgetest.Settings{})
	log := slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	rest.SetToken(token, codertest.Token{})
	from, err := coder.New(coder.Options{URL: "http://coder.test", TokenFile: s.path, Transport: rest.Serve(t), PageSize: pageSize}, s.reg, log)
	require.NoError(t, err)
	conn, err := client.Dial("passthrough:///service", client.DialOptions{Plaintext: true, Token: edgetest.CoderdToken},
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.service.Dial(ctx) }))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	s.coderd, err = client.NewCoderd(conn, client.CoderdOptions{Logger: log})
	require.NoError(t, err)
	s.Registrations, err = New(from, s.coderd, Options{}, s.reg, log)
	require.NoError(t, err)
	return s
}

// run runs the Registrations until the test ends.
func (s *setup) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { require.NoError(s.t, s.Run(ctx)) })
	s.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// registered returns the agents that the service has, by their ids.
func (s *setup) registered() map[uuid.UUID]*agentstatsv1.Agent {
	s.t.Helper()
	agents := make(map[uuid.UUID]*agentstatsv1.Agent)
	for a, err := range s.coderd.Agents(s.t.Context()) {
		require.NoError(s.t, err)
		agents[uuid.UUID(a.GetId())] = a
	}
	return agents
}

func (s *setup) requireAgents(ids ...uuid.UUID) {
	s.t.Helper()
	var got []uuid.UUID
	for id := range s.registered() {
		got = append(got, id)
	}
	require.ElementsMatch(s.t, ids, got)
}

func (s *setup) syncs(outcome string) int {
	return int(testutil.ToFloat64(s.metrics.syncs.WithLabelValues(outcome)))
}

func (s *setup) unknownAgents(outcome string) int {
	return int(testutil.ToFloat64(s.metrics.unknown.WithLabelValues(outcome)))
}

// requireNoSecrets fails if what is nobody's business is in logs, metrics or the database.
func (s *setup) requireNoSecrets() {
	s.t.Helper()
	stored, err := s.service.Store.Registrations(s.t.Context(), 0)
	require.NoError(s.t, err)
	own, err := s.reg.Gather()
	require.NoError(s.t, err)
	all := fmt.Sprint(s.log.String(), s.service.Log.String(), s.service.Exposition(""), stored, own, s.agents, s.Warnings())
	for _, text := range []string{codertest.Secret, token} {
		require.NotContains(s.t, all, text)
	}
}

func id(kind byte, n, build int) uuid.UUID {
	return uuid.UUID{1, kind, 13: byte(build), 14: byte(n >> 8), 15: byte(n)}
}

// agentID is that of the agent of a build of workspace n.
func agentID(n, build int) uuid.UUID { return id('a', n, build) }

func built(n, build int, transition, job string) codertest.Build {
	b := codertest.Build{ID: id('b', n, build), CreatedAt: day.Add(time.Duration(build) * time.Second), Transition: transition, Job: job}
	if transition == "start" && job == "succeeded" {
		b.Agents = []codertest.WorkspaceAgent{{ID: agentID(n, build), Name: "main", CreatedAt: b.CreatedAt, Apps: []codertest.App{{ID: id('p', n, build), Slug: "code", Health: "healthy"}}}}
	}
	return b
}

// started is workspace n, started by its first build.
func started(n int) *codertest.Workspace {
	return &codertest.Workspace{ID: id('w', n, 0), Name: fmt.Sprintf("ws%03d", n), Owner: "ada", Build: built(n, 1, "start", "succeeded")}
}

// sync syncs a while after the sync before: what was registered in the second before it stays.
func (s *setup) sync(t *testing.T) {
	t.Helper()
	time.Sleep(2 * time.Second)
	require.NoError(t, s.Registrations.sync(t.Context()))
}

func TestSync(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		withSub, stopped, prebuilt := started(2), started(3), started(4)
		withSub.Build.Agents = append(withSub.Build.Agents, codertest.WorkspaceAgent{ID: agentID(2, 9), ParentID: agentID(2, 1), Name: "dev", CreatedAt: day})
		stopped.Build = built(3, 2, "stop", "succeeded")
		stopped.Build.Agents = []codertest.WorkspaceAgent{{ID: agentID(3, 2), Name: "main", CreatedAt: day, Status: "connecting"}}
		prebuilt.Owner, prebuilt.IsPrebuild = "prebuilds", true
		first := started(1)
		first.Build.Agents[0].Latencies = map[string]codertest.Latency{"Frankfurt": {Preferred: true, MS: 12.5}, "Oslo": {MS: 40}}
		withSub.Build.Agents[0].Status, withSub.Build.Agents[0].Lifecycle = "disconnected", "shutdown_error"
		rest.Put(first, withSub, stopped, prebuilt, started(5))
		s := newSetup(t, rest, 2)
		s.sync(t)
		s.requireAgents(agentID(1, 1), agentID(2, 1), agentID(2, 9), agentID(4, 1), agentID(5, 1))
		agents := s.registered()
		a := agents[agentID(1, 1)]
		require.Equal(t, "main", a.GetName())
		w := a.GetWorkspace()
		require.Equal(t, []string{"ws001", "ada", "coder", "docker", "v7"},
			[]string{w.GetName(), w.GetOwnerUsername(), w.GetOrganizationName(), w.GetTemplate().GetName(), w.GetTemplate().GetVersion()})
		require.Equal(t, codertest.TemplateID[:], w.GetTemplate().GetId())
		require.NotEmpty(t, w.GetOwnerId())
		require.Equal(t, agentstatsv1.Build_TRANSITION_START, w.GetBuild().GetTransition())
		require.Equal(t, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY, a.GetAppHealth()[0].GetHealth())
		require.Equal(t, agents[agentID(2, 1)].GetId(), agents[agentID(2, 9)].GetParentId())
		require.True(t, agents[agentID(4, 1)].GetWorkspace().GetBuild().GetIsPrebuild())
		require.Len(t, s.service.Exposition("coderd_agents_up{"), 5, "a stopped workspace, too")
		const ws1, ws2 = `username="ada",workspace_name="ws001"`, `username="ada",workspace_name="ws002"`
		require.ElementsMatch(t, []string{
			`coderd_agents_up{template_name="docker",` + ws1 + `} 1`,
			`coderd_agents_connections{agent_name="main",lifecycle_state="ready",status="connected",tailnet_node="unknown",` + ws1 + `} 1`,
			`coderd_agents_apps{agent_name="main",app_name="code",health="healthy",` + ws1 + `} 1`,
			`coderd_agents_connection_latencies_seconds{agent_name="main",derp_region="Frankfurt",preferred="true",` + ws1 + `} 0.0125`,
			`coderd_agents_connection_latencies_seconds{agent_name="main",derp_region="Oslo",preferred="false",` + ws1 + `} 0.04`,
		}, s.service.Exposition(ws1))
		require.Contains(t, s.service.Exposition(ws2),
			`coderd_agents_connections{agent_name="main",lifecycle_state="shutdown_error",status="disconnected",tailnet_node="unknown",`+ws2+`} 1`)
		require.Equal(t, id('w', 1, 0), s.agents[agentID(1, 1)].workspace)
		require.NotContains(t, s.agents, agentID(3, 2))

		// A rename, a rebuild, a stop, a start, a claim, a sub-agent that is gone, a deletion,
		// and a build that is under way.
		rest.Change(id('w', 1, 0), func(w *codertest.Workspace) { w.Name, w.Build = "renamed", built(1, 2, "start", "succeeded") })
		rest.Change(id('w', 2, 0), func(w *codertest.Workspace) { w.Build.Agents = w.Build.Agents[:1] })
		rest.Change(id('w', 3, 0), func(w *codertest.Workspace) { w.Build = built(3, 3, "start", "succeeded") })
		rest.Change(id('w', 4, 0), func(w *codertest.Workspace) {
			w.Owner, w.Name, w.IsPrebuild, w.Build = "bob", "mine", false, built(4, 2, "start", "running")
		})
		rest.Delete(id('w', 5, 0))
		s.sync(t)
		s.requireAgents(agentID(1, 2), agentID(2, 1), agentID(3, 3), agentID(4, 1))
		agents = s.registered()
		require.Equal(t, "renamed", agents[agentID(1, 2)].GetWorkspace().GetName())
		claimed := agents[agentID(4, 1)].GetWorkspace()
		require.Equal(t, "bob", claimed.GetOwnerUsername())
		require.Equal(t, id('b', 4, 1), uuid.UUID(claimed.GetBuild().GetId()), "its agent is of the build before")
		require.Len(t, s.service.Exposition("coderd_agents_up{"), 4)
		require.Equal(t, 2.0, testutil.ToFloat64(s.metrics.removed), "superseded ones are not removed")

		rest.Change(id('w', 4, 0), func(w *codertest.Workspace) { w.Build = built(4, 2, "start", "failed") })
		rest.Change(id('w', 1, 0), func(w *codertest.Workspace) { w.Build = built(1, 3, "stop", "running") })
		s.sync(t)
		s.requireAgents(agentID(1, 2), agentID(2, 1), agentID(3, 3))
		rest.Change(id('w', 1, 0), func(w *codertest.Workspace) { w.Build.Job = "succeeded" })
		s.sync(t)
		s.requireAgents(agentID(2, 1), agentID(3, 3))
		s.requireNoSecrets()
	})
}

// What a registration by REST has not, stays.
func TestSyncKeepsTokensAndMetadata(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		rest.Put(started(1))
		s := newSetup(t, rest, 0)
		s.sync(t)
		regs, _ := messagesOf(&coder.Workspace{ID: id('w', 1, 0), Name: "ws001", OwnerName: "ada", TemplateName: "docker", Build: coder.Build{
			ID: id('b', 1, 1), CreatedAt: day.Add(time.Second), Transition: "start", Job: "succeeded",
			Agents: []coder.Agent{{ID: agentID(1, 1), Name: "main", CreatedAt: day.Add(time.Second)}},
		}})
		regs[0].TokenSha256, regs[0].MetadataKeys = edgetest.TokenHash("token of agent 1"), []string{"cpu"}
		_, err := s.coderd.Register(t.Context(), regs, nil)
		require.NoError(t, err)
		s.sync(t)
		stored, err := s.service.Store.Registrations(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, edgetest.TokenHash("token of agent 1"), stored.Agents[0].TokenHash[:])
		require.Equal(t, []string{"cpu"}, stored.Agents[0].MetadataKeys)
		require.Len(t, stored.Agents[0].Apps, 1)
	})
}

// Rows that are on no page, as they moved, are looked for.
func TestShiftingPages(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		var all []uuid.UUID
		for n := range 12 {
			w := started(n)
			if n >= 8 {
				w.Build = built(n, 1, "stop", "succeeded")
			} else {
				all = append(all, agentID(n, 1))
			}
			rest.Put(w)
		}
		moved := false
		rest.OnRequest = func(r *http.Request) *codertest.Answer {
			if offset := r.URL.Query().Get("offset"); offset != "" && offset != "0" && !moved {
				// The last one starts, and is on the first page, which has been read.
				moved = true
				rest.Change(id('w', 11, 0), func(w *codertest.Workspace) { w.Owner, w.Build = "aaa", built(11, 2, "start", "succeeded") })
			}
			return nil
		}
		s := newSetup(t, rest, 6)
		s.sync(t)
		s.requireAgents(append(all, agentID(11, 2))...)
		require.Equal(t, 4, rest.Requests("list"), "all again, as one of 12 was missing")

		// Of those that are known, only the one that is missing is read.
		rest.OnRequest = func(r *http.Request) *codertest.Answer {
			if r.URL.Query().Get("offset") == "6" {
				rest.Change(id('w', 7, 0), func(w *codertest.Workspace) { w.Owner = "aaa" })
			}
			return nil
		}
		s.sync(t)
		s.requireAgents(append(all, agentID(11, 2))...)
		require.Equal(t, 6, rest.Requests("list"))
		require.Equal(t, 1, rest.Requests("workspace"))
	})
}

// A token that lost rights, all or some, removes nothing.
func TestTokenWithoutRights(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		rest.HidesDeleted = true
		var all []uuid.UUID
		for n := range 6 {
			w := started(n)
			if n >= 4 {
				w.Organization = "other"
			}
			rest.Put(w)
			all = append(all, agentID(n, 1))
		}
		s := newSetup(t, rest, 0)
		s.sync(t)
		rest.SetToken(token, codertest.Token{Role: codertest.Member})
		err := s.Registrations.sync(t.Context())
		require.ErrorContains(t, err, "none of 6 workspaces is visible; if they are not deleted, the user of the API token lacks the role Template Admin")
		require.Equal(t, outcomeDoubt, outcomeOf(err))
		s.requireAgents(all...)
		require.LessOrEqual(t, rest.Requests("workspace"), maxDoubtfulReads)

		// 404 counts where others of the organization are visible, the second time.
		rest.SetToken(token, codertest.Token{})
		rest.Delete(id('w', 0, 0))
		rest.Delete(id('w', 4, 0))
		rest.Delete(id('w', 5, 0))
		s.sync(t)
		s.requireAgents(all...)
		s.sync(t)
		s.requireAgents(all[1:]...)
		rest.Put(&codertest.Workspace{ID: id('w', 4, 0), Name: "ws004", Owner: "ada", Organization: "other", Build: built(4, 1, "start", "succeeded")})
		s.sync(t)
		s.requireAgents(all[1:5]...)
	})
}

// A token that sees some workspaces only removes none of many.
func TestTokenOfAUser(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		var all []uuid.UUID
		for n := range 5 {
			w := started(n)
			if n >= 2 {
				w.Owner = "bob"
			}
			rest.Put(w)
			all = append(all, agentID(n, 1))
		}
		s := newSetup(t, rest, 0)
		s.sync(t)
		rest.SetToken(token, codertest.Token{Owner: "ada"})
		for range 3 {
			require.ErrorContains(t, s.Registrations.sync(t.Context()), "3 of 5 workspaces are not visible any more; if they are not deleted, the user of the API token has lost rights")
		}
		s.requireAgents(all...)
	})
}

// A bridge that starts with a token without rights removes no workspace without agents.
func TestEmptyListRemovesNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		stopped := started(1)
		stopped.Build = built(1, 2, "stop", "succeeded")
		rest.Put(stopped)
		s := newSetup(t, rest, 0)
		s.sync(t)
		s.workspaces = nil // as of one that starts
		rest.SetToken(token, codertest.Token{Role: codertest.Member})
		s.sync(t)
		require.Len(t, s.service.Exposition("coderd_agents_up{"), 1)
	})
}

func TestRefusedTokenPauses(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		rest.Put(started(1))
		s := newSetup(t, rest, 0)
		rest.SetToken(token, codertest.Token{Role: codertest.Expired})
		s.run()
		time.Sleep(10*time.Minute + 30*time.Second)
		synctest.Wait()
		s.requireAgents()
		require.InDelta(t, 10, s.syncs(outcomeRefused), 2, "each minute")
		require.Equal(t, 1, strings.Count(s.log.String(), "registrations are paused"))
		require.ErrorContains(t, fmt.Errorf("%s", s.Warnings()), "registrations are paused: list workspaces: coderd answers 401 Unauthorized")
		s.Connected(agentID(1, 1), id('w', 1, 0))

		const other = "another000-0123456789abcdefghijkl"
		rest.SetToken(other, codertest.Token{})
		require.NoError(t, os.WriteFile(s.path, []byte(other), 0o600))
		time.Sleep(lookWait + time.Second)
		synctest.Wait()
		s.requireAgents(agentID(1, 1))
		require.Empty(t, s.Warnings())
		require.Contains(t, s.log.String(), "registrations go on")
		require.NotContains(t, s.log.String(), other)
		s.requireNoSecrets()
	})
}

func TestUnknownAgents(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		rest.Put(started(1))
		s := newSetup(t, rest, 0)
		s.run()
		time.Sleep(time.Second)
		synctest.Wait()
		s.requireAgents(agentID(1, 1))

		rest.Put(started(2), started(3))
		s.Connected(agentID(1, 1), id('w', 1, 0))
		s.Connected(agentID(2, 1), id('w', 2, 0))
		s.Connected(agentID(3, 1), id('w', 3, 0))
		time.Sleep(time.Second)
		synctest.Wait()
		s.requireAgents(agentID(1, 1), agentID(2, 1), agentID(3, 1))
		require.Equal(t, 2, rest.Requests("workspace"))
		require.Equal(t, 2, s.unknownAgents(agentRegistered))

		// Another bridge removed it.
		_, err := s.coderd.Deregister(t.Context(), []uuid.UUID{agentID(2, 1)}, nil)
		require.NoError(t, err)
		s.Connected(agentID(2, 1), id('w', 2, 0))
		s.Unknown(agentID(2, 1), id('w', 2, 0))
		time.Sleep(time.Second)
		synctest.Wait()
		s.requireAgents(agentID(1, 1), agentID(2, 1), agentID(3, 1))

		// One that survived a stop connects each 10 s.
		rest.Change(id('w', 1, 0), func(w *codertest.Workspace) { w.Build = built(1, 2, "stop", "succeeded") })
		before := rest.Requests("workspace")
		for range 18 {
			s.Unknown(agentID(1, 1), id('w', 1, 0))
			time.Sleep(10 * time.Second)
		}
		synctest.Wait()
		require.LessOrEqual(t, rest.Requests("workspace")-before, 4)
		require.GreaterOrEqual(t, s.unknownAgents(agentNotCurrent), 2)

		// Many are one list.
		lists, reads := rest.Requests("list"), rest.Requests("workspace")
		var want []uuid.UUID
		for n := 100; n < 160; n++ {
			rest.Put(started(n))
			s.Connected(agentID(n, 1), id('w', n, 0))
			want = append(want, agentID(n, 1))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		s.requireAgents(append(want, agentID(2, 1), agentID(3, 1))...)
		require.Equal(t, lists+1, rest.Requests("list"))
		require.Equal(t, reads, rest.Requests("workspace"))
		require.Equal(t, 60, s.unknownAgents(agentListed))
	})
}

// Of two bridges one syncs, and the other one when that stops. Both register who connects.
func TestTwoBridges(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		var fails atomic.Bool
		rest.OnRequest = func(*http.Request) *codertest.Answer {
			if fails.Load() {
				return &codertest.Answer{Status: 503}
			}
			return nil
		}
		rest.Put(started(1))
		s := newSetup(t, rest, 0)
		from, err := coder.New(coder.Options{URL: "http://coder.test", TokenFile: s.path, Transport: rest.Serve(t)}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		other, err := New(from, s.coderd, Options{}, prometheus.NewPedanticRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { require.NoError(t, s.Run(ctx)) })
		time.Sleep(10 * time.Second)
		until, end := context.WithCancel(t.Context())
		defer running.Wait()
		defer end()
		defer stop()
		running.Go(func() { require.NoError(t, other.Run(until)) })
		time.Sleep(70 * time.Second)
		synctest.Wait()
		require.Equal(t, 2, rest.Requests("list"), "it begins with one, too")
		// The one that does not sync lists for many.
		want := []uuid.UUID{agentID(1, 1)}
		for n := 300; n < 325; n++ {
			rest.Put(started(n))
			other.Connected(agentID(n, 1), id('w', n, 0))
			want = append(want, agentID(n, 1))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		s.requireAgents(want...)
		lists := rest.Requests("list")
		time.Sleep(time.Hour)
		synctest.Wait()
		require.InDelta(t, 12, rest.Requests("list")-lists, 2)
		require.Equal(t, rest.Requests("list")-2, s.syncs(outcomeSynced))
		require.Equal(t, id('w', 1, 0), other.agents[agentID(1, 1)].workspace)

		// It registers who connects.
		other.Connected(agentID(1, 1), id('w', 1, 0))
		rest.Put(started(2))
		other.Connected(agentID(2, 1), id('w', 2, 0))
		time.Sleep(time.Second)
		synctest.Wait()
		want = append(want, agentID(2, 1))
		s.requireAgents(want...)
		require.Equal(t, 1, rest.Requests("workspace"))

		// It lists until that succeeds.
		fails.Store(true)
		for n := 200; n < 230; n++ {
			rest.Put(started(n))
			other.Connected(agentID(n, 1), id('w', n, 0))
			want = append(want, agentID(n, 1))
		}
		time.Sleep(time.Minute)
		fails.Store(false)
		time.Sleep(45 * time.Second)
		synctest.Wait()
		s.requireAgents(want...)

		stop()
		synctest.Wait()
		lists = rest.Requests("list")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Equal(t, lists+1, rest.Requests("list"), "the other one syncs")
	})
}

// All bridges together make no more requests than one may.
func TestBridgesShareRequests(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		for n := range 300 {
			rest.Put(started(n))
		}
		s := newSetup(t, rest, 1)
		from, err := coder.New(coder.Options{URL: "http://coder.test", TokenFile: s.path, Transport: rest.Serve(t), PageSize: 1}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		other, err := New(from, s.coderd, Options{}, prometheus.NewPedanticRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		requireRate := func(perSecond int) {
			t.Helper()
			before := rest.Requests("list")
			time.Sleep(10 * time.Second)
			synctest.Wait()
			require.InDelta(t, 10*perSecond, rest.Requests("list")-before, 2)
		}
		s.run()
		requireRate(5)
		until, end := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { require.NoError(t, other.Run(until)) })
		for n := range 30 {
			other.Connected(id('x', n, 1), id('w', n, 1))
		}
		time.Sleep(shareWait)
		requireRate(5)
		require.Equal(t, 2.0, testutil.ToFloat64(s.metrics.sharing))
		end()
		running.Wait()
		time.Sleep(shareWait)
		require.Equal(t, 1.0, testutil.ToFloat64(s.metrics.sharing))
	})
}

func TestUnknownAgentsAreBounded(t *testing.T) {
	s := newSetup(t, codertest.NewREST(), 0)
	s.opts.MaxUnknown = 3
	for n := range 5 {
		s.Connected(agentID(n, 1), id('w', n, 0))
		s.Connected(agentID(n, 1), id('w', n, 0))
	}
	require.Len(t, s.unknown.waiting, 3)
	require.Equal(t, 4, s.unknownAgents(agentBeyond))
}

func TestFailures(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		rest.Put(started(1))
		fails := true
		var mu sync.Mutex
		rest.OnRequest = func(*http.Request) *codertest.Answer {
			mu.Lock()
			defer mu.Unlock()
			if fails {
				return &codertest.Answer{Status: 503}
			}
			return nil
		}
		s := newSetup(t, rest, 0)
		s.run()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.Positive(t, s.syncs(outcomeCoder))
		require.Contains(t, s.Warnings()[0], "registrations are not synced: list workspaces: coderd answers 503")
		mu.Lock()
		fails = false
		mu.Unlock()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		s.requireAgents(agentID(1, 1))
		require.Positive(t, s.syncs(outcomeSynced))
		require.Empty(t, s.Warnings())
		at := time.Now()
		require.NoError(t, testutil.GatherAndCompare(s.reg, strings.NewReader(`
# HELP agentstatsd_bridge_registered_agents Agents that are registered, by the newest sync and since.
# TYPE agentstatsd_bridge_registered_agents gauge
agentstatsd_bridge_registered_agents 1
# HELP agentstatsd_bridge_registrations_paused 1 while coderd refuses the API token.
# TYPE agentstatsd_bridge_registrations_paused gauge
agentstatsd_bridge_registrations_paused 0
`), "agentstatsd_bridge_registered_agents", "agentstatsd_bridge_registrations_paused"))
		require.WithinDuration(t, at, s.syncedAt, 5*time.Minute+30*time.Second)

		s.service.Store.SetDown(true)
		rest.Put(started(2))
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		require.Positive(t, s.syncs(outcomeService))
		s.service.Store.SetDown(false)
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		s.requireAgents(agentID(1, 1), agentID(2, 1))
	})
}

func TestTokenExpiryIsWarnedOf(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		var fails atomic.Bool
		rest.OnRequest = func(r *http.Request) *codertest.Answer {
			if fails.Load() && strings.Contains(r.URL.Path, "/keys/") {
				return &codertest.Answer{Status: http.StatusBadGateway}
			}
			return nil
		}
		s := newSetup(t, rest, 0)
		rest.SetToken(token, codertest.Token{ExpiresAt: time.Now().Add(50 * time.Hour)})
		s.run()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.NotContains(t, s.log.String(), "expires soon")
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		require.Equal(t, 1, strings.Count(s.log.String(), "the API token expires soon"))
		warning := []string{"the API token expires at 2000-01-03T02:00:00Z: replace it"}
		require.Equal(t, warning, s.Warnings())
		fails.Store(true)
		time.Sleep(expiryWait + 5*time.Minute)
		synctest.Wait()
		require.Equal(t, warning, s.Warnings(), "coderd did not answer")
		fails.Store(false)

		const other = "another000-0123456789abcdefghijkl"
		rest.SetToken(other, codertest.Token{})
		require.NoError(t, os.WriteFile(s.path, []byte(other), 0o600))
		time.Sleep(refusedWait + time.Second)
		synctest.Wait()
		require.Empty(t, s.Warnings())
	})
}

// A token whose user sees nothing is not refused. It is a warning from the first sync on, and
// where only some workspaces are not shown once an agent of one connects.
func TestWrongRole(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const empty = "coderd shows no workspaces: the user of the API token lacks the role Template Admin"
		rest := codertest.NewREST()
		s := newSetup(t, rest, 0)
		s.sync(t)
		require.Empty(t, s.Warnings(), "there are none")
		rest.Put(started(1), started(2))
		rest.SetToken(token, codertest.Token{Role: codertest.Member})
		for range 2 {
			s.sync(t)
			require.Equal(t, []string{empty}, s.Warnings())
		}
		require.Equal(t, 1, strings.Count(s.log.String(), empty))
		rest.SetToken(token, codertest.Token{Owner: "bob"})
		s.run()
		s.Connected(agentID(1, 1), id('w', 1, 0))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		hidden := "coderd does not show workspaces whose agents are connected: the user of the API token lacks the role Template Admin"
		require.Equal(t, []string{empty, hidden}, s.Warnings())
		require.Equal(t, 1, s.unknownAgents(agentHidden))

		rest.SetToken(token, codertest.Token{})
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		require.Equal(t, []string{hidden}, s.Warnings())
		require.NoError(t, testutil.GatherAndCompare(s.reg, strings.NewReader(`
# HELP agentstatsd_bridge_visible_workspaces Workspaces that coderd showed in the newest sync of this bridge. To an API token whose user lacks the role Template Admin it shows none, without an error.
# TYPE agentstatsd_bridge_visible_workspaces gauge
agentstatsd_bridge_visible_workspaces 2
`), "agentstatsd_bridge_visible_workspaces"))
		time.Sleep(hiddenFor)
		require.Empty(t, s.Warnings())
		s.requireNoSecrets()
	})
}

func TestOptions(t *testing.T) {
	for field, opts := range map[string]Options{
		"sync interval": {SyncInterval: time.Second},
		"max unknown":   {MaxUnknown: -1},
	} {
		_, err := New(nil, nil, opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "registrations options: "+field)
	}
}

// A changed interval counts from the next sync on. One that cannot be changes nothing.
func TestSetSyncInterval(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		rest.Put(started(1))
		s := newSetup(t, rest, 0)
		s.run()
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 1, s.syncs(outcomeSynced))
		require.ErrorContains(t, s.SetSyncInterval(time.Second), "sync interval: want at least 10s, got 1s")
		require.Equal(t, 5*time.Minute, s.SyncInterval())
		require.NoError(t, s.SetSyncInterval(time.Minute))
		time.Sleep(4 * time.Minute)
		require.Equal(t, 1, s.syncs(outcomeSynced), "the wait had begun before")
		time.Sleep(12 * time.Minute) // the rest of it, and ten of a minute each
		require.GreaterOrEqual(t, s.syncs(outcomeSynced), 10)
		require.NoError(t, s.SetSyncInterval(0))
		require.Equal(t, 5*time.Minute, s.SyncInterval(), "it is the default")
	})
}

func sortedIDs(ids map[uuid.UUID]struct{}) []uuid.UUID {
	list := make([]uuid.UUID, 0, len(ids))
	for id := range ids {
		list = append(list, id)
	}
	slices.SortFunc(list, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	return list
}

// Durations of builds come from what coderd saw, once each, where no agent says them. Builds
// of long before are none.
func TestBuildDurations(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		rest := codertest.NewREST()
		put := func(n int, lifecycle string, ended time.Time) {
			w := started(n)
			w.Build.CreatedAt = ended.Add(-40 * time.Second)
			a := &w.Build.Agents[0]
			a.CreatedAt, a.StartedAt, a.ReadyAt, a.Lifecycle = w.Build.CreatedAt.Add(time.Second), ended.Add(-20*time.Second), ended, lifecycle
			rest.Put(w)
		}
		put(1, "ready", time.Now().Add(-10*time.Minute))
		put(2, "start_error", time.Now().Add(-time.Minute))
		put(3, "ready", time.Now().Add(-2*time.Hour))
		running := started(4)
		running.Build.CreatedAt, running.Build.Agents[0].CreatedAt, running.Build.Agents[0].Lifecycle = time.Now(), time.Now(), "starting"
		rest.Put(running)
		s := newSetup(t, rest, 0)
		require.Empty(t, s.builds())
		s.sync(t)
		time.Sleep(5 * time.Second)
		require.Equal(t, map[string]float64{"success": 40, "error": 40}, s.builds())

		rest.Change(running.ID, func(w *codertest.Workspace) {
			w.Build.Agents[0].Lifecycle, w.Build.Agents[0].ReadyAt = "start_timeout", w.Build.CreatedAt.Add(3*time.Second)
		})
		for range 3 {
			s.sync(t)
			time.Sleep(5 * time.Second)
			require.Equal(t, map[string]float64{"success": 40, "error": 40, "timeout": 3}, s.builds())
		}
	})
}

// builds returns the sums of the durations of builds by status.
func (s *setup) builds() map[string]float64 {
	s.t.Helper()
	synctest.Wait()
	families, err := s.service.Registry.Gather()
	require.NoError(s.t, err)
	sums := make(map[string]float64)
	for _, f := range families {
		if f.GetName() != "coderd_template_workspace_build_duration_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "status" {
					sums[l.GetValue()] += m.GetHistogram().GetSampleSum()
				}
			}
		}
	}
	return sums
}
