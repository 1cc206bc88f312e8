package coderagent

import (
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Numbers of fields in Coder's messages. Their values are those of agentstats.v1, which has
// Coder's numbers.
const (
	statsField        = 1 // of UpdateStatsRequest
	intervalField     = 1 // of its answer
	lifecycleField    = 1 // of UpdateLifecycleRequest
	metadataField     = 2 // of BatchUpdateMetadataRequest
	healthField       = 1 // of BatchUpdateAppHealthRequest
	agentIDField      = 1 // of Manifest
	appsField         = 11
	descriptionsField = 12
	appIDField        = 1 // of an app
	keyField          = 2 // of the description of metadata
)

// Manifest is what a simulated agent uses of coderd's answer to GetManifest.
type Manifest struct {
	AgentID uuid.UUID
	// Apps are the ids of its apps, MetadataKeys the keys that its template declares.
	Apps         []uuid.UUID
	MetadataKeys []string
}

// ParseManifest decodes coderd's answer to GetManifest.
func ParseManifest(b []byte) (m Manifest, err error) {
	err = eachBytes(b, func(number protowire.Number, value []byte) error {
		switch number {
		case agentIDField:
			m.AgentID, err = uuid.FromBytes(value)
			return err
		case appsField:
			return eachBytes(value, func(number protowire.Number, value []byte) error {
				if number != appIDField {
					return nil
				}
				id, err := uuid.FromBytes(value)
				m.Apps = append(m.Apps, id)
				return err
			})
		case descriptionsField:
			return eachBytes(value, func(number protowire.Number, value []byte) error {
				if number == keyField {
					m.MetadataKeys = append(m.MetadataKeys, string(value))
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return Manifest{}, fmt.Errorf("decode the manifest: %w", err)
	}
	return m, nil
}

// eachBytes calls f with each field of a message that has a length.
func eachBytes(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		size := protowire.ConsumeFieldValue(number, wire, b[n:])
		if size < 0 {
			return protowire.ParseError(size)
		}
		if wire == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(b[n:])
			if err := f(number, value); err != nil {
				return err
			}
		}
		b = b[n+size:]
	}
	return nil
}

// StatsRequest encodes a request of UpdateStats.
func StatsRequest(s *agentstatsv1.Stats) ([]byte, error) { return inField(nil, statsField, s) }

// ReportInterval decodes the answer to UpdateStats; 0: it has none.
func ReportInterval(answer []byte) (time.Duration, error) {
	var interval durationpb.Duration
	err := eachBytes(answer, func(number protowire.Number, value []byte) error {
		if number != intervalField {
			return nil
		}
		return proto.Unmarshal(value, &interval)
	})
	if err != nil {
		return 0, fmt.Errorf("decode the report interval: %w", err)
	}
	return interval.AsDuration(), nil
}

// LifecycleRequest encodes a request of UpdateLifecycle.
func LifecycleRequest(l *agentstatsv1.Lifecycle) ([]byte, error) {
	return inField(nil, lifecycleField, l)
}

// MetadataRequest encodes a request of BatchUpdateMetadata.
func MetadataRequest(entries []*agentstatsv1.Metadata) (b []byte, err error) {
	for _, entry := range entries {
		if b, err = inField(b, metadataField, entry); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// AppHealthsRequest encodes a request of BatchUpdateAppHealths: all apps have one health.
func AppHealthsRequest(apps []uuid.UUID, health agentstatsv1.AppHealth) (b []byte) {
	for _, app := range apps {
		update := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), app[:])
		update = number(update, 2, uint64(health))
		b = protowire.AppendBytes(protowire.AppendTag(b, healthField, protowire.BytesType), update)
	}
	return b
}

// inField appends a message as a field.
func inField(b []byte, number protowire.Number, m proto.Message) ([]byte, error) {
	encoded, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode a request: %w", err)
	}
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), encoded), nil
}

// Node is an agent's view of its network.
type Node struct {
	ID        int64
	Preferred int32
	// Latencies in seconds, by a region's id and "-v4" or "-v6".
	Latencies map[string]float64
}

// UpdateSelf encodes the message of Coordinate that says it.
func (n Node) UpdateSelf() []byte {
	b := number(nil, 1, uint64(n.ID))
	b = text(b, 3, "a key of 32 bytes")
	b = number(b, 5, uint64(n.Preferred))
	for region, seconds := range n.Latencies {
		entry := text(nil, 1, region)
		entry = protowire.AppendTag(entry, 2, protowire.Fixed64Type)
		entry = protowire.AppendFixed64(entry, math.Float64bits(seconds))
		b = text(b, 6, string(entry))
	}
	return text(nil, 1, string(text(nil, 1, string(b))))
}

// Disconnect encodes the message of Coordinate that ends the coordination.
func Disconnect() []byte { return text(nil, 2, "") }

func text(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func number(b []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}
