package integration

import (
	"context"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// The agents of the faulty fleet.
const (
	greedyAgent  = iota // sends more series than it may
	wrongAgent          // has a bad name
	steadyAgent         // is well, and has metadata
	doubledAgent        // the first of those whose template doubles
	awayAgent    = doubledAgent + 3
	fleetAgents  = awayAgent + 1
)

// faultyFleet is a service whose agents, descriptors and certificate are at fault.
type faultyFleet struct {
	*service
	certs  *certificates
	asking []string // options of the commands that ask it
	conn   *grpc.ClientConn
	agents map[int]pb.AgentService_ConnectClient
	sent   map[int]int64 // sequences
}

// startFaultyFleet starts the service, and has the agents report for the first time.
func startFaultyFleet(t *testing.T) *faultyFleet {
	f := &faultyFleet{certs: newCertificates(t), agents: make(map[int]pb.AgentService_ConnectClient), sent: make(map[int]int64)}
	f.certs.age = 10 * time.Hour // of 11
	f.certs.renew()
	f.service = newService(t, "--max-series-per-agent", "1000", "--series-ttl", "10m",
		"--tls-cert-file", f.certs.path("tls.crt"), "--tls-key-file", f.certs.path("tls.key"))
	f.files = 64
	f.start(t)
	f.asking = []string{"--address", f.grpcAddr, "--ca-file", f.certs.path("ca.pem"), "--server-name", "localhost", "--token-file", f.tokenFile()}

	token, err := os.ReadFile(f.tokenFile())
	require.NoError(t, err)
	f.conn, err = target{GRPC: f.grpcAddr, TLS: true}.dial()
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.conn.Close() })
	request := &pb.RegisterAgentsRequest{}
	for n := range fleetAgents {
		owner := "steady"
		switch n {
		case greedyAgent:
			owner = "greedy"
		case wrongAgent:
			owner = "wrong"
		}
		registration := registrationOf(owner, n)
		if n >= doubledAgent && n < awayAgent {
			registration.Workspace.Template.Name, registration.Workspace.Template.Id = "doubled", idOf('t', 2)
		}
		request.Agents = append(request.Agents, registration)
	}
	_, err = pb.NewCoderdServiceClient(f.conn).RegisterAgents(withToken(t.Context(), strings.TrimSpace(string(token))), request)
	require.NoError(t, err)
	for n := range awayAgent {
		f.agents[n], err = openSession(t.Context(), f.conn, n)
		require.NoError(t, err)
		f.report(t, n, 100)
	}
	return f
}

// report has an agent send series, and waits for its ack.
func (f *faultyFleet) report(t *testing.T, n, series int) {
	t.Helper()
	stats := &pb.Stats{}
	for i := range series {
		stats.Metrics = append(stats.Metrics, gauge("app_series", "n", fmt.Sprint(i)))
	}
	f.send(t, n, &pb.ConnectRequest{Stats: stats})
}

func (f *faultyFleet) send(t *testing.T, n int, request *pb.ConnectRequest) {
	t.Helper()
	f.sent[n]++
	request.Sequence, request.AckNow = f.sent[n], true
	require.NoError(t, f.agents[n].Send(request))
	for acked := int64(0); acked < f.sent[n]; {
		resp, err := f.agents[n].Recv()
		require.NoError(t, err)
		acked = max(acked, resp.GetAck().GetReceivedSequence())
	}
}

// exhaust holds connections until the process has no descriptors for more, and then
// closes them.
func (f *faultyFleet) exhaust(t *testing.T) {
	t.Helper()
	var held []net.Conn
	for range 100 {
		conn, err := net.Dial("tcp", f.httpAddr)
		require.NoError(t, err)
		held = append(held, conn)
	}
	awaitLine(t, f.service, `msg="connections cannot be accepted, trying again" listener=prometheus`)
	closeAll(held)
	awaitLine(t, f.service, `msg="connections are accepted again" listener=prometheus`)
}

// mixUp has the files of the certificate be those of two.
func (f *faultyFleet) mixUp(t *testing.T) {
	t.Helper()
	key, err := os.ReadFile(f.certs.path("tls.key"))
	require.NoError(t, err)
	f.certs.renew()
	require.NoError(t, os.WriteFile(f.certs.path("tls.key"), key, 0o600))
}

// command returns what a command prints. Those that find a fault end with exit code 1.
func (f *faultyFleet) command(ctx context.Context, args []string) string {
	out, _ := exec.CommandContext(ctx, binary, append(args, f.asking...)...).CombinedOutput()
	return string(out)
}

var (
	betweenTags = regexp.MustCompile(`<[^>]*>`)
	spaces      = regexp.MustCompile(`\s+`)
)

// page returns the text of a page, as people see it, in one line.
func (f *faultyFleet) page(path string) (string, error) {
	resp, err := f.get(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return spaces.ReplaceAllString(html.UnescapeString(betweenTags.ReplaceAllString(string(body), " ")), " "), err
}

// question is one that operators have. One command answers it, and so does one page.
type question struct {
	text    string
	command []string
	prints  []string // regular expressions
	page    string
	shows   []string
}

// await waits until the page and the command answer. The page is asked first: it takes less.
func (f *faultyFleet) await(t *testing.T, limit time.Duration, q question) {
	t.Helper()
	lacks := func(text string, want []string) (lacking []string) {
		for _, w := range want {
			if !regexp.MustCompile("(?m)" + w).MatchString(text) {
				lacking = append(lacking, w)
			}
		}
		return lacking
	}
	await(t, limit, q.text+" (the page)", func() (bool, string) {
		text, err := f.page(q.page)
		lacking := lacks(text, q.shows)
		return err == nil && len(lacking) == 0, fmt.Sprintf("%s lacks %q: %v: %s", q.page, lacking, err, text)
	})
	await(t, limit, q.text+" (the command)", func() (bool, string) {
		out := f.command(t.Context(), q.command)
		lacking := lacks(out, q.prints)
		return len(lacking) == 0, fmt.Sprintf("%q lacks %q: %s", q.command, lacking, out)
	})
}

// Of a fleet with five faults each question is answered by one command, and on one page.
func TestFaultyFleet(t *testing.T) {
	parallel(t) // most of it waits for the growth, which is measured once a minute
	f := startFaultyFleet(t)
	f.report(t, greedyAgent, 1500)
	f.send(t, wrongAgent, &pb.ConnectRequest{Stats: &pb.Stats{Metrics: []*pb.Stats_Metric{gauge("bad-name")}}})
	f.send(t, steadyAgent, &pb.ConnectRequest{Metadata: &pb.MetadataReport{Metadata: []*pb.Metadata{{Key: "k", Result: &pb.Metadata_Result{Value: "v"}}}}})
	f.exhaust(t)
	f.mixUp(t)
	f.scrape(t, "/metrics")

	wrongID := uuid.UUID(idOf('a', wrongAgent)).String()
	const (
		short   = `descriptors: the listener prometheus could not accept connections, [1-9]\d* times .* as the process may open 64 files`
		mixedUp = `the files cannot be used, those before are: .*the private key in .* is not that of the certificate in `
		soon    = `the certificate expires soon, at `
		tooMany = `app_series would exceed the agent's 1000 series \(--max-series-per-agent\), its report has 1500`
		badName = `1 .* sample name "bad-name" is not like \[a-zA-Z_:\]\[a-zA-Z0-9_:\]\* +bad-name`
		missing = `No series that matches is served: [Aa]gent greedy/workspace-0.main is refused series`
	)
	for _, q := range []question{
		{
			"which agent sends too much",
			[]string{"cardinality", "--by", "agent"}, []string{`GROWTH/MIN\ngreedy/workspace-0.main +1007 +\d\d.\d %`},
			"/status/cardinality?by=agent", []string{`Growth a minute greedy/workspace-0.main 1,007 \d\d.\d %`},
		},
		{
			"why was a sample of this agent refused",
			[]string{"agent", "wrong/workspace-1"}, []string{`^invalid_name +` + badName},
			"/status/agents/" + wrongID, []string{`Refused, the newest first Reason .* invalid name ` + badName},
		},
		{
			"which agents are refused most",
			[]string{"refusals"}, []string{`^greedy/workspace-0.main +docker +too_many_agent_series +500 .*` + tooMany, `^wrong/workspace-1.main +docker +invalid_name +1 `},
			"/status/refusals", []string{`greedy/workspace-0.main docker – too many agent series 500 .* ` + tooMany, `wrong/workspace-1.main docker – invalid name 1 `},
		},
		{
			"is the process short of descriptors",
			[]string{"status"}, []string{`^\S+: ` + short},
			"/status", []string{`Ready, with warnings .* Warning ` + short},
		},
		{
			"is a certificate wrong, or near its end",
			[]string{"doctor"}, []string{`^warning  warnings of .*` + mixedUp, `^warning  warnings of .*` + soon, `^warning  certificate of .*: ends in 5\dm`},
			"/status", []string{`Warning [^W]*` + mixedUp, `Warning [^W]*` + soon, `Certificates .* grpc server \S+Z 5\d min`},
		},
		{
			"is what was sent durable",
			[]string{"doctor"}, []string{`^ok       durability of .*: 1 entries of metadata came in, and what became of them adds up$`, `^ok       pending of .*: 0 entries wait`},
			"/status/durability", []string{`Received = Coalesced \+ Flushed \+ Unchanged \+ Dropped \+ Pending Adds up \S+ 1 0 1 0 0 0 yes`},
		},
		{
			"who is connected",
			[]string{"agents"}, []string{`^steady/workspace-2.main +docker +connected `, `^steady/workspace-6.main +docker +connecting `},
			"/status/agents", []string{`workspace-2.main steady docker connected `, `workspace-6.main steady docker connecting `},
		},
		{
			"which settings are in force, and where were they set",
			[]string{"config"}, []string{`^--max-series-per-agent +1000 +\d+ +flag +reload +all$`},
			"/status/config?show=changed", []string{`--max-series-per-agent AGENTSTATSD_MAX_SERIES_PER_AGENT 1000 \d+ flag reload`},
		},
		{
			"why is this series missing",
			[]string{"doctor", "series", `app_series{username="greedy",n="1400"}`}, []string{`^  over_limit: .*` + tooMany, `^` + missing},
			"/status/explain?selector=" + url.QueryEscape(`app_series{username="greedy",n="1400"}`), []string{`Conclusion ` + missing, `Over limit .*` + tooMany},
		},
	} {
		f.await(t, 20*time.Second, q)
	}

	template := question{
		"which template grew",
		[]string{"cardinality", "--by", "template"}, []string{`^doubled +321 +\S+ % +\S`},
		"/status/cardinality?by=template", []string{`doubled 321 \S+ % \d`},
	}
	f.await(t, 90*time.Second, template) // until the second count of each minute is there
	for n := doubledAgent; n < awayAgent; n++ {
		f.report(t, n, 200)
	}
	template.prints = []string{`^doubled +621 +\S+ % +[1-3]\d\d`, `^docker +\d+ +\S+ % +0$`}
	template.shows = []string{`doubled 621 \S+ % [1-3]\d\d`, `docker [\d,]+ \S+ % 0 `}
	f.await(t, 90*time.Second, template)
}
