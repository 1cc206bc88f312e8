package decode

import (
	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds of what a message may have, as the service has them for its own.
const (
	maxApps    = 256
	maxRegions = 128
)

// collected is what is kept of a message.
type collected struct {
	manifest Manifest
	app      App

	regions map[int64]string // nil: the message has no DERP map
	region  struct {
		id   int64
		name string
	}
}

// Fields that are kept. Of the manifest these are neither the environment (3), nor the
// scripts (10), nor secrets (19).
var (
	manifestFields = &message{
		1:  bytesField(func(c *collected, b []byte) { c.manifest.AgentID = idOf(b) }),
		9:  messageField(derpMapFields, beginRegions, nil),
		11: messageField(appFields, func(c *collected) { c.app = App{} }, endApp),
		13: bytesField(func(c *collected, b []byte) { c.manifest.OwnerUsername = string(b) }),
		14: bytesField(func(c *collected, b []byte) { c.manifest.WorkspaceID = idOf(b) }),
		15: bytesField(func(c *collected, b []byte) { c.manifest.AgentName = string(b) }),
		16: bytesField(func(c *collected, b []byte) { c.manifest.WorkspaceName = string(b) }),
	}
	appFields = &message{
		1:  bytesField(func(c *collected, b []byte) { c.app.ID = idOf(b) }),
		12: varintField(func(c *collected, v uint64) { c.app.Health = int32(v) }),
	}

	derpMapFields = &message{2: messageField(&message{
		1: varintField(func(c *collected, v uint64) { c.region.id = int64(v) }),
		2: messageField(&message{4: bytesField(func(c *collected, b []byte) { c.region.name = string(b) })}, nil, nil),
	}, func(c *collected) { c.region.id, c.region.name = 0, "" }, endRegion)}
)

func bytesField(f func(*collected, []byte)) field {
	return field{wire: protowire.BytesType, bytes: f}
}

func varintField(f func(*collected, uint64)) field {
	return field{wire: protowire.VarintType, number: f}
}

func messageField(m *message, begin, end func(*collected)) field {
	return field{wire: protowire.BytesType, message: m, begin: begin, end: end}
}

// idOf returns an id; the zero one if b is none.
func idOf(b []byte) uuid.UUID {
	id, err := uuid.FromBytes(b)
	if err != nil {
		return uuid.Nil
	}
	return id
}

func endApp(c *collected) {
	if len(c.manifest.Apps) < maxApps && c.app.ID != uuid.Nil {
		c.manifest.Apps = append(c.manifest.Apps, c.app)
	}
}

func beginRegions(c *collected) {
	if c.regions == nil {
		c.regions = make(map[int64]string)
	}
}

func endRegion(c *collected) {
	beginRegions(c)
	if len(c.regions) < maxRegions {
		c.regions[c.region.id] = c.region.name
	}
}

// endManifest handles coderd's answer to GetManifest.
func endManifest(c *Connection, kept *collected) error {
	c.setRegions(kept.regions)
	return c.identify(&kept.manifest)
}

// endDERPMap handles a DERP map that coderd sends.
func endDERPMap(c *Connection, kept *collected) error {
	c.setRegions(kept.regions)
	return nil
}
