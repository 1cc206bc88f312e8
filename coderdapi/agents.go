package coderdapi

import (
	"hash/maphash"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// agentsPage is how many agents are read at once. They and the message made of them
// take room for reads: agentsRead bytes at most, with maxApps apps each.
const (
	agentsPage = 64
	agentsRead = agentsPage * (agentReadBytes + contract.MaxApps*appReadBytes)

	agentReadBytes = 512
	appReadBytes   = 192
)

// What a watch of agents takes in memory, in bytes. An agent that was sent has an entry
// of a map, which is at least half full. One that may be dirty has another entry and a
// copy. One that was asked for has its id and an entry.
const (
	sentAgentBytes  = 64
	dirtyAgentBytes = 56
	askedAgentBytes = 56
)

// dirtyAgents is the share of all agents that a watch of all may have as dirty. Beyond
// it the watch reads all again.
const dirtyAgents = 1. / 16

// agentStatuses are named as the label status.
var agentStatuses = map[agentstatsv1.AgentStatus]agent.Status{
	agentstatsv1.AgentStatus_AGENT_STATUS_CONNECTING:   agent.StatusConnecting,
	agentstatsv1.AgentStatus_AGENT_STATUS_CONNECTED:    agent.StatusConnected,
	agentstatsv1.AgentStatus_AGENT_STATUS_DISCONNECTED: agent.StatusDisconnected,
	agentstatsv1.AgentStatus_AGENT_STATUS_TIMEOUT:      agent.StatusTimeout,
}

// WatchAgents implements agentstatsv1.CoderdServiceServer.
func (s *Service) WatchAgents(req *agentstatsv1.WatchAgentsRequest, stream grpc.ServerStreamingServer[agentstatsv1.WatchAgentsResponse]) error {
	ids, err := watchIDs(req.GetAgentIds())
	if err != nil {
		return err
	}
	ctx := stream.Context()
	if err := s.Fleet.Ready(); err != nil {
		return s.failure(ctx, "watch agents", err)
	}
	stop, err := s.startWatch(stream.Context(), watchAgents)
	if err != nil {
		return err
	}
	defer stop()
	w := newAgentsWatch(s.Fleet, ids, s.watchBytes)
	defer w.close()
	if err := w.grow(0); err != nil {
		return err
	}
	// What changes from here on is dirty.
	defer s.Fleet.Watch(w.dirty.markDirty)()
	w.dirty.markDirty(nil)

	reread := time.NewTicker(s.opts.Load().WatchInterval)
	defer reread.Stop()
	for synced := false; ; synced = true {
		select {
		case <-w.dirty.wake:
		case <-reread.C:
			w.dirty.markDirty(nil)
		case <-s.server.Draining():
			return grpcserver.ErrDraining
		case <-ctx.Done():
			return ctx.Err()
		}
		// All reads before this one in the queue may be slow.
		room := func(n int) (*readReservation, error) {
			return s.watchBytes.acquire(ctx, n, 2*s.server.Options().SendTimeout)
		}
		if err := w.sendDirty(room, stream.Send); err != nil {
			return err
		}
		if !synced {
			if err := stream.Send(&agentstatsv1.WatchAgentsResponse{Synced: true}); err != nil {
				return err
			}
		}
		if err := s.pause(ctx); err != nil {
			return err
		}
	}
}

// agentsWatch is the state of a watch of agents' states. Only dirty is shared
// between goroutines.
type agentsWatch struct {
	fleet *fleet.Fleet
	ids   []agent.ID // none: all agents
	dirty *dirtySet
	seed  maphash.Seed
	// sent are the hashes of the states that were sent. Their lowest bit is the
	// scan of all agents that found the agent last.
	sent map[agent.ID]uint64
	scan uint64 // 0 or 1
	// reserved bytes of the budget.
	reserved int
	budget   *watchBytes
}

func newAgentsWatch(f *fleet.Fleet, ids []agent.ID, budget *watchBytes) *agentsWatch {
	limit := len(ids)
	if limit == 0 {
		limit = max(agentsPage, int(dirtyAgents*float64(f.Options().MaxAgents)))
	}
	return &agentsWatch{
		fleet:  f,
		ids:    ids,
		dirty:  newDirtySet(ids, limit),
		seed:   maphash.MakeSeed(),
		sent:   make(map[agent.ID]uint64),
		budget: budget,
	}
}

// grow reserves memory for a watch to which so many agents were sent. A map does
// not shrink: the reservation does not either.
func (w *agentsWatch) grow(agents int) error {
	n := sentAgentBytes*agents + dirtyAgentBytes*min(agents, w.dirty.limit) + askedAgentBytes*len(w.ids)
	if n <= w.reserved {
		return nil
	}
	if err := w.budget.sent.acquire(n - w.reserved); err != nil {
		return err
	}
	w.reserved = n
	return nil
}

// close releases what the watch has reserved.
func (w *agentsWatch) close() {
	w.budget.sent.release(w.reserved)
	w.reserved = 0
}

type (
	readRoom   = func(bytes int) (*readReservation, error)
	sendAgents = func(*agentstatsv1.WatchAgentsResponse) error
)

// sendDirty sends the states that are dirty and have changed.
func (w *agentsWatch) sendDirty(room readRoom, send sendAgents) error {
	ids, all := w.dirty.takeDirty()
	if all && len(w.ids) == 0 {
		return w.sendAll(room, send)
	}
	if all {
		ids = w.ids
	}
	var removed []agent.ID
	for part := range slices.Chunk(ids, agentsPage) {
		removed = removed[:0]
		_, err := w.sendPage(room, send, func() (infos []fleet.Info) {
			for _, id := range part {
				// The registrations were loaded when the watch began, so an agent that
				// is not found is not registered.
				info, err := w.fleet.Agent(id)
				if err == nil {
					infos = append(infos, info)
				} else if _, known := w.sent[id]; known {
					removed = append(removed, id)
				}
			}
			return infos
		})
		if err != nil {
			return err
		}
		if err := w.sendRemoved(send, removed); err != nil {
			return err
		}
	}
	return nil
}

// sendAll sends the states of all agents that have changed.
func (w *agentsWatch) sendAll(room readRoom, send sendAgents) error {
	w.scan ^= 1
	var after agent.ID
	for {
		last, err := w.sendPage(room, send, func() []fleet.Info { return w.fleet.List(after, agentsPage) })
		if err != nil {
			return err
		}
		if last == nil {
			break
		}
		after = last.ID
	}
	var gone []agent.ID
	for id, hash := range w.sent {
		if hash&1 == w.scan {
			continue
		}
		if gone = append(gone, id); len(gone) < agentsPage {
			continue
		}
		if err := w.sendRemoved(send, gone); err != nil {
			return err
		}
		gone = gone[:0]
	}
	return w.sendRemoved(send, gone)
}

// sendPage reads at most agentsPage agents and sends the states that have changed.
// It returns the last one; nil: there was none.
func (w *agentsWatch) sendPage(room readRoom, send sendAgents, read func() []fleet.Info) (last *agent.Registration, err error) {
	reserved, err := room(int(min(agentsRead, w.budget.limit)))
	if err != nil {
		return nil, err
	}
	defer reserved.release()
	infos := read()
	if len(infos) == 0 {
		return nil, nil
	}
	n := 0
	for i := range infos {
		n += agentReadBytes + appReadBytes*len(infos[i].Registration.Apps)
	}
	reserved.shrink(n)
	if err := w.grow(len(w.sent) + len(infos)); err != nil {
		return nil, err
	}
	return infos[len(infos)-1].Registration, w.sendChanged(send, infos)
}

// sendRemoved sends the ids of agents that are not registered any more.
func (w *agentsWatch) sendRemoved(send sendAgents, removed []agent.ID) error {
	if len(removed) == 0 {
		return nil
	}
	for _, id := range removed {
		delete(w.sent, id)
	}
	return send(&agentstatsv1.WatchAgentsResponse{RemovedIds: idBytes(removed)})
}

// sendChanged sends those states that have changed, in parts of about watchPart bytes.
func (w *agentsWatch) sendChanged(send sendAgents, infos []fleet.Info) error {
	resp := &agentstatsv1.WatchAgentsResponse{}
	size := 0
	for i := range infos {
		state, hash, err := w.state(&infos[i])
		if err != nil {
			return err
		}
		hash = hash&^1 | w.scan
		id := infos[i].Registration.ID
		before, known := w.sent[id]
		w.sent[id] = hash
		if known && before|1 == hash|1 {
			continue
		}
		resp.Agents = append(resp.Agents, state)
		if size += proto.Size(state); size >= watchPart {
			if err := send(resp); err != nil {
				return err
			}
			resp, size = &agentstatsv1.WatchAgentsResponse{}, 0
		}
	}
	if len(resp.GetAgents()) == 0 {
		return nil
	}
	return send(resp)
}

// state returns an agent's state, and a hash of it without the time at which the
// agent was last seen.
func (w *agentsWatch) state(info *fleet.Info) (*agentstatsv1.AgentState, uint64, error) {
	state := &agentstatsv1.AgentState{
		AgentId:   info.Registration.ID[:],
		Status:    contract.NumberOf(agentStatuses, info.Status),
		Relayed:   info.Relayed,
		Lifecycle: lifecycleMessage(info),
		AppHealth: appHealthMessages(info),
	}
	encoded, err := proto.Marshal(state)
	if err != nil {
		return nil, 0, err
	}
	if !info.LastSeen.IsZero() {
		state.LastSeenAt = timestamppb.New(info.LastSeen)
	}
	return state, maphash.Bytes(w.seed, encoded), nil
}
