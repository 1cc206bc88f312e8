package codertest

import (
	"math"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
)

// ManifestApp is an app of a manifest.
type ManifestApp struct {
	ID     uuid.UUID
	Slug   string
	Health int
}

// Manifest is coderd's answer to GetManifest. Secret stands in all that is nobody else's
// business: the environment, the scripts, secrets, the commands of apps and metadata.
type Manifest struct {
	AgentID, WorkspaceID                    uuid.UUID
	AgentName, OwnerUsername, WorkspaceName string
	Apps                                    []ManifestApp
	Regions                                 map[int64]string
	// MetadataKeys that the template declares; none: cpu.
	MetadataKeys []string
	Secret       string
}

// Encode returns the manifest as coderd encodes it.
func (m Manifest) Encode() []byte {
	b := text(nil, 1, string(m.AgentID[:]))
	b = text(b, 2, "https://coder.example.com")
	b = text(b, 3, string(text(text(nil, 1, "SECRET"), 2, m.Secret)))
	b = text(b, 6, "/home/"+m.Secret)
	if m.Regions != nil {
		b = text(b, 9, string(DERPMap(m.Regions)))
	}
	b = text(b, 10, string(text(nil, 3, "echo "+m.Secret)))
	for _, a := range m.Apps {
		app := text(nil, 1, string(a.ID[:]))
		app = text(app, 2, "http://localhost/"+m.Secret)
		app = text(app, 4, a.Slug)
		app = text(app, 5, a.Slug)
		app = number(app, 12, uint64(a.Health))
		b = text(b, 11, string(app))
	}
	keys := m.MetadataKeys
	if keys == nil {
		keys = []string{"cpu"}
	}
	for _, key := range keys {
		b = text(b, 12, string(text(text(text(nil, 1, "CPU"), 2, key), 3, "top "+m.Secret)))
	}
	b = text(b, 13, m.OwnerUsername)
	b = text(b, 14, string(m.WorkspaceID[:]))
	b = text(b, 15, m.AgentName)
	b = text(b, 16, m.WorkspaceName)
	return text(b, 19, string(text(nil, 1, m.Secret)))
}

// DERPMap encodes a DERP map with these regions.
func DERPMap(regions map[int64]string) []byte {
	var b []byte
	for id, name := range regions {
		region := number(nil, 1, uint64(id))
		region = text(region, 3, "code")
		region = text(region, 4, name)
		region = text(region, 6, string(text(nil, 1, "a node of the region")))
		b = text(b, 2, string(text(number(nil, 1, uint64(id)), 2, string(region))))
	}
	return b
}

// ParseNode decodes a message of Coordinate; nil: it says nothing of the agent's node.
// After a disconnect there is none: disconnected.
func ParseNode(message []byte) (node *Node, disconnected bool, err error) {
	err = fieldsOf(message, func(number protowire.Number, v value) error {
		switch {
		case v.wire != protowire.BytesType:
		case number == 1:
			return fieldsOf(v.bytes, func(number protowire.Number, v value) error {
				if number != 1 || v.wire != protowire.BytesType {
					return nil
				}
				node = &Node{Latencies: make(map[string]float64)}
				return fieldsOf(v.bytes, func(number protowire.Number, v value) error { return addToNode(node, number, v) })
			})
		case number == 2:
			disconnected = true
		}
		return nil
	})
	return node, disconnected, err
}

func addToNode(node *Node, number protowire.Number, v value) error {
	switch {
	case number == 1 && v.wire == protowire.VarintType:
		node.ID = int64(v.number)
	case number == 5 && v.wire == protowire.VarintType:
		node.Preferred = int32(v.number)
	case number == 6 && v.wire == protowire.BytesType:
		var region string
		var seconds float64
		if err := fieldsOf(v.bytes, func(number protowire.Number, v value) error {
			if number == 1 && v.wire == protowire.BytesType {
				region = string(v.bytes)
			}
			if number == 2 && v.wire == protowire.Fixed64Type {
				seconds = math.Float64frombits(v.number)
			}
			return nil
		}); err != nil {
			return err
		}
		node.Latencies[region] = seconds
	}
	return nil
}

func text(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func number(b []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}
