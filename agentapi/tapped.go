package agentapi

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/contract"
	"github.com/coder/agentstatsd/internal/tap"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxTappedNames of samples, metadata keys, apps and regions are named in an event.
const maxTappedNames = 10

// tapEvent shows an event to those who watch the agent.
func (c *connection) tapEvent(at time.Time, sequence int64, kind, format string, args ...any) {
	c.service.Taps.Send(c.who.Agent, tap.Event{At: at, Sequence: sequence, Kind: kind, Text: fmt.Sprintf(format, args...)})
}

// tapHello shows that a session was opened.
func (c *connection) tapHello(session *fleet.Session) {
	if !c.service.Taps.Watches(c.who.Agent) {
		return
	}
	info := session.Info()
	text := fmt.Sprintf("version %s, epoch %d, instance %x", cmp.Or(c.version, "not said"), info.Epoch, info.Instance)
	if info.Relayed {
		text += ", relayed"
	}
	c.tapEvent(time.Now(), 0, "hello", "%s", text)
}

// tapRequest shows the parts of a request.
func (c *connection) tapRequest(at time.Time, f *wire.Frame) {
	show := func(kind, text string) { c.tapEvent(at, f.Sequence, kind, "%s", text) }
	m := f.Request
	switch {
	case f.Stats != nil:
		show("stats", reportText(f.Stats))
	case m.GetStats() != nil:
		report := wire.NewMessageReport(m.GetStats())
		show("stats", reportText(report))
		report.Release()
	}
	var keys []string
	if entries, ok := f.MetadataEntries(); ok {
		for i := range entries {
			keys = append(keys, entryText(entries[i].Key, entries[i].Error))
		}
		show("metadata", listText("key", keys))
	} else if m.GetMetadata() != nil {
		for _, entry := range m.GetMetadata().GetMetadata() {
			keys = append(keys, entryText(entry.GetKey(), entry.GetResult().GetError()))
		}
		show("metadata", listText("key", keys))
	}
	if m.GetLifecycle() != nil {
		show("lifecycle", lifecycleText(m.GetLifecycle()))
	}
	if m.GetAppHealth() != nil {
		show("app_health", c.healthText(m.GetAppHealth().GetUpdates()))
	}
	if m.GetNetwork() != nil {
		show("network", networkText(m.GetNetwork()))
	}
	if m.GetGoodbye() != nil {
		show("goodbye", "the agent goes away for good")
	}
}

// tapRefused shows what was refused of a request.
func (c *connection) tapRefused(sequence int64, refused []agent.Refusal) {
	if len(refused) == 0 || !c.service.Taps.Watches(c.who.Agent) {
		return
	}
	for i := range refused {
		r := &refused[i]
		c.tapEvent(time.Now(), sequence, "refused", "%d for %s: %s", r.Count, r.Reason, r.Message)
	}
}

// tapEnd shows how the session ended. err is the status that the agent gets; nil: none.
func (c *connection) tapEnd(session *fleet.Session, err error) {
	if !c.service.Taps.Watches(c.who.Agent) {
		return
	}
	text := string(session.End())
	if err != nil {
		text += ": " + status.Convert(err).Message()
	}
	c.tapEvent(time.Now(), 0, "end", "%s", text)
}

// reportText describes a report.
func reportText(r agent.Report) string {
	s := r.Stats()
	sessions := make([]string, 0, len(s.Apps))
	for app, n := range s.Apps {
		if n > 0 {
			sessions = append(sessions, fmt.Sprintf("%s %d", agent.SessionApps[app].Name, n))
		}
	}
	names := make([]string, r.Len())
	for i := range names {
		names[i] = strings.Clone(r.Sample(i).Name)
	}
	return fmt.Sprintf("rx %d bytes, tx %d bytes, %d connections, latency %v ms, %s; %s",
		s.RxBytes, s.TxBytes, s.ConnectionCount, s.MedianLatencyMS, listText("session app", sessions), listText("sample", names))
}

// entryText names a metadata key. Whether it has an error is said, not which.
func entryText(key, problem string) string {
	if problem != "" {
		return key + " (error)"
	}
	return key
}

// listText returns how many things there are, and the first of them.
func listText(thing string, names []string) string {
	n := len(names)
	text := fmt.Sprintf("%d %s", n, thing)
	if n != 1 {
		text += "s"
	}
	if n == 0 {
		return text
	}
	text += ": " + strings.Join(names[:min(n, maxTappedNames)], ", ")
	if more := n - maxTappedNames; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func lifecycleText(l *agentstatsv1.Lifecycle) string {
	state := string(contract.LifecycleStates[l.GetState()])
	if state == "" {
		state = fmt.Sprintf("unknown state %d", l.GetState())
	}
	if at, err := contract.TimeOf(l.GetChangedAt()); err == nil && !at.IsZero() {
		state += " since " + at.UTC().Format(time.RFC3339)
	}
	return state
}

// healthText names the apps as they are registered.
func (c *connection) healthText(updates []*agentstatsv1.AppHealthUpdate) string {
	slugs := make(map[agent.ID]string)
	if reg := c.service.Fleet.Registration(c.who.Agent); reg != nil {
		for _, app := range reg.Apps {
			slugs[app.ID] = app.Slug
		}
	}
	apps := make([]string, 0, len(updates))
	for _, u := range updates {
		id, _ := uuid.FromBytes(u.GetId())
		health := cmp.Or(string(contract.AppHealths[u.GetHealth()]), fmt.Sprintf("unknown health %d", u.GetHealth()))
		apps = append(apps, cmp.Or(slugs[id], id.String())+" "+health)
	}
	return listText("app", apps)
}

func networkText(n *agentstatsv1.Network) string {
	regions := make([]string, 0, len(n.GetRegions()))
	for _, r := range n.GetRegions() {
		name := cmp.Or(r.GetName(), fmt.Sprint("region ", r.GetId()))
		if r.GetLatency() != nil {
			name += " " + r.GetLatency().AsDuration().String()
		}
		regions = append(regions, name)
	}
	return fmt.Sprintf("preferred region %d, %s", n.GetPreferredRegionId(), listText("region", regions))
}
