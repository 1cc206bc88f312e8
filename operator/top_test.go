package operator

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/internal/freeport"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// topAnswers are two replicas' answers, in which ada moves from one to the other.
func topAnswers() (a, b *pb.TopAgentsResponse) {
	a = &pb.TopAgentsResponse{At: before(0), Sending: 2, All: &pb.AgentRates{Messages: 3.456, Bytes: 1 << 20, Refused: 1}, Agents: []*pb.TopAgent{
		{Id: "1", Owner: "ada", Workspace: "dev", Name: "main", Template: "docker", Series: 30, Rates: &pb.AgentRates{Messages: 2, Bytes: 1 << 19, Refused: 1}},
		{Id: "3", Owner: "cem", Workspace: "x", Name: "main", Template: "k8s", Series: 35, Rates: &pb.AgentRates{Messages: 1.456, Bytes: 1 << 19}},
	}}
	b = &pb.TopAgentsResponse{At: before(0), Sending: 1, All: &pb.AgentRates{Messages: 1, Bytes: 10}, Agents: []*pb.TopAgent{
		{Id: "1", Owner: "ada", Workspace: "dev", Name: "main", Template: "docker", Series: 10, Rates: &pb.AgentRates{Messages: 1, Bytes: 10}},
	}}
	return a, b
}

func TestTop(t *testing.T) {
	a, b := topAnswers()
	one := startFake(t, "127.0.0.1", &fake{tops: []*pb.TopAgentsResponse{a}}, nil)
	two := startFake(t, "127.0.0.1", &fake{tops: []*pb.TopAgentsResponse{b}}, nil)
	r := run(t, "top", "--once", "--address", addressesOf(one, two))
	require.NoError(t, r.err)
	_, text, _ := strings.Cut(r.stdout, "  ")
	require.Equal(t, `3 agents send 4.46 messages/s, 1.0 MiB/s; 1 items/s are refused

AGENT         TEMPLATE  SERIES*  MESSAGES/S  BYTES/S  REFUSED/S
ada/dev.main  docker    40       3           512 KiB  1
cem/x.main    k8s       35       1.46        512 KiB  0
`, text)
	r = run(t, "top", "--once", "--by", "bytes", "--limit", "1", "--json", "--address", addressesOf(one, two))
	require.NoError(t, r.err)
	require.Equal(t, 1, strings.Count(r.stdout, "\n"))
	var d struct {
		Asked  []any
		Answer struct{ Agents []struct{ Owner string } }
	}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &d))
	require.Len(t, d.Asked, 2)
	require.Len(t, d.Answer.Agents, 1)
	require.Equal(t, "ada", d.Answer.Agents[0].Owner)
}

func TestTopOrder(t *testing.T) {
	for by, want := range map[string]string{"series": "ada", "messages": "ada", "bytes": "cem", "refused": "ada"} {
		a, b := topAnswers()
		a.Agents[0].Rates.Bytes--
		b.Agents[0].Rates.Bytes = 0
		merged := mergeTop([]*pb.TopAgentsResponse{a, b}, by, 1)
		require.Len(t, merged.GetAgents(), 1)
		require.Equal(t, want, merged.GetAgents()[0].GetOwner(), by)
	}
}

// Tables follow one another. A replica that ends is named, and the others go on.
func TestTopGoesOnWithoutAReplica(t *testing.T) {
	a, b := topAnswers()
	one := startFake(t, "127.0.0.1", &fake{tops: []*pb.TopAgentsResponse{a, a}, topEnds: true}, nil)
	r := run(t, "top", "--address", one.address)
	require.EqualError(t, r.err, one.address+": the service is stopping")
	require.Equal(t, exitNotAsked, ExitCode(r.err))
	require.Equal(t, 2, strings.Count(r.stdout, "AGENT  "))
	require.Equal(t, 1, strings.Count(r.stdout, "\n\n"+a.GetAt().AsTime().Local().Format("15:04:05")))

	two := startFake(t, "127.0.0.1", &fake{tops: []*pb.TopAgentsResponse{b}}, nil)
	away := freeport.Addr()
	r = run(t, "top", "--once", "--address", addressesOf(two)+","+away)
	require.Equal(t, exitPartial, ExitCode(r.err))
	require.Contains(t, r.stdout, "\n\n1 of 2 replicas have not answered: "+away)
}

// On a terminal a table takes the place of the one before, whose longer lines leave
// nothing behind.
func TestTopOnATerminal(t *testing.T) {
	var out bytes.Buffer
	s := &topScreen{w: &out, asked: &asked{connection: &connection{}}, by: "series", limit: 2, terminal: true}
	resp := &pb.TopAgentsResponse{At: timestamppb.Now()}
	require.NoError(t, s.show(resp))
	first := out.String()
	require.True(t, strings.HasPrefix(first, "\x1b[2J\x1b[H"), "%q", first)
	require.True(t, strings.HasSuffix(first, "REFUSED/S\x1b[K\n\x1b[J"), "%q", first)
	out.Reset()
	require.NoError(t, s.show(resp))
	require.True(t, strings.HasPrefix(out.String(), "\x1b[H"), "%q", out.String())
	require.Equal(t, 20, newTopScreen(&out, s.asked, "series", 0).limit)
}
