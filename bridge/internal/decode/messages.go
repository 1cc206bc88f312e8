package decode

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds of what a message may have, as the service has them for its own.
const (
	maxApps       = 256
	maxRegions    = 128
	maxRegionName = 128
)

// collected is what is kept of a message.
type collected struct {
	manifest Manifest
	app      App

	hasNode      bool
	disconnected bool
	network      Network
	latency      struct {
		region  string
		seconds float64
	}

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

	coordinateFields = &message{
		1: messageField(&message{1: messageField(nodeFields, func(c *collected) { c.hasNode = true }, nil)}, nil, nil),
		2: messageField(&message{}, func(c *collected) { c.disconnected = true }, nil),
	}
	nodeFields = &message{
		1: varintField(func(c *collected, v uint64) { c.network.NodeID = int64(v) }),
		5: varintField(func(c *collected, v uint64) { c.network.PreferredRegion = int64(int32(v)) }),
		6: messageField(&message{
			1: bytesField(func(c *collected, b []byte) { c.latency.region = string(b) }),
			2: doubleField(func(c *collected, v float64) { c.latency.seconds = v }),
		}, func(c *collected) { c.latency.region, c.latency.seconds = "", 0 }, endLatency),
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

func doubleField(f func(*collected, float64)) field {
	return field{wire: protowire.Fixed64Type, number: func(c *collected, bits uint64) { f(c, math.Float64frombits(bits)) }}
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
	if len(c.regions) < maxRegions && len(c.region.name) <= maxRegionName && utf8.ValidString(c.region.name) {
		c.regions[c.region.id] = c.region.name
	}
}

// endLatency adds the latency to a region, whose key is its id and "-v4" or "-v6". Other
// keys are left out, as coderd does.
func endLatency(c *collected) {
	number, _, _ := strings.Cut(c.latency.region, "-")
	id, err := strconv.ParseInt(number, 10, 64)
	if err != nil || id < 1 || !(c.latency.seconds >= 0) || math.IsInf(c.latency.seconds, 1) {
		return
	}
	known := c.network.Latencies
	if i := slices.IndexFunc(known, func(l Latency) bool { return l.Region == id }); i >= 0 {
		known[i].Seconds = min(known[i].Seconds, c.latency.seconds)
		return
	}
	if len(known) < maxRegions {
		c.network.Latencies = append(c.network.Latencies, Latency{id, c.latency.seconds})
	}
}

// endManifest handles coderd's answer to GetManifest.
func endManifest(c *Connection, kept *collected) error {
	if kept.regions != nil {
		c.handler.Regions(kept.regions)
	}
	return c.identify(&kept.manifest)
}

// endCoordinate handles a message of the agent's coordination. After a disconnect it has no
// node.
func endCoordinate(c *Connection, kept *collected) error {
	if kept.disconnected {
		kept.hasNode, kept.network = true, Network{}
	}
	if kept.hasNode {
		c.setNetwork(&kept.network)
	}
	return nil
}

// endDERPMap handles a DERP map that coderd sends.
func endDERPMap(c *Connection, kept *collected) error {
	if kept.regions != nil {
		c.handler.Regions(kept.regions)
	}
	return nil
}
