package edgetest

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Day is past, also where time begins in 2000: within testing/synctest.
var Day = time.Date(1999, 12, 31, 12, 0, 0, 0, time.UTC)

// ID is the nth id.
func ID(n int) uuid.UUID {
	var id uuid.UUID
	id[0], id[13], id[14], id[15] = 1, byte(n>>16), byte(n>>8), byte(n)
	return id
}

// IDBytes is the nth id as messages have it.
func IDBytes(n int) []byte { id := ID(n); return id[:] }

// IDsBytes are the ids of these numbers as messages have them.
func IDsBytes(numbers ...int) [][]byte {
	var ids [][]byte
	for _, n := range numbers {
		ids = append(ids, IDBytes(n))
	}
	return ids
}

// Token is that of agent n.
func Token(n int) string { return fmt.Sprintf("token of agent %d", n) }

// TokenHash is the hash of a token, as registrations have it.
func TokenHash(token string) []byte {
	hash := sha256.Sum256([]byte(token))
	return hash[:]
}

// Registration is that of agent n in its own workspace.
func Registration(n int) *pb.AgentRegistration {
	return &pb.AgentRegistration{
		Id:                IDBytes(n),
		Name:              "main",
		CreatedAt:         timestamppb.New(Day),
		ConnectionTimeout: durationpb.New(time.Minute),
		TokenSha256:       TokenHash(Token(n)),
		Workspace:         Workspace(n),
		Apps:              []*pb.App{{Id: IDBytes(50_000 + n), Slug: "code", DisplayName: "code", Health: pb.AppHealth_APP_HEALTH_INITIALIZING}},
	}
}

// Workspace is that of agent n.
func Workspace(n int) *pb.Workspace {
	return &pb.Workspace{
		Id: IDBytes(10_000 + n), Name: fmt.Sprint("ws", n), OwnerId: IDBytes(20_000), OwnerUsername: "ada",
		Template:         &pb.Template{Id: IDBytes(30_000), Name: "docker", Version: "v1"},
		OrganizationName: "acme",
		Build:            &pb.Build{Id: IDBytes(40_000 + n), CreatedAt: timestamppb.New(Day), Transition: pb.Build_TRANSITION_START},
	}
}

// Rebuilt makes r that of agent id, of a build an hour later.
func Rebuilt(r *pb.AgentRegistration, id int) *pb.AgentRegistration {
	r.Id = IDBytes(id)
	r.TokenSha256 = TokenHash(Token(id))
	r.CreatedAt = timestamppb.New(Day.Add(time.Hour))
	r.Workspace.Build.Id = IDBytes(41_000)
	r.Workspace.Build.CreatedAt = timestamppb.New(Day.Add(time.Hour))
	return r
}

// Session is what a hello says of itself.
type Session struct {
	// Agent has ID(Agent) and Token(Agent). Only Connect reads it.
	Agent int
	// Instance of the agent; 0: 1.
	Instance byte
	// Number counts the sessions of the instance; 0: 1.
	Number int64
	// Unnumbered: the instance does not count its sessions.
	Unnumbered bool
}

// Hello is the first request of a session.
func Hello(session Session) *pb.ConnectRequest {
	id := make([]byte, 16)
	id[0] = cmp.Or(session.Instance, 1)
	number := cmp.Or(session.Number, 1)
	if session.Unnumbered {
		number = 0
	}
	return &pb.ConnectRequest{Hello: &pb.Hello{InstanceId: id, ProtocolVersion: 1, Session: number}}
}

// Stats is a report.
func Stats(s *pb.Stats) *pb.ConnectRequest {
	return &pb.ConnectRequest{Stats: s}
}

// Gauge is a report of one gauge.
func Gauge(name string, value float64) *pb.Stats {
	return &pb.Stats{Metrics: []*pb.Stats_Metric{{Name: name, Type: pb.Stats_Metric_TYPE_GAUGE, Value: value}}}
}

// Metadata is a report of keys, each with its value behind it.
func Metadata(pairs ...string) *pb.ConnectRequest {
	report := &pb.MetadataReport{}
	for i := 0; i < len(pairs); i += 2 {
		report.Metadata = append(report.Metadata, &pb.Metadata{Key: pairs[i], Result: &pb.Metadata_Result{Value: pairs[i+1]}})
	}
	return &pb.ConnectRequest{Metadata: report}
}

// Lifecycle is a report of a state.
func Lifecycle(state pb.Lifecycle_State) *pb.ConnectRequest {
	return &pb.ConnectRequest{Lifecycle: &pb.Lifecycle{State: state}}
}

// Goodbye is the last request of an instance.
func Goodbye() *pb.ConnectRequest {
	return &pb.ConnectRequest{Goodbye: &pb.Goodbye{}}
}
