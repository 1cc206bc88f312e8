package operator

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxPendingAge is above what the intervals of agents are lengthened for.
	maxPendingAge = 30 * time.Second
	// maxScrapeAge is three scrapes of a minute each.
	maxScrapeAge = 3 * time.Minute
	// maxStatusAge is several heartbeats.
	maxStatusAge = time.Minute
	// maxClockSkew is how far the clock of a replica may be ahead of ours.
	maxClockSkew = 30 * time.Second
)

// checkReplica checks how a replica says that it is.
func (f *findings) checkReplica(name string, r *agentstatsv1.ReplicaStatus, now time.Time) {
	f.checkReadiness(name, r)
	f.checkLimits(name, r)
	f.checkDurability(name, r.GetDurability())
	f.checkTimes(name, r, now)
	for _, c := range r.GetCertificates() {
		if left := c.GetNotAfter().AsTime().Sub(now); left <= 0 {
			f.add("certificate", name, resultWrong, "replace its files: no restart is needed", "the one of %s (%s) has ended %s ago", c.GetListener(), c.GetKind(), span(-left))
		}
	}
}

// drainingComponent is not ready while a replica drains, which is no fault.
const drainingComponent = "draining"

func (f *findings) checkReadiness(name string, r *agentstatsv1.ReplicaStatus) {
	ready := r.GetReady()
	for _, c := range r.GetComponents() {
		if !c.GetReady() && c.GetName() != drainingComponent {
			ready = false
			f.add("ready", name, resultWrong, "docs/operations.md has what each reason means", "%s: %s", c.GetName(), c.GetReason())
		}
	}
	switch {
	case r.GetDraining():
		f.add("ready", name, resultWarning, "agentstatsd drain --undo ends it, unless the process stops", "it drains, and takes no agents")
	case ready:
		f.add("ready", name, resultOK, "", "all %d components work", len(r.GetComponents()))
	case len(r.GetComponents()) == 0:
		f.add("ready", name, resultWrong, "look at its log", "it is not ready")
	}
	for _, warning := range r.GetWarnings() {
		f.add("warnings", name, resultWarning, "", "%s", warning)
	}
}

func (f *findings) checkLimits(name string, r *agentstatsv1.ReplicaStatus) {
	found := false
	for _, l := range r.GetLimits() {
		if l.Used == nil || l.GetLimit() <= 0 || l.GetUsed() <= nearlyFull*l.GetLimit() {
			continue
		}
		found = true
		result := resultWarning
		if l.GetUsed() >= l.GetLimit() {
			result = resultWrong
		}
		f.add("limits", name, result, "agentstatsd cardinality says who uses it; docs/configuration.md has its option",
			"%s: %s of %s are used, %.0f %%", l.GetName(), number(l.GetUsed()), number(l.GetLimit()), 100*l.GetUsed()/l.GetLimit())
	}
	if !found {
		f.add("limits", name, resultOK, "", "none of %d is used by more than %.0f %%", len(r.GetLimits()), 100*nearlyFull)
	}
}

func (f *findings) checkDurability(name string, d *agentstatsv1.Durability) {
	if d == nil {
		return
	}
	sum := d.GetCoalesced() + d.GetFlushed() + d.GetUnchanged() + d.GetDropped() + d.GetPending()
	if d.GetReceived() != sum {
		f.add("durability", name, resultWrong, "this is a defect: report it, with a support-bundle",
			"%s entries of metadata came in, and what became of them adds up to %s", number(d.GetReceived()), number(sum))
	} else {
		f.add("durability", name, resultOK, "", "%s entries of metadata came in, and what became of them adds up", number(d.GetReceived()))
	}
	switch age := d.GetOldestPendingSeconds(); {
	case age > maxPendingAge.Seconds():
		f.add("pending", name, resultWrong, "look at the database: agents keep what is not acked", "%s entries wait for the database, the oldest for %s; flushes that failed: %s",
			number(d.GetPending()), seconds(age), number(d.GetFlushErrors()))
	default:
		f.add("pending", name, resultOK, "", "%s entries wait for the database, the oldest for %s", number(d.GetPending()), seconds(age))
	}
}

func (f *findings) checkTimes(name string, r *agentstatsv1.ReplicaStatus, now time.Time) {
	point := "point a Prometheus at its --prometheus-address"
	switch at := r.GetScrapedAt(); {
	case !at.IsValid():
		f.add("scrapes", name, resultWrong, point, "nobody has scraped it")
	case now.Sub(at.AsTime()) > maxScrapeAge:
		f.add("scrapes", name, resultWrong, point, "the last scrape was %s ago", span(now.Sub(at.AsTime())))
	default:
		f.add("scrapes", name, resultOK, "", "the last one was %s ago", span(now.Sub(at.AsTime())))
	}
	newest := later(r.GetScrapedAt(), r.GetStartedAt())
	if newest.IsValid() && newest.AsTime().Sub(now) > maxClockSkew {
		f.add("clock", name, resultWrong, "have both machines synchronise their clocks", "its clock is ahead of this machine's by %s or more", span(newest.AsTime().Sub(now)))
	}
}

// checkTogether checks what replicas have to have together.
func (f *findings) checkTogether(a *asked, all []*examined) {
	for _, u := range a.unasked {
		f.add("reached", replicaName(u), resultWarning, "give its --address", "it lives, and was not asked: the others say how it was %s ago", seconds(u.GetAgeSeconds()))
	}
	statuses := a.statuses()
	for _, s := range statuses {
		if age := s.GetAgeSeconds(); s.GetAlive() && age > maxStatusAge.Seconds() {
			f.add("heartbeat", replicaName(s), resultWrong, "look at it, and at the database", "it has not said how it is for %s", seconds(age))
		}
	}
	f.checkAlive(statuses)
	f.checkConfig(all)
	f.checkCoderd(all)
}

// checkAlive checks those that live.
func (f *findings) checkAlive(statuses []*agentstatsv1.ReplicaStatus) {
	versions := make(map[string][]string)
	alive, registered, connected := 0, 0.0, 0.0
	var leaders []string
	for _, s := range statuses {
		if !s.GetAlive() {
			continue
		}
		alive++
		versions[s.GetVersion()] = append(versions[s.GetVersion()], replicaName(s))
		registered = max(registered, s.GetRegistered())
		connected += s.GetConnected()
		if s.GetLeads() {
			leaders = append(leaders, replicaName(s))
		}
	}
	if alive == 0 {
		return
	}
	if len(versions) > 1 {
		var texts []string
		for _, v := range slices.Sorted(maps.Keys(versions)) {
			texts = append(texts, fmt.Sprintf("%s has %s", strings.Join(versions[v], ", "), v))
		}
		f.add("version", "", resultWarning, "end the upgrade", "replicas differ: %s", strings.Join(texts, "; "))
	} else {
		f.add("version", "", resultOK, "", "all %d replicas have %s", alive, slices.Collect(maps.Keys(versions))[0])
	}
	if len(leaders) != 1 {
		f.add("leader", "", resultWrong, "wait for --lease-duration, then look at the database", "want one replica that leads, got %d: %s", len(leaders), strings.Join(leaders, ", "))
	} else {
		f.add("leader", "", resultOK, "", "%s leads", leaders[0])
	}
	switch {
	case registered == 0:
		f.add("agents", "", resultWarning, "docs/adopting.md and docs/quickstart-coder.md say how coderd or a bridge registers them", "none is registered")
	case connected == 0:
		f.add("agents", "", resultWarning, "look whether agents, or who relays for them, reach the gRPC address", "%s are registered, none is connected", number(registered))
	default:
		f.add("agents", "", resultOK, "", "%s are registered, %s are connected", number(registered), number(connected))
	}
}

// alikeGroups are the groups of options that replicas have alike.
var alikeGroups = []string{"Agents", "Pushes", "Metadata"}

// checkConfig compares the options of replicas with those of the first.
func (f *findings) checkConfig(all []*examined) {
	var first *examined
	compared, differences := 0, 0
	for _, e := range all {
		if e.config == nil {
			continue
		}
		compared++
		if first == nil {
			first = e
			continue
		}
		values := make(map[string]string)
		for _, o := range first.config.GetOptions() {
			values[o.GetFlag()] = o.GetValue()
		}
		for _, o := range e.config.GetOptions() {
			if value, ok := values[o.GetFlag()]; ok && slices.Contains(alikeGroups, o.GetGroup()) && value != o.GetValue() {
				differences++
				f.add("configuration", e.label(), resultWrong, "give all replicas the same one", "--%s is %s, and %s at %s", o.GetFlag(), o.GetValue(), value, first.label())
			}
		}
	}
	if compared > 1 && differences == 0 {
		f.add("configuration", "", resultOK, "", "%d replicas agree", compared)
	}
}

// checkCoderd checks who pushes. A push goes to one replica, which tells the others.
func (f *findings) checkCoderd(all []*examined) {
	newest := make(map[string]*agentstatsv1.Pusher)
	asked := false
	for _, e := range all {
		asked = asked || e.pushes != nil
		for _, p := range e.pushes.GetPushers() {
			key := p.GetReplica() + " " + p.GetInstance()
			if o := newest[key]; o == nil || p.GetPushedAt().AsTime().After(o.GetPushedAt().AsTime()) {
				newest[key] = p
			}
		}
	}
	if !asked {
		return
	}
	pushing, families := 0, 0.0
	for _, key := range slices.Sorted(maps.Keys(newest)) {
		if p := newest[key]; !p.GetExpired() {
			pushing++
			families = math.Max(families, p.GetFamilies())
		}
	}
	if pushing == 0 {
		f.add("coderd", "", resultWarning, "have coderd push (docs/adopting.md), or a bridge with --coderd-metrics-urls", "no coderd and no bridge pushes its families; %d have before", len(newest))
		return
	}
	f.add("coderd", "", resultOK, "", "%d push, up to %s families each", pushing, number(families))
}
