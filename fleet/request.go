package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coder/agentstatsd/agent"
)

// Reasons of refusals, as agentstatsd_metadata_refused_keys_total labels them
// and as agents are told.
const (
	ReasonUndeclaredKey = "undeclared_key"
	ReasonTooManyKeys   = "too_many_keys"
	ReasonUnknownApp    = "unknown_app"
	ReasonDisabledApp   = "disabled_app"
)

// maxNameBytes bounds a key in a refusal.
const maxNameBytes = 200

// Request is one request of an agent that is being taken in. It is valid during
// the call that it is passed to.
type Request struct {
	fleet   *Fleet
	entry   *entry
	session agent.Session
	order   agent.Order
	tracker *tracker
	now     time.Time
}

// Agent returns the id of the agent.
func (r Request) Agent() agent.ID { return r.entry.id }

// Workspace returns the id of the agent's workspace.
func (r Request) Workspace() agent.ID { return r.entry.reg.Load().Workspace.ID }

// Owner returns the id of the owner of the agent's workspace.
func (r Request) Owner() agent.ID { return r.entry.reg.Load().Workspace.OwnerID }

// Incarnation returns that of the agent's registration.
func (r Request) Incarnation() int64 { return r.entry.reg.Load().Incarnation }

// Epoch returns the epoch under which the agent's series are open.
func (r Request) Epoch() int64 { return r.session.Epoch }

// Order returns the place of the request among all of the agent.
func (r Request) Order() agent.Order { return r.order }

// Now returns the time of receipt.
func (r Request) Now() time.Time { return r.now }

// Tracker returns who is to be told what becomes of the request.
func (r Request) Tracker() agent.Tracker { return r.tracker }

// Refuse has the instance told what was refused of the request: no ack covers it
// before. It takes ownership of the refusals and their names.
func (r Request) Refuse(refused []agent.Refusal) {
	if r.tracker != nil && len(refused) > 0 {
		r.tracker.refuse(r.order.Sequence, refused)
	}
}

// AdmitMetadata returns the entries whose keys the agent may have, and what it
// refused: keys that its template does not declare or, if that declares none,
// those beyond Options.MaxMetadataKeys. It reuses the memory of entries, and
// keeps none of their texts but copies. Keys that are empty, hold a NUL or are
// longer than agent.MaxMetadataKeyBytes are let through uncounted: whoever
// stores metadata refuses them.
func (r Request) AdmitMetadata(entries []agent.MetadataEntry) ([]agent.MetadataEntry, []agent.Refusal) {
	var (
		kept    []agent.MetadataEntry
		names   []string
		refused int
	)
	declared := r.entry.reg.Load().MetadataKeys
	limit := r.fleet.opts.MaxMetadataKeys
	if len(declared) > 0 {
		kept, names, refused = keepEntries(entries, func(key string) bool {
			_, found := slices.BinarySearch(declared, key)
			return found
		})
	} else {
		r.entry.mu.Lock()
		defer r.entry.mu.Unlock()
		kept, names, refused = keepEntries(entries, func(key string) bool { return r.entry.countKeyLocked(key, limit) })
	}
	if refused == 0 {
		return kept, nil
	}
	refusal := agent.Refusal{
		Kind:    agent.RefusedLimit,
		Reason:  ReasonTooManyKeys,
		Message: fmt.Sprintf("metadata keys: want at most %d of an agent whose template declares none", limit),
		Names:   names,
		Count:   refused,
	}
	if len(declared) > 0 {
		refusal.Kind, refusal.Reason = agent.RefusedNotAllowed, ReasonUndeclaredKey
		refusal.Message = fmt.Sprintf("metadata key: want one of the %d that the template declares", len(declared))
	}
	r.fleet.metrics.refusedKeys.WithLabelValues(refusal.Reason).Add(float64(refused))
	return kept, []agent.Refusal{refusal}
}

// countKeyLocked tells whether the agent may have the key, and keeps it in mind.
func (e *entry) countKeyLocked(key string, limit int) bool {
	if key == "" || len(key) > agent.MaxMetadataKeyBytes || strings.IndexByte(key, 0) >= 0 {
		return true
	}
	i, found := slices.BinarySearch(e.keys, key)
	if found {
		return true
	}
	if len(e.keys) >= limit {
		return false
	}
	e.keys = slices.Insert(e.keys, i, strings.Clone(key))
	return true
}

// keepEntries keeps the entries whose key is allowed, and returns copies of the
// first keys of the others and how many those are.
func keepEntries(entries []agent.MetadataEntry, allowed func(key string) bool) (kept []agent.MetadataEntry, names []string, refused int) {
	kept = entries[:0]
	for i := range entries {
		if allowed(entries[i].Key) {
			kept = append(kept, entries[i])
			continue
		}
		refused++
		if len(names) < agent.MaxRefusalNames {
			names = append(names, refusedName(entries[i].Key))
		}
	}
	return kept, names, refused
}

// refusedName is the start of key, which is UTF-8, as agent.MaxRefusalNames has
// it: a copy.
func refusedName(key string) string {
	end := min(len(key), maxNameBytes)
	for end < len(key) && !utf8.RuneStart(key[end]) {
		end--
	}
	return strings.Clone(key[:end])
}

// Labels of the counter of times that were not taken as they were told.
const (
	clampedFuture = "future"
	clampedBuild  = "before_build"
)

// SetLifecycle records the state, which is held until it is stored. A ChangedAt
// that is zero, after the receipt, or before the build that made the agent is
// taken as the time of receipt, or, of a state that is said again, as the time
// that it has.
func (r Request) SetLifecycle(l agent.Lifecycle) {
	if reason := r.clampedTime(l.ChangedAt); reason != "" {
		r.fleet.metrics.clampedTimes.WithLabelValues(reason).Inc()
		l.ChangedAt = time.Time{}
	}
	ended := false
	r.changeState(func(s *agent.State) (news bool) {
		news = lifecycleOf(s) != l.State
		if l.ChangedAt.IsZero() {
			l.ChangedAt = r.now
			if !news && !s.Lifecycle.ChangedAt.IsZero() {
				l.ChangedAt = s.Lifecycle.ChangedAt
			}
		}
		changed := s.SetLifecycle(l, r.order)
		ended = changed && s.Startup.Result == l.State
		return changed && news
	})
	if ended {
		r.fleet.finishBuild(r.entry)
	}
}

// clampedTime returns why a time at which the agent's state changed cannot be;
// empty: it can.
func (r Request) clampedTime(at time.Time) string {
	reg := r.entry.reg.Load()
	built := reg.Workspace.Build.CreatedAt
	switch {
	case at.IsZero():
	case at.After(r.now):
		return clampedFuture
	case at.Before(built) && !reg.CreatedAt.Before(built): // else it is another build's
		return clampedBuild
	}
	return ""
}

// SetAppHealth records the health of apps, which is held until it is stored;
// apps that are not in the request keep theirs. Apps that are not the agent's, or
// that are registered as disabled, are refused. It takes ownership of the map.
func (r Request) SetAppHealth(health map[agent.ID]agent.AppHealth) []agent.Refusal {
	apps := r.entry.reg.Load().Apps
	unknown := agent.Refusal{
		Kind:    agent.RefusedInvalid,
		Reason:  ReasonUnknownApp,
		Message: fmt.Sprintf("app_health.updates.id: want one of the %d apps of the agent's registration", len(apps)),
	}
	disabled := agent.Refusal{
		Kind:    agent.RefusedNotAllowed,
		Reason:  ReasonDisabledApp,
		Message: "app_health.updates.id: want an app whose health is checked, got one that is registered as disabled",
	}
	for id := range health {
		refusal := &unknown
		if i := slices.IndexFunc(apps, func(a agent.App) bool { return a.ID == id }); i >= 0 {
			if apps[i].Health != agent.AppHealthDisabled {
				continue
			}
			refusal = &disabled
		}
		delete(health, id)
		refusal.Count++
		refusal.Names = append(refusal.Names, id.String())
	}
	if len(health) > 0 {
		r.changeState(func(s *agent.State) (news bool) {
			for id, h := range health {
				was := s.AppHealth[id]
				news = s.SetAppHealth(id, h, r.order) && was != h || news
			}
			return news
		})
	}
	var refused []agent.Refusal
	for _, r := range []agent.Refusal{unknown, disabled} {
		if r.Count > 0 {
			slices.Sort(r.Names) // the order of a map is random
			r.Names = r.Names[:min(len(r.Names), agent.MaxRefusalNames)]
			refused = append(refused, r)
		}
	}
	return refused
}

// SetNetwork records the agent's whole view of the network, which is held until
// it is stored. It takes ownership of n.Regions.
func (r Request) SetNetwork(n agent.Network) {
	r.changeState(func(s *agent.State) bool {
		if r.order.Compare(s.NetworkOrder) > 0 {
			s.Network, s.NetworkOrder = n, r.order
		}
		return false
	})
}

// changeState changes the state, holds the request until it is written, and tells
// of the change if it is news.
func (r Request) changeState(change func(*agent.State) (news bool)) {
	e := r.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	news := change(&e.state)
	r.fleet.presentLocked(e, r.now)
	if news {
		r.fleet.news.tell(e.id)
	}
	e.holdLocked(r.tracker, r.order)
	if !e.dirty {
		e.dirty = true
		r.fleet.writes.addState(e)
	}
}

// hold is the oldest sequence of an instance that waits for the agent's state to
// be written; newer ones ride on it.
type hold struct {
	tracker  *tracker
	sequence int64
	epoch    int64 // of the session that brought it
}

func (e *entry) holdLocked(t *tracker, order agent.Order) {
	if slices.ContainsFunc(e.holds, func(h hold) bool { return h.tracker == t }) {
		return
	}
	t.Hold(order.Sequence)
	e.holds = append(e.holds, hold{t, order.Sequence, order.Epoch})
}

func cloneState(s agent.State) agent.State {
	s.AppHealth, s.AppHealthOrder = maps.Clone(s.AppHealth), maps.Clone(s.AppHealthOrder)
	return s // Network.Regions is replaced as a whole, never changed in place
}
