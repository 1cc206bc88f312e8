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
	Secret                                  string
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
	b = text(b, 12, string(text(text(text(nil, 1, "CPU"), 2, "cpu"), 3, "top "+m.Secret)))
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

func text(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func number(b []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}
