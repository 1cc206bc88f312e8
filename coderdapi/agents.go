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

// agentsPage agents are looked at at once. What they and the message made of them take
// is taken of the room for reads: agentsRead bytes at most, with maxApps apps each.
const (
	agentsPage = 64
	agentsRead = agentsPage * (agentReadBytes + contract.MaxApps*appReadBytes)

	agentReadBytes = 512
	appReadBytes   = 192
)

// What a watch of agents keeps: of each agent that it was told an entry of a map, which
// is half full at least, of each that may be dirty another one and a copy, and of each
// that it asked for its id and an entry.
const (
	toldAgentBytes  = 64
	dirtyAgentBytes = 56
	askedAgentBytes = 56
)

// dirtyAgents is the part of all agents that a watch of all remembers to be dirty.
// Beyond it looks at all again, which takes as long as to look at a few times as many.
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
	end, err := s.beginWatch(watchAgents)
	if err != nil {
		return err
	}
	defer end()
	w := newAgentsWatch(s.Fleet, ids, s.watchBytes)
	defer w.close()
	if err := w.grow(0); err != nil {
		return err
	}
	// What changes from here on is dirty.
	defer s.Fleet.Watch(w.dirty.changed)()
	w.dirty.changed(nil)

	reread := time.NewTicker(s.opts.WatchInterval)
	defer reread.Stop()
	for synced := false; ; synced = true {
		select {
		case <-w.dirty.wake:
		case <-reread.C:
			w.dirty.changed(nil)
		case <-s.server.Draining():
			return grpcserver.ErrDraining
		case <-ctx.Done():
			return ctx.Err()
		}
		// Those who are before in line may all be slow.
		room := func(n int) (*readHold, error) { return s.watchBytes.acquire(ctx, n, 2*s.server.Options().SendTimeout) }
		if err := w.tell(room, stream.Send); err != nil {
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

// agentsWatch is what a watcher of agents' states waits for, and what it was
// told. Only dirty is shared.
type agentsWatch struct {
	fleet *fleet.Fleet
	ids   []agent.ID // none: all agents
	dirty *dirtySet
	seed  maphash.Seed
	// told are the hashes of the states that were sent. Their lowest bit is that of the
	// last look at all agents that found the agent.
	told map[agent.ID]uint64
	look uint64 // 0 or 1
	// held bytes of the budget.
	held   int
	budget *watchBytes
}

func newAgentsWatch(f *fleet.Fleet, ids []agent.ID, budget *watchBytes) *agentsWatch {
	limit := len(ids)
	if limit == 0 {
		limit = max(agentsPage, int(dirtyAgents*float64(f.MaxAgents())))
	}
	return &agentsWatch{
		fleet:  f,
		ids:    ids,
		dirty:  newDirtySet(ids, limit),
		seed:   maphash.MakeSeed(),
		told:   make(map[agent.ID]uint64),
		budget: budget,
	}
}

// grow takes memory for a watch that is told so many agents. A map does not shrink:
// it keeps what it has.
func (w *agentsWatch) grow(agents int) error {
	n := toldAgentBytes*agents + dirtyAgentBytes*min(agents, w.dirty.limit) + askedAgentBytes*len(w.ids)
	if n <= w.held {
		return nil
	}
	if err := w.budget.sent.acquire(n - w.held); err != nil {
		return err
	}
	w.held = n
	return nil
}

// close gives back what the watch has.
func (w *agentsWatch) close() {
	w.budget.sent.release(w.held)
	w.held = 0
}

type (
	readRoom   = func(bytes int) (*readHold, error)
	sendAgents = func(*agentstatsv1.WatchAgentsResponse) error
)

// tell sends what is dirty and new to the watcher.
func (w *agentsWatch) tell(room readRoom, send sendAgents) error {
	ids, all := w.dirty.take()
	if all && len(w.ids) == 0 {
		return w.tellAll(room, send)
	}
	if all {
		ids = w.ids
	}
	var removed []agent.ID
	for part := range slices.Chunk(ids, agentsPage) {
		removed = removed[:0]
		_, err := w.page(room, send, func() (infos []fleet.Info) {
			for _, id := range part {
				// The registrations were loaded when the watch began: whoever is not
				// found is not registered.
				info, err := w.fleet.Agent(id)
				if err == nil {
					infos = append(infos, info)
				} else if _, told := w.told[id]; told {
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

// tellAll sends whatever is new of all agents.
func (w *agentsWatch) tellAll(room readRoom, send sendAgents) error {
	w.look ^= 1
	var after agent.ID
	for {
		last, err := w.page(room, send, func() []fleet.Info { return w.fleet.List(after, agentsPage) })
		if err != nil {
			return err
		}
		if last == nil {
			break
		}
		after = last.ID
	}
	var gone []agent.ID
	for id, hash := range w.told {
		if hash&1 == w.look {
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

// page reads at most agentsPage agents and sends what is new of them. It returns the
// last one; nil: there was none.
func (w *agentsWatch) page(room readRoom, send sendAgents, read func() []fleet.Info) (last *agent.Registration, err error) {
	hold, err := room(int(min(agentsRead, w.budget.limit)))
	if err != nil {
		return nil, err
	}
	defer hold.release()
	infos := read()
	if len(infos) == 0 {
		return nil, nil
	}
	n := 0
	for i := range infos {
		n += agentReadBytes + appReadBytes*len(infos[i].Registration.Apps)
	}
	hold.shrink(n)
	if err := w.grow(len(w.told) + len(infos)); err != nil {
		return nil, err
	}
	return infos[len(infos)-1].Registration, w.send(send, infos)
}

// sendRemoved tells that agents are not registered any more.
func (w *agentsWatch) sendRemoved(send sendAgents, removed []agent.ID) error {
	if len(removed) == 0 {
		return nil
	}
	for _, id := range removed {
		delete(w.told, id)
	}
	return send(&agentstatsv1.WatchAgentsResponse{RemovedIds: idBytes(removed)})
}

// send sends what is new of some agents, in parts of about watchPart bytes.
func (w *agentsWatch) send(send sendAgents, infos []fleet.Info) error {
	resp := &agentstatsv1.WatchAgentsResponse{}
	size := 0
	for i := range infos {
		state, hash, err := w.state(&infos[i])
		if err != nil {
			return err
		}
		hash = hash&^1 | w.look
		id := infos[i].Registration.ID
		before, told := w.told[id]
		w.told[id] = hash
		if told && before|1 == hash|1 {
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

// state returns an agent's state, and a hash of it without the time at which it
// was last heard of.
func (w *agentsWatch) state(info *fleet.Info) (*agentstatsv1.AgentState, uint64, error) {
	state := &agentstatsv1.AgentState{
		AgentId:   info.Registration.ID[:],
		Status:    contract.NumberOf(agentStatuses, info.Status),
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
