package coderdapi

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
	"unsafe"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	maxReadAtOnce   = 1000
	maxPageSize     = 1000
	defaultPageSize = 100
)

// registrationBytes is what a registration takes beside its texts.
const registrationBytes = int(unsafe.Sizeof(agent.Registration{}))

// RegisterAgents implements agentstatsv1.CoderdServiceServer.
func (s *Service) RegisterAgents(ctx context.Context, req *agentstatsv1.RegisterAgentsRequest) (*agentstatsv1.RegisterAgentsResponse, error) {
	if n := len(req.GetAgents()); n > maxRegisteredAtOnce {
		return nil, grpcserver.Invalid("agents", "want at most %d, got %d", maxRegisteredAtOnce, n)
	}
	if n := len(req.GetWorkspaces()); n > maxRegisteredAtOnce {
		return nil, grpcserver.Invalid("workspaces", "want at most %d, got %d", maxRegisteredAtOnce, n)
	}
	set, undecoded := s.setOf(req.GetAgents(), req.GetWorkspaces()), reservationFrom(ctx).takeRefused()
	set.Refused = append(set.Refused, undecoded...)
	done, err := s.Fleet.Register(ctx, set)
	if err != nil {
		return nil, s.failure(ctx, "register agents", err)
	}
	s.answerRegistrations(ctx, len(req.GetAgents())+len(req.GetWorkspaces())+len(undecoded), done.Refused)
	return &agentstatsv1.RegisterAgentsResponse{
		SupersededIds: idBytes(done.Superseded),
		StaleIds:      idBytes(done.Stale),
		Refused:       refusalMessages(done.Refused),
		RefusedCount:  int64(len(done.Refused)),
	}, nil
}

// DeregisterAgents implements agentstatsv1.CoderdServiceServer.
func (s *Service) DeregisterAgents(ctx context.Context, req *agentstatsv1.DeregisterAgentsRequest) (*agentstatsv1.DeregisterAgentsResponse, error) {
	agents, problem := idsOf("agent_ids", req.GetAgentIds(), maxRegisteredAtOnce)
	if problem != nil {
		return nil, grpcserver.Invalid(problem.field, "%s", problem.text)
	}
	workspaces, problem := idsOf("workspace_ids", req.GetWorkspaceIds(), maxRegisteredAtOnce)
	if problem != nil {
		return nil, grpcserver.Invalid(problem.field, "%s", problem.text)
	}
	n, err := s.Fleet.Deregister(ctx, agents, workspaces)
	if err != nil {
		return nil, s.failure(ctx, "deregister agents", err)
	}
	return &agentstatsv1.DeregisterAgentsResponse{Deregistered: int64(n)}, nil
}

// SyncAgents implements agentstatsv1.CoderdServiceServer.
func (s *Service) SyncAgents(stream grpc.ClientStreamingServer[agentstatsv1.SyncAgentsRequest, agentstatsv1.SyncAgentsResponse]) error {
	if err := s.server.BeginStream(); err != nil {
		return err
	}
	defer s.server.EndStream()
	if !s.syncs.TryAcquire() {
		s.metrics.refused.WithLabelValues(refusedSync).Inc()
		return grpcserver.Exhausted(time.Second, fmt.Sprintf("want at most %d syncs at once (%s)", s.opts.Load().MaxSyncs, flagSyncs))
	}
	defer s.syncs.Release()
	ctx, cancel := context.WithTimeoutCause(stream.Context(), s.opts.Load().SyncTimeout,
		status.Errorf(codes.DeadlineExceeded, "complete: want it within %v (%s)", s.opts.Load().SyncTimeout, flagSyncTimeout))
	defer cancel()
	sync, err := s.Fleet.BeginSync()
	if err != nil {
		return s.failure(ctx, "begin a sync", err)
	}
	set, force, err := s.collectSync(ctx, receive(ctx, s.server, stream.Recv))
	if err != nil {
		return err
	}
	done, err := sync.Apply(ctx, set, force)
	if err != nil {
		return s.failure(ctx, "sync agents", err)
	}
	s.answerRegistrations(ctx, done.Registered+len(set.Workspaces)+len(done.Refused), done.Refused)
	return stream.SendAndClose(&agentstatsv1.SyncAgentsResponse{
		Registered:   int64(done.Registered),
		Deregistered: int64(done.Deregistered),
		Superseded:   int64(done.Superseded),
		Refused:      refusalMessages(done.Refused),
		RefusedCount: int64(len(done.Refused)),
	})
}

// collectSync reads the parts of a sync up to the one that completes it.
func (s *Service) collectSync(ctx context.Context, parts <-chan received[*agentstatsv1.SyncAgentsRequest]) (fleet.Set, bool, error) {
	var set fleet.Set
	// The parts are joined once: what never completes is not copied.
	var agents [][]agent.Registration
	var workspaces [][]agent.Workspace
	var nAgents, nWorkspaces, nKept, nUndecoded int
	limit := s.Fleet.Options().MaxAgents
	for {
		var part received[*agentstatsv1.SyncAgentsRequest]
		select {
		case part = <-parts:
		case <-s.server.Draining():
			return set, false, grpcserver.ErrDraining
		case <-ctx.Done():
			return set, false, context.Cause(ctx)
		}
		switch {
		case errors.Is(part.err, io.EOF):
			return set, false, grpcserver.Invalid("complete", "want a message that completes the sync, got the end of the stream")
		case part.err != nil:
			return set, false, part.err
		}
		moreAgents, moreWorkspaces := part.message.GetAgents(), part.message.GetWorkspaces()
		undecoded := reservationFrom(ctx).takeRefused()
		nAgents, nWorkspaces, nKept = nAgents+len(moreAgents), nWorkspaces+len(moreWorkspaces), nKept+len(part.message.GetKeptWorkspaceIds())
		if max(nAgents, nWorkspaces, nKept) > limit {
			return set, false, status.Errorf(codes.ResourceExhausted, "sync: want at most %d agents, workspaces and kept workspaces each (%s), got %d, %d and %d so far",
				limit, flagAgents, nAgents, nWorkspaces, nKept)
		}
		if nUndecoded += len(undecoded); nUndecoded > limit {
			return set, false, status.Errorf(codes.ResourceExhausted, "sync: want at most %d registrations that are not UTF-8 (%s), got %d so far", limit, flagAgents, nUndecoded)
		}
		kept, invalid := idsOf("kept_workspace_ids", part.message.GetKeptWorkspaceIds(), limit)
		if invalid != nil {
			return set, false, grpcserver.Invalid(invalid.field, "%s", invalid.text)
		}
		set.KeptWorkspaces = append(set.KeptWorkspaces, kept...)
		reservationFrom(ctx).keepBytes(proto.Size(part.message) + registrationBytes*(len(moreAgents)+len(moreWorkspaces)+len(undecoded)))
		more := s.setOf(moreAgents, moreWorkspaces)
		if len(more.Agents) > 0 {
			agents = append(agents, more.Agents)
		}
		if len(more.Workspaces) > 0 {
			workspaces = append(workspaces, more.Workspaces)
		}
		set.Refused = append(append(set.Refused, undecoded...), more.Refused...)
		if len(more.GotAt) > 0 {
			if set.GotAt == nil {
				set.GotAt = more.GotAt
			}
			maps.Copy(set.GotAt, more.GotAt)
		}
		if part.message.GetComplete() {
			set.Agents, set.Workspaces = slices.Concat(agents...), slices.Concat(workspaces...)
			var problem *problem
			if set.ReadAt, problem = readAt("read_age", part.message.GetReadAge()); problem != nil {
				return set, false, grpcserver.Invalid(problem.field, "%s", problem.text)
			}
			return set, part.message.GetForce(), nil
		}
	}
}

// GetMetadata implements agentstatsv1.CoderdServiceServer.
func (s *Service) GetMetadata(ctx context.Context, req *agentstatsv1.GetMetadataRequest) (*agentstatsv1.GetMetadataResponse, error) {
	limit := s.server.Options().MaxMessageBytes
	ids, err := readIDs(req.GetAgentIds())
	if err != nil {
		return nil, err
	}
	// The values, which take at most twice as much in memory as encoded, and the
	// response; an agent's values fit a read.
	reserved, err := s.watchBytes.acquire(ctx, min(3*limit, len(ids)*s.opts.Load().MaxWatchBytes/2), s.server.HelloTimeout()/2)
	if err != nil {
		return nil, err
	}
	defer reserved.release()
	rows, left, err := s.Reader.MetadataWithin(ctx, ids, 2*limit)
	if err != nil {
		return nil, s.failure(ctx, "read metadata", err)
	}
	if len(left) > 0 {
		return nil, status.Errorf(codes.ResourceExhausted, "agent_ids: want at most %d bytes of metadata (%s), got more: ask for fewer agents at once", limit, grpcserver.FlagMessageBytes)
	}
	byAgent := make(map[agent.ID]*agentstatsv1.AgentMetadata)
	for i := range rows {
		values := byAgent[rows[i].Agent]
		if values == nil {
			values = &agentstatsv1.AgentMetadata{AgentId: rows[i].Agent[:]}
			byAgent[rows[i].Agent] = values
		}
		values.Values = append(values.Values, metadataValue(&rows[i]))
	}
	resp := &agentstatsv1.GetMetadataResponse{}
	for _, id := range ids {
		if values := byAgent[id]; values != nil {
			resp.Agents = append(resp.Agents, values)
		}
	}
	if size := proto.Size(resp); size > limit {
		return nil, status.Errorf(codes.ResourceExhausted, "agent_ids: want at most %d bytes of metadata (%s), got %d: ask for fewer agents at once", limit, grpcserver.FlagMessageBytes, size)
	}
	return resp, nil
}

// readIDs converts the ids of agents whose metadata is asked for.
func readIDs(list [][]byte) ([]agent.ID, error) {
	if len(list) == 0 {
		return nil, grpcserver.Invalid("agent_ids", "want 1 to %d, got 0", maxReadAtOnce)
	}
	ids, problem := idsOf("agent_ids", list, maxReadAtOnce)
	if problem != nil {
		return nil, grpcserver.Invalid(problem.field, "%s", problem.text)
	}
	seen := make(map[agent.ID]struct{}, len(ids))
	for i, id := range ids {
		if _, twice := seen[id]; twice {
			return nil, grpcserver.Invalid(fmt.Sprintf("agent_ids[%d]", i), "want each agent once, got %s again", id)
		}
		seen[id] = struct{}{}
	}
	return ids, nil
}

func metadataValue(m *agent.Metadata) *agentstatsv1.MetadataValue {
	return &agentstatsv1.MetadataValue{
		Key:         m.Key,
		Value:       m.Value,
		Error:       m.Error,
		CollectedAt: timestamppb.New(m.CollectedAt),
	}
}

// ListAgents implements agentstatsv1.CoderdServiceServer.
func (s *Service) ListAgents(ctx context.Context, req *agentstatsv1.ListAgentsRequest) (*agentstatsv1.ListAgentsResponse, error) {
	size := int(req.GetPageSize())
	switch {
	case size < 0 || size > maxPageSize:
		return nil, grpcserver.Invalid("page_size", "want 0 to %d, got %d", maxPageSize, size)
	case size == 0:
		size = defaultPageSize
	}
	after, err := parsePageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	if err := s.Fleet.Ready(); err != nil {
		return nil, s.failure(ctx, "list agents", err)
	}
	// One agent more than the page shows whether there is a next page.
	infos := s.Fleet.List(after, size+1)
	resp := &agentstatsv1.ListAgentsResponse{}
	if len(infos) > size {
		infos = infos[:size]
		resp.NextPageToken = pageToken(infos[size-1].Registration.ID)
	}
	for i := range infos {
		resp.Agents = append(resp.Agents, agentMessage(&infos[i]))
	}
	return resp, nil
}

// A page token is the id of the last agent of the page before.
func pageToken(last agent.ID) string { return base64.RawURLEncoding.EncodeToString(last[:]) }

func parsePageToken(token string) (agent.ID, error) {
	if token == "" {
		return agent.ID{}, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) != len(agent.ID{}) {
		return agent.ID{}, grpcserver.Invalid("page_token", "want next_page_token of another page, got %d bytes that are none", len(token))
	}
	return agent.ID(b), nil
}

func agentMessage(info *fleet.Info) *agentstatsv1.Agent {
	reg := info.Registration
	m := &agentstatsv1.Agent{
		Id:        reg.ID[:],
		Name:      reg.Name,
		Workspace: workspaceMessage(&reg.Workspace),
		Connected: info.Connected,
		Relayed:   info.Relayed,
		Lifecycle: lifecycleMessage(info),
		AppHealth: appHealthMessages(info),
	}
	if !info.LastSeen.IsZero() {
		m.LastSeenAt = timestamppb.New(info.LastSeen)
	}
	m.ParentId = contract.OptionalID(&reg.Parent)
	return m
}

// lifecycleMessage returns nil if the agent has reported no lifecycle.
func lifecycleMessage(info *fleet.Info) *agentstatsv1.Lifecycle {
	l := info.State.Lifecycle
	if l.State == "" {
		return nil
	}
	return &agentstatsv1.Lifecycle{State: contract.NumberOf(contract.LifecycleStates, l.State), ChangedAt: timestamppb.New(l.ChangedAt)}
}

// appHealthMessages returns the health of all apps, in the order of the
// registration.
func appHealthMessages(info *fleet.Info) []*agentstatsv1.AppHealthUpdate {
	var updates []*agentstatsv1.AppHealthUpdate
	for i := range info.Registration.Apps {
		app := &info.Registration.Apps[i]
		health, reported := info.State.AppHealth[app.ID]
		if !reported {
			health = app.Health
		}
		updates = append(updates, &agentstatsv1.AppHealthUpdate{Id: app.ID[:], Health: contract.NumberOf(contract.AppHealths, health)})
	}
	return updates
}

func workspaceMessage(w *agent.Workspace) *agentstatsv1.Workspace {
	m := &agentstatsv1.Workspace{
		Id:               w.ID[:],
		Name:             w.Name,
		OwnerId:          contract.OptionalID(&w.OwnerID),
		OwnerUsername:    w.OwnerUsername,
		Template:         &agentstatsv1.Template{Id: contract.OptionalID(&w.Template.ID), Name: w.Template.Name, Version: w.Template.Version},
		OrganizationName: w.Organization,
	}
	if w.Build.ID != (agent.ID{}) {
		m.Build = &agentstatsv1.Build{
			Id:         w.Build.ID[:],
			CreatedAt:  timestamppb.New(w.Build.CreatedAt),
			Transition: contract.NumberOf(transitions, w.Build.Transition),
			IsPrebuild: w.Build.IsPrebuild,
		}
	}
	return m
}

func idBytes(ids []agent.ID) [][]byte {
	// Sorted, as what a change comes to has no order.
	ids = slices.SortedFunc(slices.Values(ids), func(a, b agent.ID) int { return slices.Compare(a[:], b[:]) })
	out := make([][]byte, len(ids))
	for i := range ids {
		out[i] = ids[i][:]
	}
	return out
}
