package agentapi

import (
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// agentsPage agents are looked at at once.
const agentsPage = 500

// agentStatuses are named as the label status.
var agentStatuses = map[agentstatsv1.AgentStatus]agent.Status{
	agentstatsv1.AgentStatus_AGENT_STATUS_CONNECTING:   agent.StatusConnecting,
	agentstatsv1.AgentStatus_AGENT_STATUS_CONNECTED:    agent.StatusConnected,
	agentstatsv1.AgentStatus_AGENT_STATUS_DISCONNECTED: agent.StatusDisconnected,
	agentstatsv1.AgentStatus_AGENT_STATUS_TIMEOUT:      agent.StatusTimeout,
}

// WatchAgents implements agentstatsv1.CoderdServiceServer.
func (s *coderdService) WatchAgents(req *agentstatsv1.WatchAgentsRequest, stream grpc.ServerStreamingServer[agentstatsv1.WatchAgentsResponse]) error {
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
	w := newAgentsWatch(s.Fleet, ids)
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
		case <-s.streams.draining:
			return errDraining
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := w.tell(stream.Send); err != nil {
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
	// told are the hashes of the states that were sent.
	told map[agent.ID]uint64
}

func newAgentsWatch(f *fleet.Fleet, ids []agent.ID) *agentsWatch {
	return &agentsWatch{
		fleet: f,
		ids:   ids,
		dirty: newDirtySet(ids, f.MaxAgents()),
		seed:  maphash.MakeSeed(),
		told:  make(map[agent.ID]uint64),
	}
}

// tell sends what is dirty and new to the watcher.
func (w *agentsWatch) tell(send func(*agentstatsv1.WatchAgentsResponse) error) error {
	ids, all := w.dirty.take()
	if all && len(w.ids) == 0 {
		return w.tellAll(send)
	}
	if all {
		ids = w.ids
	}
	var infos []fleet.Info
	var removed []agent.ID
	for part := range slices.Chunk(ids, agentsPage) {
		infos, removed = infos[:0], removed[:0]
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
		if err := w.send(send, infos, removed); err != nil {
			return err
		}
	}
	return nil
}

// tellAll sends whatever is new of all agents.
func (w *agentsWatch) tellAll(send func(*agentstatsv1.WatchAgentsResponse) error) error {
	gone := maps.Clone(w.told)
	var after agent.ID
	for {
		infos := w.fleet.List(after, agentsPage)
		if len(infos) == 0 {
			break
		}
		for i := range infos {
			delete(gone, infos[i].Registration.ID)
		}
		if err := w.send(send, infos, nil); err != nil {
			return err
		}
		after = infos[len(infos)-1].Registration.ID
	}
	for part := range slices.Chunk(slices.Collect(maps.Keys(gone)), agentsPage) {
		if err := w.send(send, nil, part); err != nil {
			return err
		}
	}
	return nil
}

// send sends what is new of some agents, in parts of about watchPart bytes.
func (w *agentsWatch) send(send func(*agentstatsv1.WatchAgentsResponse) error, infos []fleet.Info, removed []agent.ID) error {
	resp := &agentstatsv1.WatchAgentsResponse{RemovedIds: idBytes(removed)}
	for _, id := range removed {
		delete(w.told, id)
	}
	size := 0
	for i := range infos {
		state, hash, err := w.state(&infos[i])
		if err != nil {
			return err
		}
		id := infos[i].Registration.ID
		if before, told := w.told[id]; told && before == hash {
			continue
		}
		w.told[id] = hash
		resp.Agents = append(resp.Agents, state)
		if size += proto.Size(state); size >= watchPart {
			if err := send(resp); err != nil {
				return err
			}
			resp, size = &agentstatsv1.WatchAgentsResponse{}, 0
		}
	}
	if len(resp.GetAgents()) == 0 && len(resp.GetRemovedIds()) == 0 {
		return nil
	}
	return send(resp)
}

// state returns an agent's state, and a hash of it without the time at which it
// was last heard of.
func (w *agentsWatch) state(info *fleet.Info) (*agentstatsv1.AgentState, uint64, error) {
	state := &agentstatsv1.AgentState{
		AgentId:   info.Registration.ID[:],
		Status:    keyOf(agentStatuses, info.Status),
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
