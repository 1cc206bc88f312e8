package simulate

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// second returns a time by its second; the n-th check takes from second 10 n to
// 10 n + 1.
func second(n float64) time.Time { return at.Add(time.Duration(n * float64(time.Second))) }

func checkAt(n int) check {
	return check{began: second(float64(10 * n)), ended: second(float64(10*n + 1))}
}

// sessionOf makes a session of seconds; 0: never.
func sessionOf(opened, reported, acked, ended float64) session {
	when := func(n float64) time.Time {
		if n == 0 {
			return time.Time{}
		}
		return second(n)
	}
	return session{when(opened), when(reported), when(acked), when(ended)}
}

func TestJudge(t *testing.T) {
	long := []session{sessionOf(1, 2, 95, 0)}
	for _, test := range []struct {
		name string
		// served is how often in each check, from the first.
		served   []float64
		sessions []session
		want     finding
	}{
		{"once", []float64{1, 1, 1, 1}, long, finding{}},
		{"twice in one check", []float64{1, 2, 1, 2, 1}, long, finding{transientDuplicates: 2}},
		{"twice in the last check", []float64{1, 1, 2}, long, finding{transientDuplicates: 1}},
		{"twice in two checks", []float64{1, 2, 3, 1}, long, finding{duplicates: 1}},
		{"twice for long", []float64{1, 2, 2, 2, 2, 2, 1, 2}, long, finding{duplicates: 1, transientDuplicates: 1}},
		{"twice again and again", []float64{2, 2, 1, 2, 2}, long, finding{duplicates: 2}},
		{
			// Another move explains the second one, not the third.
			"twice after a move, and after another one",
			[]float64{1, 2, 2, 1},
			[]session{sessionOf(1, 2, 18, 19), sessionOf(19.5, 19.6, 19.6, 23), sessionOf(25, 25.5, 60, 0)},
			finding{transientDuplicates: 2},
		},
		{
			"twice after a move, and on",
			[]float64{1, 2, 2, 2, 1},
			[]session{sessionOf(1, 2, 18, 23), sessionOf(25, 25.5, 60, 0)},
			finding{transientDuplicates: 1, duplicates: 1},
		},
		{
			"twice since a first report",
			[]float64{1, 2, 2, 1},
			[]session{sessionOf(1, 2, 18, 19), sessionOf(19.5, 25, 60, 0)},
			finding{transientDuplicates: 2},
		},
		{
			"twice since a session opened",
			[]float64{1, 2, 2, 1},
			[]session{sessionOf(1, 2, 18, 19), sessionOf(25, 0, 0, 0)},
			finding{transientDuplicates: 2},
		},
		{
			"a move before two checks explains one",
			[]float64{1, 2, 2, 1},
			[]session{sessionOf(1, 2, 18, 19), sessionOf(19.5, 19.6, 60, 0)},
			finding{duplicates: 1},
		},

		{"missed in one check", []float64{1, 1, 0, 1, 0, 1}, long, finding{transientMisses: 2}},
		{"missed in two checks", []float64{1, 1, 0, 0, 1}, long, finding{misses: 1}},
		{"missed for long", []float64{1, 1, 0, 0, 0, 0, 1, 1}, long, finding{misses: 1}},
		{"missed again and again", []float64{1, 0, 0, 1, 1, 0, 0, 1}, long, finding{misses: 2}},
		{"missed before the first report", []float64{0, 0, 0, 0}, []session{sessionOf(1, 0, 40, 0)}, finding{}},
		{"missed while it has no session", []float64{1, 1, 0, 0, 0}, []session{sessionOf(1, 2, 28, 29)}, finding{}},
		{
			// The first check after the report is the grace.
			"missed until a check after the reconnect",
			[]float64{1, 1, 0, 0, 1},
			[]session{sessionOf(1, 2, 28, 29), sessionOf(35, 36, 60, 0)},
			finding{},
		},
		{
			"missed for longer than the reconnect",
			[]float64{1, 1, 0, 0, 0, 0, 1},
			[]session{sessionOf(1, 2, 28, 29), sessionOf(35, 36, 80, 0)},
			finding{misses: 1},
		},
		{
			"missed while its session ends",
			[]float64{1, 1, 1, 0, 1},
			[]session{sessionOf(1, 2, 28, 40.5), sessionOf(44, 45, 60, 0)},
			finding{},
		},
		{
			// The connection was dead since 28, which the client saw at 75.
			"missed on a dead connection",
			[]float64{1, 1, 0, 0, 0, 0, 0, 1},
			[]session{sessionOf(1, 2, 28, 75), sessionOf(76, 77, 95, 0)},
			finding{transientMisses: 1},
		},
		{
			// Acked after the second miss, then the session ended.
			"missed on a live connection that ends",
			[]float64{1, 1, 0, 0, 1, 1},
			[]session{sessionOf(1, 2, 45, 46), sessionOf(47, 48, 95, 0)},
			finding{misses: 1},
		},
		{
			"missed in a session that is forgotten",
			[]float64{1, 1, 0, 0, 1},
			[]session{sessionOf(1, 2, 28, 0)},
			finding{transientMisses: 1},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var v history
			var all finding
			add := func(f finding) {
				all.duplicates += f.duplicates
				all.transientDuplicates += f.transientDuplicates
				all.misses += f.misses
				all.transientMisses += f.transientMisses
			}
			before := checkAt(0)
			for i, n := range test.served {
				now := checkAt(i + 1)
				// What the client has seen by the end of the check.
				var known []session
				for _, s := range test.sessions {
					if s.opened.After(now.ended) {
						continue
					}
					for _, when := range []*time.Time{&s.reported, &s.ended} {
						if when.After(now.ended) {
							*when = time.Time{}
						}
					}
					if s.acked.After(now.ended) {
						s.acked = now.ended
					}
					known = append(known, s)
				}
				add(v.addCheck(before, now, n, known))
				before = now
			}
			end := test.sessions
			if test.name == "missed in a session that is forgotten" {
				end = nil
			}
			add(v.resolveDoubt(end))
			add(finding{transientDuplicates: v.clearTwice()})
			require.Equal(t, test.want, all)
		})
	}
}

func TestPresence(t *testing.T) {
	var p presence
	opened, sessions := p.snapshot()
	require.Zero(t, opened)
	require.Empty(t, sessions)
	p.onState(client.Connecting, 0, second(1))
	p.onAck(1, second(1))
	p.endSession(second(1))
	p.onState(client.Waiting, 0, second(1))
	_, sessions = p.snapshot()
	require.Empty(t, sessions)

	p.onState(client.Connected, 3, second(2))
	p.onAck(3, second(3))
	p.onAck(4, second(4))
	p.onAck(5, second(5))
	p.endSession(second(6))
	p.onState(client.Stopped, 5, second(7))
	opened, sessions = p.snapshot()
	require.Equal(t, second(2), opened)
	require.Equal(t, []session{sessionOf(2, 4, 5, 6)}, sessions)
	for n := range 2 * maxSessions {
		p.onState(client.Connected, 5, second(float64(10+n)))
	}
	opened, sessions = p.snapshot()
	require.Equal(t, second(2), opened)
	require.Len(t, sessions, maxSessions)
	require.Equal(t, second(9+2*maxSessions), sessions[maxSessions-1].opened)
}

// replicas answer scrapes by host.
type replicas map[string]string

// RoundTrip implements http.RoundTripper.
func (r replicas) RoundTrip(req *http.Request) (*http.Response, error) {
	text := r[req.URL.Host]
	resp := &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Body: io.NopCloser(strings.NewReader(text))}
	switch text {
	case "":
		return nil, errors.New("connection refused")
	case "silent":
		<-req.Context().Done()
		return nil, req.Context().Err()
	case "unready":
		resp.StatusCode, resp.Status = http.StatusServiceUnavailable, "503 Service Unavailable"
	}
	return resp, nil
}

func TestScrape(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &scraper{families: watchedFamilies(seriesOfAgents(1)), timeout: 2 * time.Second}
		answers := replicas{
			"a": `# HELP coderd_agents_connections Agent connections with statuses.
# TYPE coderd_agents_connections gauge
coderd_agents_connections{agent_name="main",lifecycle_state="ready",status="connected",tailnet_node="1",username="alice",workspace_name="dev"}            1
coderd_agents_connections{agent_name="main",lifecycle_state="ready",status="timeout",tailnet_node="1",username="alice",workspace_name="dev"} 2
coderd_agents_connections_other{agent_name="main",username="alice",workspace_name="dev"} 1
# TYPE coderd_agentstats_connection_count gauge
coderd_agentstats_connection_count{agent_name="main",username="alice",workspace_name="dev"} 0
coderd_agentstats_connection_count{agent_name="main",username="bob",workspace_name="a\"{\nb"} 7
go_goroutines 5
`,
			"b": `# TYPE agent_scripts_executed_total counter
agent_scripts_executed_total{agent_name="main",success="true",template_name="t",username="alice",workspace_name="dev"} 12
agent_scripts_executed_total{agent_name="main",success="false",template_name="t",username="alice",workspace_name="dev"} 12
coderd_agents_connections{agent_name="main",status="connected",username="alice",workspace_name="dev"} 1
`,
			"broken": "coderd_agentstats_connection_count{agent_name=\"main\" 5\n",
			"status": "unready",
			"frozen": "silent",
		}
		s.client = &http.Client{Transport: answers}
		hosts := []string{"a", "b", "broken", "status", "frozen", "gone"}
		for _, host := range hosts {
			s.endpoints = append(s.endpoints, endpoint{url: &url.URL{Scheme: "http", Host: host}})
		}
		began := time.Now()
		found := s.scrape(t.Context())
		require.Equal(t, s.timeout, time.Since(began))
		alice, bob := identity{"alice", "dev", "main"}, identity{"bob", "a\"{\nb", "main"}
		require.Equal(t, served{
			{alice, 0}: {3, 1, 0, 0, 0, 0},
			{alice, 1}: {1, 0, 0, 0, 0, 0},
			{bob, 1}:   {1, 0, 0, 0, 0, 0},
			{alice, 2}: {0, 1, 0, 0, 0, 0},
		}, found)
		for i, want := range []string{"", "", "parse scrape", "503", "deadline exceeded", "connection refused"} {
			if want == "" {
				require.NoError(t, s.endpoints[i].err)
			} else {
				require.ErrorContains(t, s.endpoints[i].err, want)
			}
		}
		answers["broken"] = "go_goroutines 1\n"
		s.scrape(t.Context())
		require.NoError(t, s.endpoints[2].err)
	})
}

// A line that is too long is an error, not a series that is missed.
func TestScrapeTooLong(t *testing.T) {
	s := &scraper{}
	_, err := s.filter(strings.NewReader("a{l=\"" + strings.Repeat("x", maxLineBytes) + "\"} 1\n"))
	require.ErrorContains(t, err, "scrape: ")
}

// fleetOfOne is an agent with a session that began long ago.
func fleetOfOne(o Options) (*checker, *agent) {
	a := &agent{planned: testPlanner("secret").plan(1, 0, at)[0].agents[0]}
	a.presence.onState(client.Connected, 0, second(1))
	a.presence.onAck(1, second(2))
	return newChecker(o.withDefaults(), seriesOfAgents(1), discardLogger), a
}

func TestCheckerNamesViolations(t *testing.T) {
	require.Nil(t, newChecker(Options{}.withDefaults(), nil, discardLogger))
	require.True(t, (*CheckSummary)(nil).Clean())
	c, a := fleetOfOne(Options{Metrics: []string{"http://user:secret@a:1/metrics", "http://b:1"}})
	id := identityOf(a.planned.registration)
	require.Equal(t, "alice/sim-api-0/main", id.String())
	once := served{{id, 0}: {1, 0}, {id, 1}: {1, 0}, {id, 2}: {1, 0}}
	twice := served{{id, 0}: {1, 1}, {id, 1}: {1, 0}, {id, 2}: {1, 0}}
	none := served{{id, 0}: {1, 0}, {id, 1}: {1, 0}}
	agents := []*agent{a, {planned: a.planned}}
	for i, found := range []served{once, once, twice, twice, once, once, none, none, once} {
		now := checkAt(i + 1)
		a.presence.onAck(int64(i+2), now.began)
		c.checkAgents(now, found, agents)
	}
	summary := c.finish(agents)
	require.False(t, summary.Clean())
	require.Equal(t, &CheckSummary{
		Checks: 9, Agents: 8, Duplicates: 1, Misses: 1,
		Violations: []string{
			"coderd_agents_connections of alice/sim-api-0/main was served more than once in two successive checks; now: http://user:xxxxx@a:1/metrics=1 http://b:1=1",
			"agent_scripts_executed_total of alice/sim-api-0/main was not served in two successive checks; now: http://user:xxxxx@a:1/metrics=1 http://b:1=0",
		},
	}, summary)

	// No more than the first ones are named.
	for i := range 40 {
		found := once
		if i%3 > 0 {
			found = twice
		}
		c.checkAgents(checkAt(20+i), found, agents)
	}
	require.Equal(t, int64(1+13), c.summary.Duplicates)
	require.Len(t, c.summary.Violations, maxViolations)
}

// What an earlier life of an agent left behind is not its own.
func TestCheckerLeavesOutTheNewborn(t *testing.T) {
	c, a := fleetOfOne(Options{Metrics: []string{"http://a:1"}})
	id := identityOf(a.planned.registration)
	twice := served{{id, 0}: {2}, {id, 1}: {2}, {id, 2}: {2}}
	late := &agent{planned: a.planned}
	late.presence.onState(client.Connected, 0, second(10.5))
	for i := 1; i <= 3; i++ {
		c.checkAgents(checkAt(i), twice, []*agent{late})
		require.Zero(t, c.summary.Duplicates)
	}
	require.Equal(t, int64(1), c.summary.Agents)
	c.checkAgents(checkAt(4), twice, []*agent{late})
	require.Equal(t, int64(3), c.summary.Duplicates)
	require.Equal(t, int64(2), c.summary.Agents)
}

// The check ends with its context, and a check that was under way is left out.
func TestCheckerRuns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, a := fleetOfOne(Options{Metrics: []string{"http://a:1", "http://b:1"}})
		answers := replicas{"a:1": "go_goroutines 1\n", "b:1": "silent"}
		c.scraper.client = &http.Client{Transport: answers}
		ctx, cancel := context.WithTimeout(t.Context(), 11*time.Second)
		defer cancel()
		c.run(ctx, func() []*agent { return []*agent{a} })
		require.Equal(t, []bool{false, true}, c.failing)
		// Each takes 2 s, as long as the interval: from 2 to 4, 4 to 6 ...
		require.Equal(t, int64(4), c.summary.Checks)
	})
}

// slowGoodbye is a service that acks everything but a goodbye.
type slowGoodbye struct {
	agentstatsv1.UnimplementedAgentServiceServer
}

// Connect implements agentstatsv1.AgentServiceServer.
func (slowGoodbye) Connect(stream agentstatsv1.AgentService_ConnectServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		resp := &agentstatsv1.ConnectResponse{Ack: &agentstatsv1.Ack{
			ReceivedSequence: req.GetSequence(), DurableSequence: req.GetSequence(),
		}}
		switch {
		case req.GetGoodbye() != nil:
			<-stream.Context().Done()
			return stream.Context().Err()
		case req.GetHello() != nil:
			resp.Settings = &agentstatsv1.Settings{Resume: &agentstatsv1.Resume{}}
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// With its goodbye an agent may be missed, however long that takes.
func TestAgentLeaves(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		listener := bufconn.Listen(64 << 10)
		server := grpc.NewServer()
		agentstatsv1.RegisterAgentServiceServer(server, slowGoodbye{})
		done := make(chan error, 1)
		go func() { done <- server.Serve(listener) }()
		opts := Options{
			Targets: []string{"service:1"}, Agents: 1, Dial: client.DialOptions{Plaintext: true}, Metrics: []string{"http://a:1"},
			Dialer: func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) },
		}.withDefaults()
		conns, err := connect(opts, discardLogger)
		require.NoError(t, err)
		obs := &observer{acks: &latencies{}, values: &latencies{}, unknown: make(chan struct{}, 1), log: discardLogger}
		a, err := newAgent(testPlanner("secret").plan(1, 0, at)[0].agents[0], 0, conns, nil, opts, obs)
		require.NoError(t, err)
		ran := make(chan error, 1)
		began := time.Now()
		go func() { ran <- a.client.Run(t.Context()) }()
		time.Sleep(10 * time.Second)
		a.stopped.Store(true)
		require.NoError(t, a.sayGoodbye(t.Context(), agentstatsv1.Lifecycle_STATE_OFF))
		require.NoError(t, <-ran)
		require.Equal(t, began.Add(10*time.Second+goodbyeTimeout), time.Now())
		opened, sessions := a.presence.snapshot()
		require.Equal(t, began, opened)
		require.Len(t, sessions, 1)
		require.Equal(t, began, sessions[0].reported)
		require.Equal(t, began.Add(10*time.Second), sessions[0].acked)
		require.Equal(t, began.Add(10*time.Second), sessions[0].ended)
		require.NoError(t, conns.close())
		server.Stop()
		require.NoError(t, <-done)
	})
}
