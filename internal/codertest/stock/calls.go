package stock

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/internal/codertest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Report is one that an agent made.
type Report struct {
	At    time.Time
	Stats *agentstatsv1.Stats
}

// reportsKept is how long reports are kept: longer than any window.
const reportsKept = 5 * time.Minute

// connected handles the connection of an agent, until what it returns is called.
func (c *Coderd) connected(id uuid.UUID) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.agents[id]
	if a == nil {
		return func() {}
	}
	a.connections++
	a.everConnected, a.observed = true, false
	c.showIfCurrentLocked(a)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if a.connections--; a.connections == 0 {
			a.node = nil
		}
		c.showIfCurrentLocked(a)
	}
}

// showIfCurrentLocked has the API say what changed of an agent, unless its build is over.
func (c *Coderd) showIfCurrentLocked(a *agent) {
	if c.agents[a.id] == a {
		c.showLocked(a.workspace)
	}
}

// accept handles a call, and returns its answer.
func (c *Coderd) accept(call codertest.Call) []byte {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.agents[call.Agent]
	if a == nil { // of an earlier build
		return nil
	}
	switch call.Name {
	case codertest.GetManifest:
		return c.manifestLocked(a)
	case codertest.UpdateStats:
		c.updateStatsLocked(a, call.Request, now)
		answer, _ := proto.Marshal(durationpb.New(c.opts.ReportInterval))
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), answer)
	case codertest.UpdateLifecycle:
		eachField(call.Request, 1, func(b []byte) {
			l := &agentstatsv1.Lifecycle{}
			if proto.Unmarshal(b, l) == nil {
				c.updateLifecycleLocked(a, l, now)
			}
		})
	case codertest.BatchUpdateAppHealths:
		eachField(call.Request, 1, func(b []byte) { a.updateAppHealth(b) })
	case codertest.BatchUpdateMetadata:
		eachField(call.Request, 2, func(b []byte) {
			m := &agentstatsv1.Metadata{}
			if proto.Unmarshal(b, m) == nil {
				c.metrics.addMetadata(a.id, m.GetKey())
			}
		})
		return nil
	case codertest.Coordinate:
		node, disconnected, err := codertest.ParseNode(call.Request)
		if err == nil && (node != nil || disconnected) {
			a.node = node
		}
	}
	c.showLocked(a.workspace)
	return nil
}

func (c *Coderd) manifestLocked(a *agent) []byte {
	m := codertest.Manifest{
		AgentID: a.id, WorkspaceID: a.workspace.id, AgentName: a.name, OwnerUsername: a.workspace.owner,
		WorkspaceName: a.workspace.name, Regions: regions, Secret: codertest.Secret,
	}
	for k := range c.opts.MetadataKeys {
		m.MetadataKeys = append(m.MetadataKeys, strconv.Itoa(k)+"_key")
	}
	for _, app := range a.apps {
		m.Apps = append(m.Apps, codertest.ManifestApp{ID: app.ID, Slug: app.Slug, Health: slices.Index(healths, app.Health)})
	}
	return m.Encode()
}

// healths by their numbers.
var healths = []string{"", "disabled", "initializing", "healthy", "unhealthy"}

// eachField calls f with each value of a field that has a length.
func eachField(b []byte, field protowire.Number, f func([]byte)) {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		size := protowire.ConsumeFieldValue(number, wire, b[n:])
		if size < 0 {
			return
		}
		if number == field && wire == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(b[n:])
			f(value)
		}
		b = b[n+size:]
	}
}

// updateAppHealth takes in an update of one app.
func (a *agent) updateAppHealth(update []byte) {
	var id []byte
	eachField(update, 1, func(b []byte) { id = b })
	for n := 0; n < len(update); {
		number, wire, tag := protowire.ConsumeTag(update[n:])
		if tag < 0 {
			return
		}
		if number == 2 && wire == protowire.VarintType {
			health, _ := protowire.ConsumeVarint(update[n+tag:])
			for i := range a.apps {
				if string(a.apps[i].ID[:]) == string(id) && health < uint64(len(healths)) {
					a.apps[i].Health = healths[health]
				}
			}
		}
		size := protowire.ConsumeFieldValue(number, wire, update[n+tag:])
		if size < 0 {
			return
		}
		n += tag + size
	}
}

// states by their numbers.
var states = []string{"", "created", "starting", "start_timeout", "start_error", "ready", "shutting_down", "shutdown_timeout", "shutdown_error", "off"}

// updateLifecycleLocked takes in a state. The last agent of a build that is ready ends it.
func (c *Coderd) updateLifecycleLocked(a *agent, l *agentstatsv1.Lifecycle, now time.Time) {
	at := l.GetChangedAt().AsTime()
	if l.GetChangedAt() == nil || at.IsZero() {
		at = now
	}
	a.lifecycle = states[l.GetState()]
	switch a.lifecycle {
	case "starting":
		a.startedAt, a.readyAt = at, time.Time{}
	case "ready", "start_timeout", "start_error":
		a.readyAt = at
		if a.startedAt.IsZero() {
			a.startedAt = at
		}
		if !a.observed {
			a.observed = true
			c.observeBuildLocked(a.workspace)
		}
	}
}

// observeBuildLocked counts the duration of a build all of whose agents are ready.
func (c *Coderd) observeBuildLocked(w *workspace) {
	status, ready := "success", time.Time{}
	for _, a := range w.agents {
		switch {
		case a.readyAt.IsZero():
			return
		case a.lifecycle == "start_error":
			status = "error"
		case a.lifecycle == "start_timeout" && status != "error":
			status = "timeout"
		}
		if a.readyAt.After(ready) {
			ready = a.readyAt
		}
	}
	c.metrics.builds.WithLabelValues(codertest.TemplateName, codertest.Organization, "start", status, "false").Observe(ready.Sub(w.createdAt).Seconds())
}

func (c *Coderd) updateStatsLocked(a *agent, request []byte, now time.Time) {
	eachField(request, 1, func(b []byte) {
		stats := &agentstatsv1.Stats{}
		if proto.Unmarshal(b, stats) != nil {
			return
		}
		first := slices.IndexFunc(a.reports, func(r Report) bool { return now.Sub(r.At) < reportsKept })
		if first < 0 {
			first = len(a.reports)
		}
		a.reports = append(slices.Clone(a.reports[first:]), Report{now, stats})
		c.metrics.forward(a, stats, now)
	})
}

// latency is that of an agent to a region.
type latency struct {
	region    string
	preferred bool
	seconds   float64
}

// latencies returns those of the agent's node, by region. A region has one.
func (a *agent) latencies() []latency {
	if a.node == nil {
		return nil
	}
	byRegion := make(map[string]latency)
	for key, seconds := range a.node.Latencies {
		number, _, _ := strings.Cut(key, "-")
		id, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			continue
		}
		name := regions[id]
		if name == "" {
			name = "Unnamed " + number
		}
		byRegion[name] = latency{name, id == int64(a.node.Preferred), seconds}
	}
	all := make([]latency, 0, len(byRegion))
	for _, l := range byRegion {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b latency) int { return cmp.Compare(a.region, b.region) })
	return all
}
