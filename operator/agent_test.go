package operator

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// before returns a time that long ago, and half a minute.
func before(d time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(time.Now().Add(-d - 30*time.Second))
}

const adaID = "11111111-1111-1111-1111-111111111111"

// twoReplicas are a replica that adaID is connected to, and one that it was connected to.
func twoReplicas(t *testing.T) (here, before1 *fake) {
	t.Helper()
	summary := func(series *float64, refused float64) *pb.AgentSummary {
		return &pb.AgentSummary{
			Id: adaID, Owner: "ada", Workspace: "dev", Name: "main", Template: "docker", TemplateVersion: "v1", Status: "connected", Lifecycle: "ready",
			Replica: "b", Series: series, Refused: refused,
		}
	}
	series := 30.0
	old := &pb.DescribeAgentResponse{
		Summary:      summary(nil, 4),
		Metadata:     []*pb.AgentMetadataEntry{{Key: "cpu", Value: "old"}},
		LastSessions: []*pb.AgentSession{{Instance: "0a", OpenedAt: before(3 * time.Hour), EndedAt: before(2 * time.Hour), End: "disconnect", ReceivedSequence: 9, DurableSequence: 8}},
		Refused: []*pb.Refused{
			{Reason: "wrong_type", Problem: "app_up: want gauge, got summary", Count: 3, At: before(time.Hour)},
			{Reason: "key_length", Problem: "metadata: too long", Count: 1, At: before(6 * time.Hour)},
		},
	}
	now := &pb.DescribeAgentResponse{
		Summary: summary(&series, 2), Organization: "acme", CreatedAt: before(50 * time.Hour),
		Session:      &pb.AgentSession{Instance: "0b", Epoch: "12", OpenedAt: before(2 * time.Hour), Version: "v2", ReceivedSequence: 120, DurableSequence: 118},
		LastSessions: []*pb.AgentSession{{Instance: "0b", OpenedAt: before(4 * time.Hour), EndedAt: before(3 * time.Hour), End: "goodbye"}},
		Metadata:     []*pb.AgentMetadataEntry{{Key: "cpu", Value: "12 %", CollectedAt: before(time.Hour), Pending: true}, {Key: "disk", Error: "exit 1\n\x1b[31m"}},
		Series:       []*pb.NamedCount{{Name: "app_requests_total", Count: 20}, {Name: "app_up", Count: 10}},
		Refused:      []*pb.Refused{{Reason: "wrong_type", Problem: "app_up: want gauge, got counter", Names: []string{"app_up"}, Count: 2, At: before(5 * time.Hour)}},
		Apps:         []*pb.AgentApp{{Slug: "code", DisplayName: "VS Code", Health: "healthy"}},
	}
	a := startFake(t, "127.0.0.1", &fake{
		statuses: []*pb.ReplicaStatus{replicaStatus("a")}, agents: []*pb.AgentSummary{old.GetSummary()},
		described: map[string]*pb.DescribeAgentResponse{"ada/dev": old, adaID: old},
	}, nil)
	b := startFake(t, "127.0.0.1", &fake{
		statuses: []*pb.ReplicaStatus{replicaStatus("b")}, agents: []*pb.AgentSummary{now.GetSummary(), {Id: "2", Owner: "ada", Workspace: "dev2", Name: "main"}},
		described: map[string]*pb.DescribeAgentResponse{"ada/dev": now, adaID: now},
		events: []*pb.WatchAgentResponse{
			{At: before(0), Kind: "stats", Sequence: 121, Text: "30 samples"},
			{At: before(0), Kind: "metadata", Sequence: 122, Text: "cpu\x1b[2J", Missed: 3},
		},
	}, nil)
	return b, a
}

func TestAgent(t *testing.T) {
	here, there := twoReplicas(t)
	for _, order := range [][]*fake{{there, here}, {here, there}} {
		r := run(t, "agent", "ada/dev", "--address", addressesOf(order...))
		require.NoError(t, r.err)
		require.Equal(t, `agent         ada/dev.main
id            11111111-1111-1111-1111-111111111111
status        connected, ready
template      docker v1
organization  acme
made          2d2h ago
last seen     never by the replicas that were asked
replica       b
session       opened 2h ago, instance 0b, epoch 12, received up to 120, durable up to 118, version v2
series        30
refused       6

METADATA  VALUE  ERROR             COLLECTED  PENDING
cpu       12 %                     1h ago     a newer one
disk             exit 1\n\x1b[31m

FAMILY              SERIES
app_requests_total  20
app_up              10

REFUSED     ITEMS  LAST    PROBLEM                          NAMES
wrong_type  5      1h ago  app_up: want gauge, got summary
key_length  1      6h ago  metadata: too long

APP   NAME     HEALTH
code  VS Code  healthy

SESSION BEFORE  ENDED   BY          INSTANCE  VERSION  RECEIVED  DURABLE
opened 3h ago   2h ago  disconnect  0a                 9         8
opened 4h ago   3h ago  goodbye     0b                 0         0
`, r.stdout)
	}

	r := run(t, "agent", "ada/other", "--address", addressesOf(there, here))
	require.EqualError(t, r.err, "agent: no agent is named so")
	require.Equal(t, exitFault, ExitCode(r.err))
	r = run(t, "agent", "ada/many", "--address", addressesOf(there, here))
	require.EqualError(t, r.err, `agent: may be each of 2: ada/many.a\x1b[2J, ada/many.b\n`, "nothing of it reaches the terminal as a command")
	r = run(t, "agent")
	require.EqualError(t, r.err, "agent takes one agent, got 0 arguments: see --help")
}

// An agent that one replica only knows is known.
func TestAgentOfOneReplica(t *testing.T) {
	here, _ := twoReplicas(t)
	there := startFake(t, "127.0.0.1", &fake{statuses: []*pb.ReplicaStatus{replicaStatus("c")}}, nil)
	r := run(t, "agent", "ada/dev", "--address", addressesOf(there, here))
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, "agent         ada/dev.main\n")
}

func TestMetadata(t *testing.T) {
	here, there := twoReplicas(t)
	want := `ada/dev.main, connected
METADATA  VALUE  ERROR             COLLECTED  PENDING
cpu       12 %                     1h ago     a newer one
disk             exit 1\n\x1b[31m
`
	r := run(t, "metadata", "ada/dev", "--address", addressesOf(there, here))
	require.NoError(t, r.err)
	require.Equal(t, want, r.stdout)
	require.Equal(t, "ada", here.searches[0].GetOwner())
	r = run(t, "metadata", adaID, "--address", addressesOf(here))
	require.NoError(t, r.err)
	require.Equal(t, want, r.stdout)

	r = run(t, "metadata", "ada/dev", "--json", "--address", addressesOf(here))
	require.NoError(t, r.err)
	var d struct {
		Answers []struct {
			Metadata []struct{ Key, Value string }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &d))
	require.Equal(t, "12 %", d.Answers[0].Metadata[0].Value)

	r = run(t, "metadata", "ada/de", "--address", addressesOf(here))
	require.EqualError(t, r.err, "no workspace with agents is named so: agentstatsd agents --owner ada lists those of its owner")
}

// What the database does not say is not taken for nothing.
func TestMetadataThatIsNotKnown(t *testing.T) {
	here, _ := twoReplicas(t)
	here.described[adaID].Metadata = nil
	here.described[adaID].MetadataProblem = "the database\x1b[2J cannot be used now"
	problem := "stored metadata is not known: the database\\x1b[2J cannot be used now\n"
	r := run(t, "metadata", "ada/dev", "--address", here.address)
	require.NoError(t, r.err)
	require.Equal(t, "ada/dev.main, connected\n"+problem, r.stdout)
	r = run(t, "deregister", "ada/dev", "--dry-run", "--address", here.address)
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, "not known")

	here.described[adaID].Metadata = []*pb.AgentMetadataEntry{{Key: "cpu", Pending: true}}
	r = run(t, "agent", "ada/dev", "--address", here.address)
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, "a newer one\n"+problem)
}

func TestWatch(t *testing.T) {
	here, _ := twoReplicas(t)
	there := startFake(t, "127.0.0.1", &fake{statuses: []*pb.ReplicaStatus{replicaStatus("c")}}, nil) // does not know it yet
	r := run(t, "watch", "ada/dev", "--address", addressesOf(there, here))
	require.NoError(t, r.err)
	at := here.events[0].GetAt().AsTime().Local().Format("15:04:05.000")
	at2 := here.events[1].GetAt().AsTime().Local().Format("15:04:05.000")
	require.Equal(t, at+"  b  stats       121  30 samples\n"+
		"(3 events were missed, as this is slower than the agent)\n"+
		at2+"  b  metadata    122  cpu\\x1b[2J\n", r.stdout)

	r = run(t, "watch", "ada/dev", "--json", "--address", addressesOf(here))
	require.NoError(t, r.err)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	require.Len(t, lines, 2)
	var d struct {
		Replica string
		Event   struct{ Sequence float64 }
	}
	require.NoError(t, json.Unmarshal([]byte(lines[1]), &d))
	require.Equal(t, "b", d.Replica)
	require.Equal(t, 122.0, d.Event.Sequence)

	here.watched = true
	r = run(t, "watch", "ada/dev", "--for", "200ms", "--address", addressesOf(here))
	require.NoError(t, r.err)

	r = run(t, "watch", "ada/other", "--address", addressesOf(there, here))
	require.EqualError(t, r.err, "agent: no agent is named so")
	require.Equal(t, exitFault, ExitCode(r.err))
}

func TestDeregister(t *testing.T) {
	here, there := twoReplicas(t)
	what := `AGENT         ID                                    TEMPLATE  STATUS     SESSION  SERIES  METADATA  SEEN
ada/dev.main  11111111-1111-1111-1111-111111111111  docker    connected  open b   30      2 keys
`
	r := run(t, "deregister", "ada/dev", adaID, "--dry-run", "--address", addressesOf(there, here))
	require.NoError(t, r.err)
	require.Equal(t, what+"nothing was changed: --dry-run\n", r.stdout)
	r = run(t, "deregister", "ada/dev", "--address", addressesOf(there, here))
	require.EqualError(t, r.err, "nobody can be asked here: give --yes, or --dry-run to change nothing")
	r = run(t, "deregister", "ada/dev", "ada/other", "--yes", "--address", addressesOf(there, here))
	require.EqualError(t, r.err, "ada/other: agent: no agent is named so")
	require.Empty(t, there.deregistered)

	r = run(t, "deregister", "ada/dev", "--yes", "--address", addressesOf(there, here))
	require.NoError(t, r.err)
	require.Equal(t, what+"1 of 1 agents were deregistered\n", r.stdout)
	require.Len(t, there.deregistered, 1)
	require.Equal(t, byte(0x11), there.deregistered[0][0])
	require.Empty(t, here.deregistered, "one replica tells the others")

	r = run(t, "deregister", "ada/dev", "--yes", "--json", "--address", addressesOf(here))
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, `"deregistered": 1`)
	r = run(t, "deregister")
	require.EqualError(t, r.err, "deregister takes agents, got none: see --help")
}

func TestAskYes(t *testing.T) {
	for text, yes := range map[string]bool{"yes\n": true, "yes": true, "yes\r\n": true, "y\n": false, "": false, "no\nyes\n": false} {
		var out strings.Builder
		err := askYes(strings.NewReader(text), &out, "Sure? ")
		require.Equal(t, yes, err == nil, "%q", text)
		require.Equal(t, "Sure? ", out.String())
	}
}

func TestDrain(t *testing.T) {
	here, there := twoReplicas(t)
	r := run(t, "drain", "--address", here.address)
	require.NoError(t, r.err)
	require.Equal(t, "b drains: 7 streams of agents were open\n", r.stdout)
	r = run(t, "drain", "--undo", "--address", here.address)
	require.NoError(t, r.err)
	require.Equal(t, "b takes agents again\n", r.stdout)
	require.Equal(t, []bool{true, false}, here.draining)

	r = run(t, "drain", "--address", addressesOf(here, there))
	require.EqualError(t, r.err, "want the --address of one replica, got 2: "+here.address+" b, "+there.address+" a")
	require.Len(t, here.draining, 2)
}
