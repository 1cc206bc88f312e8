package clienttest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// startCoderd starts the real service and coderd's side.
func startCoderd(t *testing.T) (*service, *client.Coderd) {
	t.Helper()
	s := startService()
	conn := s.conn(coderdToken)
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{Backoff: client.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		s.close()
	})
	return s, coderd
}

// registrations makes n agents, one a workspace.
func registrations(n int) []*agentstatsv1.AgentRegistration {
	all := make([]*agentstatsv1.AgentRegistration, n)
	for i := range all {
		r := proto.CloneOf(registration())
		id := uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i))
		hash := sha256.Sum256(id[:])
		r.Id, r.TokenSha256, r.Workspace.Id = id[:], hash[:], id[:]
		r.Workspace.Name = fmt.Sprintf("w%d", i)
		r.Apps = nil
		all[i] = r
	}
	return all
}

func listed(t *testing.T, c *client.Coderd) int {
	t.Helper()
	var ids []string
	for agent, err := range c.Agents(t.Context()) {
		require.NoError(t, err)
		ids = append(ids, string(agent.GetId()))
	}
	require.True(t, slices.IsSorted(ids))
	require.Len(t, slices.Compact(slices.Clone(ids)), len(ids), "each agent once")
	return len(ids)
}

func TestCoderdRegistersInParts(t *testing.T) {
	_, coderd := startCoderd(t)
	all := registrations(2500)
	done, err := coderd.Register(t.Context(), all, []*agentstatsv1.Workspace{registration().GetWorkspace()})
	require.NoError(t, err)
	require.Equal(t, client.Registered{}, done)
	require.Equal(t, 2500, listed(t, coderd), "more than two pages")

	// A newer build supersedes, an older one is stale.
	newer := proto.CloneOf(all[0])
	newer.Id = agentID[:]
	newer.Workspace.Build.Id = agentID[:]
	newer.Workspace.Build.CreatedAt = timestamppb.New(newer.GetWorkspace().GetBuild().GetCreatedAt().AsTime().Add(time.Hour))
	done, err = coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{newer}, nil)
	require.NoError(t, err)
	require.Equal(t, client.Registered{Superseded: []uuid.UUID{uuid.UUID(all[0].GetId())}}, done)
	done, err = coderd.Register(t.Context(), all[:1], nil)
	require.NoError(t, err)
	require.Equal(t, client.Registered{Stale: []uuid.UUID{uuid.UUID(all[0].GetId())}}, done)

	var ids []uuid.UUID
	for _, r := range all[:1500] {
		ids = append(ids, uuid.UUID(r.GetId()))
	}
	n, err := coderd.Deregister(t.Context(), ids, []uuid.UUID{uuid.UUID(all[2000].GetWorkspace().GetId())})
	require.NoError(t, err)
	require.Equal(t, int64(1499+1), n)
	require.Equal(t, 1000, listed(t, coderd))
}

func TestCoderdSyncs(t *testing.T) {
	s, coderd := startCoderd(t)
	all := registrations(2500)
	resp, err := coderd.Sync(t.Context(), all, nil, client.SyncOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(2500), resp.GetRegistered())
	_, err = coderd.Sync(t.Context(), all[:10], nil, client.SyncOptions{})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), err)
	require.Equal(t, 2500, listed(t, coderd))
	resp, err = coderd.Sync(t.Context(), all[:10], nil, client.SyncOptions{Force: true})
	require.NoError(t, err)
	require.Equal(t, int64(2490), resp.GetDeregistered())
	require.Equal(t, 10, listed(t, coderd))

	conn := s.conn("not coderd's")
	defer closeConn(t, conn)
	stranger, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	_, err = stranger.Sync(t.Context(), all, nil, client.SyncOptions{})
	require.Equal(t, codes.Unauthenticated, status.Code(err), "the reason, although the stream ends early: %v", err)
}

// A sync of a set that was read before removes nothing that was registered since.
func TestCoderdSyncsWhatItReadBefore(t *testing.T) {
	_, coderd := startCoderd(t)
	all := registrations(3)
	_, err := coderd.Register(t.Context(), all[:2], nil)
	require.NoError(t, err)
	readAt := time.Now()
	_, err = coderd.Register(t.Context(), all[2:], nil)
	require.NoError(t, err)
	resp, err := coderd.Sync(t.Context(), all[:2], nil, client.SyncOptions{ReadAt: readAt})
	require.NoError(t, err)
	require.Zero(t, resp.GetDeregistered())
	require.Equal(t, 3, listed(t, coderd))
	resp, err = coderd.Sync(t.Context(), all[:2], nil, client.SyncOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(1), resp.GetDeregistered())
}

// Workspaces that could not be read stay. However many they are, the messages fit.
func TestCoderdSyncsAllButSome(t *testing.T) {
	s, _ := startCoderd(t)
	conn, err := client.Dial("passthrough:///service", client.DialOptions{Plaintext: true, Token: coderdToken},
		grpc.WithContextDialer(s.dial), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(300<<10)))
	require.NoError(t, err)
	defer closeConn(t, conn)
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	all := registrations(3)
	_, err = coderd.Register(t.Context(), all, nil)
	require.NoError(t, err)
	kept := make([]uuid.UUID, 20_000)
	for i := range kept {
		kept[i] = uuid.UUID(all[2].GetWorkspace().GetId())
	}
	resp, err := coderd.Sync(t.Context(), all[:1], nil, client.SyncOptions{KeepWorkspaces: kept})
	require.NoError(t, err)
	require.Equal(t, int64(1), resp.GetDeregistered())
	require.Equal(t, 2, listed(t, coderd))
}

// A registration that is not valid is named, and hinders no other one, in whichever
// part it is.
func TestCoderdRegistersTheOthers(t *testing.T) {
	s, _ := startCoderd(t)
	logged, log := newLog()
	conn := s.conn(coderdToken)
	defer closeConn(t, conn)
	c, err := client.NewCoderd(conn, client.CoderdOptions{Logger: log})
	require.NoError(t, err)
	all := registrations(2500)
	all[3].Name, all[2400].CreatedAt = "", nil
	done, err := c.Register(t.Context(), all, nil)
	require.NoError(t, err)
	require.Len(t, done.Refused, 2)
	require.Equal(t, all[3].GetId(), done.Refused[0].GetAgentId())
	require.Equal(t, all[2400].GetId(), done.Refused[1].GetAgentId())
	require.Equal(t, "created_at", done.Refused[1].GetField())
	require.Equal(t, 2498, listed(t, c))

	resp, err := c.Sync(t.Context(), all, nil, client.SyncOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(2), resp.GetRefusedCount())
	require.Equal(t, 2498, listed(t, c))
	require.Len(t, logged.with("registrations are refused"), 2)
}

// A text that is not UTF-8 cannot be sent. Its registration is refused by name, and a sync
// keeps what is known of its agent.
func TestCoderdRegistersTheOthersOfTextThatIsNotUTF8(t *testing.T) {
	_, c := startCoderd(t)
	all := registrations(5)
	bad := append(slices.Clone(all[:3]), proto.CloneOf(all[3]))
	bad[3].Workspace.OwnerUsername = "\xff"
	workspace := &agentstatsv1.Workspace{Id: agentID[:], Name: "\xff"}
	done, err := c.Register(t.Context(), bad, []*agentstatsv1.Workspace{workspace})
	require.NoError(t, err)
	require.Len(t, done.Refused, 2)
	require.Equal(t, all[3].GetId(), done.Refused[0].GetAgentId())
	require.Equal(t, "workspace.owner_username: want UTF-8", done.Refused[0].GetField()+": "+done.Refused[0].GetMessage())
	require.Equal(t, agentID[:], done.Refused[1].GetWorkspaceId())
	require.Equal(t, "name: want UTF-8", done.Refused[1].GetField()+": "+done.Refused[1].GetMessage())
	require.Equal(t, 3, listed(t, c))

	_, err = c.Register(t.Context(), all, nil)
	require.NoError(t, err)
	resp, err := c.Sync(t.Context(), bad, nil, client.SyncOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(1), resp.GetDeregistered(), "the fifth")
	require.Equal(t, "workspace.owner_username: want UTF-8", resp.GetRefused()[0].GetField()+": "+resp.GetRefused()[0].GetMessage())
}

func TestCoderdReadsMetadata(t *testing.T) {
	_, coderd := startCoderd(t)
	all := registrations(150)
	_, err := coderd.Register(t.Context(), all, nil)
	require.NoError(t, err)
	var ids []uuid.UUID
	var relayed []*client.Agent
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer running.Wait()
	defer cancel()
	for _, r := range all {
		id := uuid.UUID(r.GetId())
		ids = append(ids, id)
		agent, err := coderd.Relay(id, client.AgentOptions{})
		require.NoError(t, err)
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: id.String()}))
		running.Go(func() { _ = agent.Run(ctx) })
		relayed = append(relayed, agent)
	}
	for _, agent := range relayed {
		require.NoError(t, agent.Flush(ctx))
	}
	agents, err := coderd.Metadata(t.Context(), append(ids, agentID)...)
	require.NoError(t, err)
	require.Len(t, agents, 150, "the unknown one is left out")
	for i, a := range agents {
		require.Equal(t, ids[i][:], a.GetAgentId())
		require.Equal(t, ids[i].String(), a.GetValues()[0].GetValue())
	}
}

// fakeMetadata has agents with as much metadata as they may have.
type fakeMetadata struct {
	agentstatsv1.UnimplementedCoderdServiceServer
	requested []int
	busy      bool
}

// GetMetadata answers as the service does.
func (f *fakeMetadata) GetMetadata(_ context.Context, req *agentstatsv1.GetMetadataRequest) (*agentstatsv1.GetMetadataResponse, error) {
	f.requested = append(f.requested, len(req.GetAgentIds()))
	if f.busy {
		return nil, grpcserver.Exhausted(time.Second, "busy")
	}
	resp := &agentstatsv1.GetMetadataResponse{}
	for _, id := range req.GetAgentIds() {
		value := &agentstatsv1.MetadataValue{Key: strings.Repeat("k", 1024), Value: strings.Repeat("v", 2048), Error: strings.Repeat("e", 2048)}
		resp.Agents = append(resp.Agents, &agentstatsv1.AgentMetadata{AgentId: id, Values: slices.Repeat([]*agentstatsv1.MetadataValue{value}, 256)})
	}
	if proto.Size(resp) > 4<<20 {
		return nil, status.Error(codes.ResourceExhausted, "agent_ids: ask for fewer agents at once")
	}
	return resp, nil
}

// Agents whose metadata is larger than a message are read in as many requests as that
// takes. A busy service is asked once.
func TestCoderdReadsMuchMetadata(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake := &fakeMetadata{}
		n := newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterCoderdServiceServer(s, fake) })
		defer n.stop()
		conn, err := client.Dial("passthrough:///x", client.DialOptions{Plaintext: true}, grpc.WithContextDialer(n.dial))
		require.NoError(t, err)
		defer closeConn(t, conn)
		coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
		require.NoError(t, err)
		var ids []uuid.UUID
		for _, r := range registrations(20) {
			ids = append(ids, uuid.UUID(r.GetId()))
		}
		agents, err := coderd.Metadata(t.Context(), ids...)
		require.NoError(t, err)
		require.Len(t, agents, 20)
		for i, a := range agents {
			require.Equal(t, ids[i][:], a.GetAgentId())
		}
		require.Equal(t, []int{20, 10, 5, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2}, fake.requested)
		fake.busy, fake.requested = true, nil
		_, err = coderd.Metadata(t.Context(), ids...)
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.Equal(t, []int{20}, fake.requested)
	})
}

// A watch goes on over a restart of the service: it sees the current values
// again, and then what changes.
func TestCoderdWatchResynchronises(t *testing.T) {
	s, coderd := startCoderd(t)
	_, err := coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	agent, err := coderd.Relay(agentID, client.AgentOptions{Backoff: client.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}})
	require.NoError(t, err)
	running.Go(func() { _ = agent.Run(ctx) })
	require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: "1"}))
	require.NoError(t, agent.Flush(ctx))

	seen := make(chan string)
	running.Go(func() {
		err := coderd.WatchMetadata(ctx, []uuid.UUID{agentID}, func(r *agentstatsv1.WatchMetadataResponse) {
			var words []string
			for _, a := range r.GetAgents() {
				for _, v := range a.GetValues() {
					words = append(words, v.GetKey()+"="+v.GetValue())
				}
			}
			if r.GetSynced() {
				words = append(words, "synced")
			}
			for _, word := range words {
				select {
				case seen <- word:
				case <-ctx.Done():
				}
			}
		})
		if err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	require.Equal(t, "k=1", <-seen)
	require.Equal(t, "synced", <-seen)
	require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: "2"}))
	require.Equal(t, "k=2", <-seen)
	s.stopped()
	s.start()
	require.Equal(t, "k=2", <-seen)
	require.Equal(t, "synced", <-seen)
	require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: "3"}))
	require.Equal(t, "k=3", <-seen)
}

func TestCoderdWatchErrors(t *testing.T) {
	s, coderd := startCoderd(t)
	nothing := func(*agentstatsv1.WatchMetadataResponse) { t.Error("a response") }
	require.ErrorContains(t, coderd.WatchMetadata(t.Context(), nil, nothing), "0 agents are named")
	require.ErrorContains(t, coderd.WatchMetadata(t.Context(), make([]uuid.UUID, 1001), nothing), "1001 agents are named")

	_, err := coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
	require.NoError(t, err)
	conn := s.conn(agentToken)
	defer closeConn(t, conn)
	agents, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	err = agents.WatchMetadata(t.Context(), []uuid.UUID{agentID}, nothing)
	require.Equal(t, codes.PermissionDenied, status.Code(err), err)
	_, err = agents.Metadata(t.Context(), agentID)
	require.Equal(t, codes.PermissionDenied, status.Code(err), err)
	_, err = agents.Deregister(t.Context(), []uuid.UUID{agentID}, nil)
	require.Equal(t, codes.PermissionDenied, status.Code(err), err)
	for _, err := range agents.Agents(t.Context()) {
		require.Equal(t, codes.PermissionDenied, status.Code(err), err)
	}
	_, err = client.NewCoderd(conn, client.CoderdOptions{Backoff: client.Backoff{Max: -1}})
	require.Error(t, err)

	// A token that was never accepted is not tried again.
	conn = s.conn("unknown")
	defer closeConn(t, conn)
	strangers, err := client.NewCoderd(conn, client.CoderdOptions{Backoff: client.Backoff{Max: time.Millisecond}})
	require.NoError(t, err)
	err = strangers.WatchMetadata(t.Context(), []uuid.UUID{agentID}, nothing)
	require.Equal(t, codes.Unauthenticated, status.Code(err), err)
}

// The real service meets the real client: an agent's session over a restart of
// the service, which keeps its database only.
func TestAgentSurvivesARestart(t *testing.T) {
	s, coderd := startCoderd(t)
	_, err := coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
	require.NoError(t, err)
	conn := s.conn(agentToken)
	defer closeConn(t, conn)
	agent, err := client.NewAgent(conn, client.AgentOptions{
		Collect: func(context.Context) *agentstatsv1.Stats { return &agentstatsv1.Stats{RxBytes: 100} },
		Backoff: client.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond},
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = agent.Run(ctx) })

	agent.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Unix(5, 0))
	require.NoError(t, agent.SetAppHealth(appID, agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY))
	require.NoError(t, agent.SetNetwork(&agentstatsv1.Network{NodeId: 7}))
	require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: strings.Repeat("x", 9000)}))
	require.NoError(t, agent.Flush(ctx))
	s.stopped()
	require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "late", Value: "v"}))
	s.start()
	require.NoError(t, agent.Flush(ctx))

	for a, err := range coderd.Agents(ctx) {
		require.NoError(t, err)
		require.True(t, a.GetConnected())
		require.Equal(t, agentstatsv1.Lifecycle_STATE_READY, a.GetLifecycle().GetState())
		require.Equal(t, agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY, a.GetAppHealth()[0].GetHealth())
	}
	stored, err := coderd.Metadata(ctx, agentID)
	require.NoError(t, err)
	require.Equal(t, strings.Repeat("x", 2048), stored[0].GetValues()[0].GetValue())
	require.Equal(t, "late", stored[0].GetValues()[1].GetKey())
	require.NoError(t, agent.Close(ctx))
	require.Equal(t, int64(2), agent.Status().Counts.Sessions)
	require.Zero(t, agent.Status().Counts.Refused)
}
