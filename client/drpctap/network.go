package drpctap

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"storj.io/drpc"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// The calls that say something of an agent's network.
const (
	coordinate     = "/coder.tailnet.v2.Tailnet/Coordinate"
	streamDERPMaps = "/coder.tailnet.v2.Tailnet/StreamDERPMaps"
)

// The numbers of the fields that are read of their messages.
const (
	updateSelfField = 1 // of a CoordinateRequest
	disconnectField = 2
	nodeField       = 1 // of update_self

	nodeIDField        = 1 // of a Node
	preferredDERPField = 5
	derpLatencyField   = 6

	regionsField    = 2 // of a DERPMap
	regionNameField = 4 // of a region
	mapKeyField     = 1 // of an entry of a map
	mapValueField   = 2
)

const (
	// maxLatency, maxRegions and maxRegionName are limits of the service.
	maxLatency    = 24 * time.Hour
	maxRegions    = 128
	maxRegionName = 128
)

// Network relays what one connection of an agent says of its network. Its methods may be
// called at any time by any goroutine.
type Network struct {
	tap   *Tap
	agent Agent

	mu sync.Mutex
	// Guarded by mu.

	node *agentstatsv1.Network // without names; nil: it said none
	said *agentstatsv1.Network // what was relayed last; nil: nothing was
}

// Network returns the Network of one connection of an agent. It is for those who see calls in
// another way than by coderd's handlers, as Relay is. Regions have the names that any Network
// of the Tap was told last.
func (t *Tap) Network(agent Agent) *Network { return &Network{tap: t, agent: agent} }

// tapCoordinate returns a receiver that relays the agent's node. A request is relayed once
// the handler asks for the next one, or returns without an error.
func (n *Network) tapCoordinate(receiver drpc.Receiver) drpc.Receiver {
	//nolint:revive // the context is second, as dRPC has it
	return func(srv any, ctx context.Context, in1, in2 any) (drpc.Message, error) {
		stream, ok := in1.(drpc.Stream)
		if !ok {
			return receiver(srv, ctx, in1, in2)
		}
		tapped := &coordination{Stream: stream, network: n}
		out, err := receiver(srv, ctx, tapped, in2)
		if err == nil {
			tapped.relay()
		}
		return out, err
	}
}

// coordination is the stream of one Coordinate.
type coordination struct {
	drpc.Stream
	network *Network

	mu sync.Mutex
	// received is the request that the handler has, encoded; nil: none. Guarded by mu.
	received []byte
}

// MsgRecv implements drpc.Stream.
func (c *coordination) MsgRecv(m drpc.Message, enc drpc.Encoding) error {
	c.relay()
	err := c.Stream.MsgRecv(m, enc)
	if err == nil {
		c.network.tap.try(coordinate, func() error {
			// The handler owns the message from now on.
			request, err := enc.Marshal(m)
			if err != nil {
				return fmt.Errorf("encode the request: %w", err)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.received = request
			return nil
		})
	}
	return err
}

// relay relays the request that the handler has.
func (c *coordination) relay() {
	c.mu.Lock()
	request := c.received
	c.received = nil
	c.mu.Unlock()
	if request != nil {
		c.network.tap.try(coordinate, func() error { return c.network.Coordinate(request) })
	}
}

// Coordinate relays the node of a request of Coordinate, of which it keeps nothing else.
// After a disconnect there is none. That is no goodbye: agents that only connect again say
// it, too.
func (n *Network) Coordinate(request []byte) error {
	var node *agentstatsv1.Network
	_, err := decode(request, updateSelfField, func(b []byte) error {
		_, err := decode(b, nodeField, func(b []byte) (err error) {
			node, err = decodeNode(b)
			return err
		})
		return err
	})
	if err != nil {
		return err
	}
	disconnects, err := decode(request, disconnectField, func([]byte) error { return nil })
	if disconnects > 0 {
		node = &agentstatsv1.Network{}
	}
	if node == nil || err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.node = node
	return n.sayLocked()
}

// sayLocked relays the node with the names of its regions, unless that was said before.
func (n *Network) sayLocked() error {
	if n.node == nil {
		return nil
	}
	said := proto.CloneOf(n.node)
	regions := n.tap.regionNames()
	for _, r := range said.GetRegions() {
		r.Name = regions[r.GetId()]
	}
	if proto.Equal(said, n.said) {
		return nil
	}
	n.said = said
	return n.agent.SetNetwork(said)
}

// decodeNode returns the network of a Node.
func decodeNode(b []byte) (*agentstatsv1.Network, error) {
	node, latencies := &agentstatsv1.Network{}, make(map[int64]time.Duration)
	err := eachField(b, func(number protowire.Number, kind protowire.Type, value []byte) {
		switch {
		case number == nodeIDField && kind == protowire.VarintType:
			node.NodeId, _ = protowire.ConsumeVarint(value)
		case number == preferredDERPField && kind == protowire.VarintType:
			id, _ := protowire.ConsumeVarint(value)
			node.PreferredRegionId = max(0, int64(int32(id))) // an int32; the service refuses a negative one
		case number == derpLatencyField && kind == protowire.BytesType:
			entry, _ := protowire.ConsumeBytes(value)
			addLatency(latencies, entry)
		}
	})
	for id, latency := range latencies {
		node.Regions = append(node.Regions, &agentstatsv1.Network_Region{Id: id, Latency: durationpb.New(latency)})
	}
	slices.SortFunc(node.Regions, func(a, b *agentstatsv1.Network_Region) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return node, err
}

// addLatency adds an entry of derp_latency, of which a region has one by IPv4 and one by
// IPv6: the lower one counts. One that makes no sense is left out, and so is one of a region
// beyond the first maxRegions.
func addLatency(latencies map[int64]time.Duration, entry []byte) {
	var key string
	seconds := math.NaN()
	_ = eachField(entry, func(number protowire.Number, kind protowire.Type, value []byte) {
		switch {
		case number == mapKeyField && kind == protowire.BytesType:
			b, _ := protowire.ConsumeBytes(value)
			key = string(b)
		case number == mapValueField && kind == protowire.Fixed64Type:
			bits, _ := protowire.ConsumeFixed64(value)
			seconds = math.Float64frombits(bits)
		}
	})
	region, _, _ := strings.Cut(key, "-")
	id, err := strconv.ParseInt(region, 10, 64)
	if err != nil || id <= 0 || math.IsNaN(seconds) || seconds < 0 || seconds > maxLatency.Seconds() {
		return
	}
	latency := time.Duration(seconds * float64(time.Second))
	if known, ok := latencies[id]; ok && latency < known || !ok && len(latencies) < maxRegions {
		latencies[id] = latency
	}
}

// tapDERPMaps returns a receiver that reads the names of regions in what coderd sends.
func (n *Network) tapDERPMaps(receiver drpc.Receiver) drpc.Receiver {
	//nolint:revive // the context is second, as dRPC has it
	return func(srv any, ctx context.Context, in1, in2 any) (drpc.Message, error) {
		if stream, ok := in2.(drpc.Stream); ok {
			in2 = &derpMaps{Stream: stream, network: n}
		}
		return receiver(srv, ctx, in1, in2)
	}
}

// derpMaps is the stream of one StreamDERPMaps.
type derpMaps struct {
	drpc.Stream
	network *Network
}

// MsgSend implements drpc.Stream.
func (d *derpMaps) MsgSend(m drpc.Message, enc drpc.Encoding) error {
	d.network.tap.try(streamDERPMaps, func() error {
		derpMap, err := enc.Marshal(m)
		if err != nil {
			return fmt.Errorf("encode the DERP map: %w", err)
		}
		return d.network.relayDERPMap(derpMap)
	})
	return d.Stream.MsgSend(m, enc)
}

// relayDERPMap relays the node with the names of a DERP map.
func (n *Network) relayDERPMap(derpMap []byte) error {
	names := make(map[int64]string)
	_, err := decode(derpMap, regionsField, func(entry []byte) error {
		var id int64
		var name string
		err := eachField(entry, func(number protowire.Number, kind protowire.Type, value []byte) {
			switch {
			case number == mapKeyField && kind == protowire.VarintType:
				key, _ := protowire.ConsumeVarint(value)
				id = int64(key)
			case number == mapValueField && kind == protowire.BytesType:
				region, _ := protowire.ConsumeBytes(value)
				_, _ = decode(region, regionNameField, func(b []byte) error {
					name = string(b)
					return nil
				})
			}
		})
		names[id] = name
		return err
	})
	if err != nil {
		return err
	}
	return n.SetRegions(names)
}

// SetRegions sets the names of regions, as the newest DERP map has them, and relays the node
// with them. It takes over names.
func (n *Network) SetRegions(names map[int64]string) error {
	for id, name := range names {
		names[id] = strings.ToValidUTF8(name[:min(len(name), maxRegionName)], "")
	}
	n.tap.setRegionNames(names)
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sayLocked()
}

// setRegionNames sets the names of the newest DERP map. All agents have the same one.
func (t *Tap) setRegionNames(names map[int64]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !maps.Equal(t.regions, names) {
		t.regions = names
	}
}

func (t *Tap) regionNames() map[int64]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.regions
}
