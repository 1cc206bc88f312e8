package operator

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/internal/freeport"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// wellDeployment are two replicas of which nothing is wrong, on loopback.
func wellDeployment() []*fake {
	fakes := make([]*fake, 2)
	for i, name := range []string{"a", "b"} {
		s := replicaStatus(name)
		s.Leads = name == "a"
		s.ScrapedAt = before(0)
		s.Components = []*pb.Component{{Name: "database", Ready: true}, {Name: "fleet", Ready: true}}
		used := 50.0
		s.Limits = []*pb.Limit{{Name: "series", Limit: 100, Used: &used}, {Name: "message bytes", Limit: 5}}
		s.Durability = &pb.Durability{Received: 21, Coalesced: 1, Flushed: 2, Unchanged: 3, Dropped: 4, Pending: 11, OldestPendingSeconds: 4.2}
		s.Certificates = []*pb.Certificate{{Listener: "web", Kind: "server", NotAfter: timestamppb.New(time.Now().Add(9000 * time.Hour))}}
		fakes[i] = &fake{
			statuses: []*pb.ReplicaStatus{s},
			config: &pb.GetConfigResponse{Options: []*pb.Option{
				{Flag: "max-series", Group: "Agents", Value: "100"}, {Flag: "grpc-address", Group: "gRPC", Value: name},
			}},
			pushes: &pb.ListPushesResponse{},
		}
	}
	fakes[0].pushes.Pushers = []*pb.Pusher{{Replica: "coderd-0", Instance: "1", Families: 5, PushedAt: before(0)}}
	fakes[1].pushes.Pushers = []*pb.Pusher{
		{Replica: "coderd-0", Instance: "1", Families: 4, PushedAt: before(time.Hour), Expired: true},
		{Replica: "coderd-0", Instance: "0", Families: 9, PushedAt: before(time.Hour), Expired: true},
	}
	return fakes
}

// startDeployment starts replicas and returns their addresses.
func startDeployment(t *testing.T, fakes []*fake) string {
	t.Helper()
	for _, f := range fakes {
		startFake(t, "127.0.0.1", f, nil)
	}
	return addressesOf(fakes...)
}

func TestDoctorOfAWellDeployment(t *testing.T) {
	fakes := wellDeployment()
	r := run(t, "doctor", "--address", startDeployment(t, fakes))
	require.NoError(t, r.err)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "ok       reached") {
			lines[i] = line[:len("ok       reached of a")]
		}
	}
	want := []string{}
	for _, name := range []string{"a", "b"} {
		want = append(want,
			"ok       reached of "+name,
			"ok       ready of "+name+": all 2 components work",
			"ok       limits of "+name+": none of 2 is used by more than 90 %",
			"ok       durability of "+name+": 21 entries of metadata came in, and what became of them adds up",
			"ok       pending of "+name+": 11 entries wait for the database, the oldest for 4s",
			"ok       scrapes of "+name+": the last one was 30s ago",
		)
	}
	want = append(want,
		"ok       version: all 2 replicas have v1.2.3",
		"ok       leader: a leads",
		"ok       agents: 5 are registered, 4 are connected",
		"ok       configuration: 2 replicas agree",
		"ok       coderd: 1 push, up to 5 families each",
	)
	require.Equal(t, withoutSeconds(want), withoutSeconds(lines))

	r = run(t, "doctor", "--json", "--address", addressesOf(fakes...))
	require.NoError(t, r.err)
	var d struct {
		Asked  []map[string]string
		Checks []map[string]string
	}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &d))
	require.Len(t, d.Asked, 2)
	require.Len(t, d.Checks, len(want))
	require.Equal(t, map[string]string{"name": "leader", "replica": "", "result": "ok", "text": "a leads", "remedy": ""}, d.Checks[13])
}

// withoutSeconds leaves out what depends on how fast a test is.
func withoutSeconds(lines []string) []string {
	var all []string
	for _, line := range lines {
		if before, _, ok := strings.Cut(line, "the last one was"); ok {
			line = before
		}
		all = append(all, line)
	}
	return all
}

// Each fault is found, by the check that is for it.
func TestDoctorFindsFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(a, b *fake)
		want  string // the line
		wrong bool
	}{
		"component": {func(_, b *fake) {
			b.statuses[0].Components[0].Ready, b.statuses[0].Components[0].Reason = false, "is away"
		}, "WRONG    ready of b: database: is away: docs/operations.md", true},
		"not ready": {func(_, b *fake) { b.statuses[0].Ready, b.statuses[0].Components = false, nil }, "WRONG    ready of b: it is not ready", true},
		"draining": {func(_, b *fake) {
			b.statuses[0].Draining = true
			b.statuses[0].Components = append(b.statuses[0].Components, &pb.Component{Name: "draining", Reason: "an operator has sent the agents away"})
		}, "warning  ready of b: it drains, and takes no agents: agentstatsd drain --undo", false},
		"warning":        {func(_, b *fake) { b.statuses[0].Warnings = []string{"a file was not taken"} }, "warning  warnings of b: a file was not taken", false},
		"nearly full":    {func(_, b *fake) { *b.statuses[0].Limits[0].Used = 91 }, "warning  limits of b: series: 91 of 100 are used, 91 %", false},
		"full":           {func(_, b *fake) { *b.statuses[0].Limits[0].Used = 100 }, "WRONG    limits of b: series: 100 of 100 are used, 100 %", true},
		"sum":            {func(_, b *fake) { b.statuses[0].Durability.Flushed++ }, "WRONG    durability of b: 21 entries of metadata came in, and what became of them adds up to 22", true},
		"pending":        {func(_, b *fake) { b.statuses[0].Durability.OldestPendingSeconds = 31 }, "WRONG    pending of b: 11 entries wait for the database, the oldest for 31s", true},
		"scrape":         {func(_, b *fake) { b.statuses[0].ScrapedAt = before(5 * time.Minute) }, "WRONG    scrapes of b: the last scrape was 5m", true},
		"no scrape":      {func(_, b *fake) { b.statuses[0].ScrapedAt = nil }, "WRONG    scrapes of b: nobody has scraped it: point", true},
		"clock":          {func(_, b *fake) { b.statuses[0].ScrapedAt = before(-time.Hour) }, "WRONG    clock of b: its clock is ahead of this machine's by 59m", true},
		"certificate":    {func(_, b *fake) { b.statuses[0].Certificates[0].NotAfter = before(time.Hour) }, "WRONG    certificate of b: the one of web (server) has ended 1h ago", true},
		"version":        {func(_, b *fake) { b.statuses[0].Version = "v1.2.4" }, "warning  version: replicas differ: a has v1.2.3; b has v1.2.4", false},
		"no leader":      {func(a, _ *fake) { a.statuses[0].Leads = false }, "WRONG    leader: want one replica that leads, got 0: ", true},
		"leaders":        {func(_, b *fake) { b.statuses[0].Leads = true }, "WRONG    leader: want one replica that leads, got 2: a, b", true},
		"option":         {func(_, b *fake) { b.config.Options[0].Value = "200" }, "WRONG    configuration of b: --max-series is 200, and 100 at a", true},
		"coderd":         {func(a, _ *fake) { a.pushes.Pushers[0].Expired = true }, "warning  coderd: no coderd and no bridge pushes its families; 2 have before", false},
		"no agents":      {func(a, b *fake) { a.statuses[0].Registered, b.statuses[0].Registered = 0, 0 }, "warning  agents: none is registered", false},
		"none connected": {func(a, b *fake) { a.statuses[0].Connected, b.statuses[0].Connected = 0, 0 }, "warning  agents: 5 are registered, none is connected", false},
		"silent": {func(a, _ *fake) {
			a.statuses = append(a.statuses, asSeen(replicaStatus("c"), 90))
		}, "WRONG    heartbeat of c: it has not said how it is for 1m30s", true},
		"not asked": {func(a, _ *fake) {
			a.statuses = append(a.statuses, asSeen(replicaStatus("c"), 5))
		}, "warning  reached of c: it lives, and was not asked", false},
		"old": {func(_, b *fake) { b.statuses = nil }, "warning  status of 127.0.0.1", false},
	} {
		t.Run(name, func(t *testing.T) {
			fakes := wellDeployment()
			c.fault(fakes[0], fakes[1])
			r := run(t, "doctor", "--address", startDeployment(t, fakes))
			require.Contains(t, "\n"+r.stdout, "\n"+c.want)
			if !c.wrong {
				require.NoError(t, r.err)
				require.NotContains(t, r.stdout, "WRONG")
				return
			}
			require.ErrorContains(t, r.err, "1 of ")
			require.Equal(t, exitFault, ExitCode(r.err))
			require.Equal(t, 1, strings.Count(r.stdout, "WRONG"), r.stdout)
		})
	}
}

func TestDoctorOfTLS(t *testing.T) {
	cert, caFile := certificate(t)
	secure := wellDeployment()[0]
	startFake(t, "127.0.0.1", secure, cert)
	r := run(t, "doctor", "--address", secure.address, "--ca-file", caFile, "--server-name", "stats.example.com")
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, "warning  certificate of a: ends in 59m")
	f := &findings{}
	f.checkTLS(&examined{replica: &replica{address: address{dial: "10.0.0.1:1"}}}, time.Now())
	require.Contains(t, f.text(), "the token and all answers cross the network in the clear")
}

func TestDoctorWithoutAReplica(t *testing.T) {
	fakes := wellDeployment()
	away := freeport.Addr()
	r := run(t, "doctor", "--address", startDeployment(t, fakes)+","+away)
	require.EqualError(t, r.err, "1 of 18 checks found something wrong")
	require.Contains(t, r.stdout, "WRONG    reached of "+away+": nobody listens there")
	r = run(t, "doctor", "--address", away)
	require.Equal(t, exitNotAsked, ExitCode(r.err))
}

func TestDoctorSeries(t *testing.T) {
	const series = `x{agent_name="main",username="ada",workspace_name="dev"}`
	found := func(cause, agent, text string) *pb.Finding {
		return &pb.Finding{Cause: cause, AgentId: agent, Text: text}
	}
	answer := func(served string, findings ...*pb.Finding) *pb.ExplainSeriesResponse {
		if served == "" {
			return &pb.ExplainSeriesResponse{Findings: findings, Conclusion: "Nobody knows."}
		}
		return &pb.ExplainSeriesResponse{ServedCount: 1, Served: []string{served}, Findings: findings}
	}
	elsewhere, expired := found(causeElsewhere, "1", "The agent is at b."), found("expired", "1", "It has expired.")
	silent, unknown := found("no_report", "1", "Not connected."), found("unknown_family", "", "No such family.")
	const notAsked = "No replica that was asked serves it, and 1 could not be asked: give the --address of each."
	for name, c := range map[string]struct {
		a, b *pb.ExplainSeriesResponse
		away bool
		last string // line of what is printed
		code int
	}{
		"served":                 {answer("", elsewhere), answer(series), false, "1 series matches and is served, by b.", 0},
		"served, one away":       {answer("", elsewhere), answer(series), true, "1 series matches and is served, by b.", 0},
		"served by both":         {answer("y", elsewhere), answer("y", elsewhere), false, "2 series match and are served, by a and b.", 0},
		"served, not known to a": {answer("", unknown), answer(series), false, "1 series matches and is served, by b.", 0},
		"doubled":                {answer(series), answer(series), false, series + " is doubled: a and b serve it.", 1},
		"served, with a cause":   {answer("", elsewhere), answer(series, expired), false, "1 series matches and is served, but: It has expired.", 1},
		"cause":                  {answer("", elsewhere), answer("", silent, expired), false, "No series that matches is served: It has expired.", 1},
		"cause, one away":        {answer("", elsewhere), answer("", silent), true, "No series that matches is served: Not connected.", 1},
		"new cause":              {answer("", expired), answer("", found("eaten", "1", "The cat has it.")), false, "No series that matches is served: The cat has it.", 1},
		"elsewhere":              {answer("", elsewhere), answer("", elsewhere), false, "No series that matches is served: The agent is at b.", 1},
		"elsewhere, one away":    {answer("", elsewhere), answer("", elsewhere), true, notAsked, 2},
		"not known":              {answer("", unknown), answer("", unknown), false, "No series that matches is served: No such family.", 1},
		"not known, one away":    {answer("", unknown), answer("", unknown), true, notAsked, 2},
		"nothing":                {answer(""), answer(""), false, "Nobody knows.", 1},
	} {
		t.Run(name, func(t *testing.T) {
			fakes := wellDeployment()
			fakes[0].explained, fakes[1].explained = c.a, c.b
			addresses := startDeployment(t, fakes)
			if c.away {
				addresses += "," + freeport.Addr()
			}
			r := run(t, "doctor", "series", "x", "--address", addresses)
			require.Equal(t, c.code, ExitCode(r.err), r.err)
			lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
			require.Equal(t, c.last, lines[len(lines)-1])
			r = run(t, "doctor", "series", "x", "--json", "--address", addresses)
			var d struct {
				Conclusion string
				ExitCode   int `json:"exit_code"`
				Answers    []any
			}
			require.NoError(t, json.Unmarshal([]byte(r.stdout), &d))
			require.Equal(t, c.last, d.Conclusion)
			require.Equal(t, c.code, d.ExitCode)
			require.Len(t, d.Answers, 2)
		})
	}
	fakes := wellDeployment()
	fakes[0].explained, fakes[1].explained = answer("", expired, elsewhere), answer(series)
	expired.Remedy, elsewhere.Url = "Look at the agent.\x1b[2J", "http://b/"
	fakes[1].explained.ServedCount = 3
	r := run(t, "doctor", "series", "x", "--address", startDeployment(t, fakes))
	require.Equal(t, `a: 0 series match and are served
  expired: It has expired.
    Look at the agent.\x1b[2J
  other_replica: The agent is at b.
    http://b/

b: 3 series match and are served
  `+series+`
  and 2 more

3 series match and are served, but: It has expired.
`, r.stdout)
	require.EqualError(t, r.err, "it is not as expected")
	r = run(t, "doctor", "series", "{", "--address", addressesOf(fakes...))
	require.EqualError(t, r.err, "selector: want a name")
	require.Equal(t, exitFault, ExitCode(r.err))
}
