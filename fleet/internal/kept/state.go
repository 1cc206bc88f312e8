package kept

import (
	"encoding/binary"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// State is an agent.State without its agent and incarnation; empty: nothing was said.
type State string

// StateOf returns what is kept of a state.
func StateOf(s *agent.State) State {
	if s.MaxEpoch() == 0 {
		return ""
	}
	var array [1024]byte
	e := stateEncoder{dst: array[:0]}
	e.word(string(s.Lifecycle.State))
	e.time(s.Lifecycle.ChangedAt)
	e.order(s.LifecycleOrder)
	e.time(s.Startup.StartedAt)
	e.time(s.Startup.ReadyAt)
	e.word(string(s.Startup.Result))
	e.order(s.StartedOrder)
	e.order(s.ReadyOrder)
	e.dst = appendNetwork(e.dst, &s.Network)
	e.order(s.NetworkOrder)
	for id, health := range s.AppHealth {
		e.dst = append(e.dst, id[:]...)
		e.word(string(health))
		e.order(s.AppHealthOrder[id])
	}
	return State(e.dst)
}

// Value returns the state of the agent with the id.
func (k State) Value(id agent.ID) agent.State {
	s := agent.State{Agent: id}
	if k == "" {
		return s
	}
	d := stateDecoder{decoder: decoder{string(k)}}
	s.Lifecycle = agent.Lifecycle{State: agent.LifecycleState(d.word()), ChangedAt: d.time()}
	s.LifecycleOrder = d.order()
	s.Startup = agent.Startup{StartedAt: d.time(), ReadyAt: d.time(), Result: agent.LifecycleState(d.word())}
	s.StartedOrder = d.order()
	s.ReadyOrder = d.order()
	s.Network = d.network()
	s.NetworkOrder = d.order()
	for d.rest != "" {
		app := d.id()
		if s.AppHealth == nil {
			s.AppHealth, s.AppHealthOrder = make(map[agent.ID]agent.AppHealth), make(map[agent.ID]agent.Order)
		}
		s.AppHealth[app] = agent.AppHealth(d.word())
		s.AppHealthOrder[app] = d.order()
	}
	return s
}

// stateEncoder appends times and orders as differences from the ones before: those of one
// session are alike.
type stateEncoder struct {
	dst       []byte
	lastTime  int64
	lastOrder agent.Order
}

func (e *stateEncoder) word(word string) { e.dst = appendWord(e.dst, word) }

func (e *stateEncoder) int(n int64) { e.dst = binary.AppendVarint(e.dst, n) }

func (e *stateEncoder) time(t time.Time) {
	if t.IsZero() {
		e.dst = append(e.dst, 0)
		return
	}
	e.dst = append(e.dst, 1)
	e.int(t.UnixNano() - e.lastTime)
	e.lastTime = t.UnixNano()
}

func (e *stateEncoder) order(o agent.Order) {
	if o == (agent.Order{}) {
		e.dst = append(e.dst, 0)
		return
	}
	e.dst = append(e.dst, 1)
	last := &e.lastOrder
	for _, n := range [...]int64{o.Epoch - last.Epoch, o.Sequence - last.Sequence, o.Basis - last.Basis, o.Previous - last.Previous, o.Said - last.Said} {
		e.int(n)
	}
	e.lastOrder = o
}

type stateDecoder struct {
	decoder
	lastTime  int64
	lastOrder agent.Order
}

func (d *stateDecoder) time() time.Time {
	if !d.bool() {
		return time.Time{}
	}
	d.lastTime += d.int()
	return time.Unix(0, d.lastTime).UTC()
}

func (d *stateDecoder) order() agent.Order {
	if !d.bool() {
		return agent.Order{}
	}
	o := &d.lastOrder
	for _, n := range [...]*int64{&o.Epoch, &o.Sequence, &o.Basis, &o.Previous, &o.Said} {
		*n += d.int()
	}
	return *o
}

func appendNetwork(dst []byte, n *agent.Network) []byte {
	dst = binary.AppendUvarint(dst, n.NodeID)
	dst = binary.AppendVarint(dst, n.PreferredRegion)
	dst = binary.AppendUvarint(dst, uint64(len(n.Regions)))
	for i := range n.Regions {
		r := &n.Regions[i]
		dst = appendText(binary.AppendVarint(dst, r.ID), r.Name)
		dst = binary.AppendVarint(dst, int64(r.Latency))
	}
	return dst
}

func (d *decoder) network() agent.Network {
	n := agent.Network{NodeID: d.uint(), PreferredRegion: d.int()}
	if regions := d.uint(); regions > 0 {
		n.Regions = make([]agent.Region, regions)
		for i := range n.Regions {
			n.Regions[i] = agent.Region{ID: d.int(), Name: d.text(), Latency: time.Duration(d.int())}
		}
	}
	return n
}
