package drpctap

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// relayed has the calls that are relayed. Their requests are bytes here. The messages in
// them have the field numbers of ours.
var relayed = map[string]func(Agent, []byte) error{
	"/coder.agent.v2.Agent/UpdateStats":           relayStats,
	"/coder.agent.v2.Agent/BatchUpdateMetadata":   relayMetadata,
	"/coder.agent.v2.Agent/UpdateLifecycle":       relayLifecycle,
	"/coder.agent.v2.Agent/BatchUpdateAppHealths": relayAppHealths,
}

// Relay relays the request of a call that coderd accepted, as a Tap does. It is for those who
// see calls in another way than by coderd's handlers, like a proxy. It returns false if rpc,
// the name of the call, is none of those that are relayed. It keeps nothing of request.
func Relay(agent Agent, rpc string, request []byte) (bool, error) {
	relay := relayed[rpc]
	if relay == nil {
		return false, nil
	}
	return true, relay(agent, request)
}

// The numbers of the only field of each request.
const (
	statsField      = 1
	metadataField   = 2
	lifecycleField  = 1
	appHealthsField = 1
)

// relayStats relays a report. A request without one only asks for the interval.
func relayStats(agent Agent, request []byte) error {
	stats := &agentstatsv1.Stats{}
	n, err := decode(request, statsField, func(b []byte) error { return merge(b, stats) })
	if n > 0 && err == nil {
		agent.Report(stats)
	}
	return err
}

func relayMetadata(agent Agent, request []byte) error {
	var entries []client.Metadata
	_, err := decode(request, metadataField, func(b []byte) error {
		m := &agentstatsv1.Metadata{}
		if err := merge(b, m); err != nil {
			return err
		}
		entries = append(entries, client.Metadata{Key: m.GetKey(), Value: m.GetResult().GetValue(), Error: m.GetResult().GetError()})
		return nil
	})
	if refused := agent.UpdateMetadata(entries...); err == nil {
		err = refused
	}
	return err
}

func relayLifecycle(agent Agent, request []byte) error {
	lifecycle := &agentstatsv1.Lifecycle{}
	n, err := decode(request, lifecycleField, func(b []byte) error { return merge(b, lifecycle) })
	if n == 0 || err != nil {
		return err
	}
	var changedAt time.Time
	if at := lifecycle.GetChangedAt(); at.IsValid() {
		changedAt = at.AsTime()
	}
	agent.SetLifecycle(lifecycle.GetState(), changedAt)
	return nil
}

func relayAppHealths(agent Agent, request []byte) error {
	_, err := decode(request, appHealthsField, func(b []byte) error {
		update := &agentstatsv1.AppHealthUpdate{}
		if err := merge(b, update); err != nil {
			return err
		}
		id, err := uuid.FromBytes(update.GetId())
		if err != nil {
			return fmt.Errorf("app health: id: want 16 bytes, got %d", len(update.GetId()))
		}
		return agent.SetAppHealth(id, update.GetHealth())
	})
	return err
}

func merge(b []byte, m proto.Message) error {
	return proto.UnmarshalOptions{Merge: true}.Unmarshal(b, m)
}

// decode calls f with each value of a field of messages. It returns how many there are,
// and the first error. Errors of f do not keep it from the further values.
func decode(message []byte, field protowire.Number, f func([]byte) error) (n int, first error) {
	err := eachField(message, func(number protowire.Number, kind protowire.Type, value []byte) {
		if number != field || kind != protowire.BytesType {
			return
		}
		n++
		b, _ := protowire.ConsumeBytes(value)
		if err := f(b); err != nil && first == nil {
			first = err
		}
	})
	if first == nil {
		first = err
	}
	return n, first
}

// eachField calls f with each field of a message, and what follows its tag.
func eachField(message []byte, f func(number protowire.Number, kind protowire.Type, value []byte)) error {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return fmt.Errorf("decode the message: %w", protowire.ParseError(size))
		}
		value := message[size:]
		if size = protowire.ConsumeFieldValue(number, kind, value); size < 0 {
			return fmt.Errorf("decode the message: %w", protowire.ParseError(size))
		}
		message = value[size:]
		f(number, kind, value)
	}
	return nil
}
