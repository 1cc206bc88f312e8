package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Reasons of refusals, as agentstatsd_metadata_refused_keys_total labels them
// and as agents are told.
const (
	ReasonUndeclaredKey = "undeclared_key"
	ReasonTooManyKeys   = "too_many_keys"
	ReasonUnknownApp    = "unknown_app"
)

// Request is one request of an agent that is being taken in. It is valid during
// the call that it is passed to.
type Request struct {
	fleet   *Fleet
	entry   *entry
	session agent.Session
	order   agent.Order
	tracker *tracker // nil: outside a session
	now     time.Time
}

// Agent returns the id of the agent.
func (r Request) Agent() agent.ID { return r.entry.id }

// Workspace returns the id of the agent's workspace.
func (r Request) Workspace() agent.ID { return r.entry.reg.Load().Workspace.ID }

// Epoch returns the epoch under which the agent's series are open.
func (r Request) Epoch() int64 { return r.session.Epoch }

// Order returns the place of the request among all of the agent.
func (r Request) Order() agent.Order { return r.order }

// Now returns the time of receipt.
func (r Request) Now() time.Time { return r.now }

// Tracker returns who is to be told what becomes of the request; nil: nobody.
func (r Request) Tracker() agent.Tracker {
	if r.tracker == nil {
		return nil
	}
	return r.tracker
}

// AdmitMetadata returns the entries whose keys the agent may have, and what it
// refused: keys that its template does not declare or, if that declares none,
// those beyond Options.MaxMetadataKeys. It reuses the memory of entries. Keys
// that are empty or hold a NUL are let through uncounted: whoever stores
// metadata refuses them.
func (r Request) AdmitMetadata(entries []agent.MetadataEntry) ([]agent.MetadataEntry, []agent.Refusal) {
	declared := r.entry.reg.Load().MetadataKeys
	if len(declared) > 0 {
		return r.refuseKeys(entries, agent.Refusal{
			Kind:    agent.RefusedNotAllowed,
			Reason:  ReasonUndeclaredKey,
			Message: fmt.Sprintf("metadata key: want one of the %d that the template declares", len(declared)),
		}, func(key string) bool {
			_, found := slices.BinarySearch(declared, key)
			return found
		})
	}
	limit := r.fleet.opts.MaxMetadataKeys
	r.entry.mu.Lock()
	defer r.entry.mu.Unlock()
	return r.refuseKeys(entries, agent.Refusal{
		Kind:    agent.RefusedLimit,
		Reason:  ReasonTooManyKeys,
		Message: fmt.Sprintf("metadata keys: want at most %d of an agent whose template declares none", limit),
	}, func(key string) bool { return r.entry.countKeyLocked(key, limit) })
}

// countKeyLocked tells whether the agent may have the key, and keeps it in mind.
func (e *entry) countKeyLocked(key string, limit int) bool {
	if key == "" || strings.IndexByte(key, 0) >= 0 {
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

// refuseKeys keeps the entries whose key is allowed; refusal describes the rest.
func (r Request) refuseKeys(entries []agent.MetadataEntry, refusal agent.Refusal, allowed func(key string) bool) ([]agent.MetadataEntry, []agent.Refusal) {
	kept := entries[:0]
	for _, entry := range entries {
		if allowed(entry.Key) {
			kept = append(kept, entry)
			continue
		}
		refusal.Count++
		if len(refusal.Names) < agent.MaxRefusalNames {
			refusal.Names = append(refusal.Names, entry.Key)
		}
	}
	clear(entries[len(kept):])
	if refusal.Count == 0 {
		return kept, nil
	}
	r.fleet.metrics.refusedKeys.WithLabelValues(refusal.Reason).Add(float64(refusal.Count))
	return kept, []agent.Refusal{refusal}
}

// SetLifecycle records the state, which is held until it is stored, and returns
// it. A zero ChangedAt is taken as the time of receipt.
func (r Request) SetLifecycle(l agent.Lifecycle) agent.Lifecycle {
	if l.ChangedAt.IsZero() {
		l.ChangedAt = r.now
	}
	ended := false
	r.changeState(func(s *agent.State) (news bool) {
		if r.order.Compare(s.LifecycleOrder) <= 0 {
			return false
		}
		news = lifecycleOf(s) != l.State
		s.Startup = s.Startup.After(l)
		s.Lifecycle, s.LifecycleOrder = l, r.order
		ended = s.Startup.Result == l.State
		return news
	})
	if ended {
		r.fleet.finishBuild(r.entry)
	}
	return l
}

// SetAppHealth records the health of apps, which is held until it is stored;
// apps that are not in the request keep theirs. Apps that are not the agent's
// are refused. It takes ownership of the map.
func (r Request) SetAppHealth(health map[agent.ID]agent.AppHealth) []agent.Refusal {
	apps := r.entry.reg.Load().Apps
	refusal := agent.Refusal{
		Kind:    agent.RefusedInvalid,
		Reason:  ReasonUnknownApp,
		Message: fmt.Sprintf("app_health.updates.id: want one of the %d apps of the agent's registration", len(apps)),
	}
	for id := range health {
		if slices.ContainsFunc(apps, func(a agent.App) bool { return a.ID == id }) {
			continue
		}
		delete(health, id)
		refusal.Count++
		refusal.Names = append(refusal.Names, id.String())
	}
	if len(health) > 0 {
		r.changeState(func(s *agent.State) (news bool) {
			if r.order.Compare(s.AppHealthOrder) <= 0 {
				return false
			}
			for id, h := range health {
				news = news || s.AppHealth[id] != h
			}
			if s.AppHealth == nil {
				s.AppHealth = make(map[agent.ID]agent.AppHealth, len(health))
			}
			maps.Copy(s.AppHealth, health)
			s.AppHealthOrder = r.order
			return news
		})
	}
	if refusal.Count == 0 {
		return nil
	}
	slices.Sort(refusal.Names) // the order of a map is random
	refusal.Names = refusal.Names[:min(len(refusal.Names), agent.MaxRefusalNames)]
	return []agent.Refusal{refusal}
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
	e.holdLocked(r.tracker, r.order.Sequence)
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
}

func (e *entry) holdLocked(t *tracker, sequence int64) {
	if t == nil || slices.ContainsFunc(e.holds, func(h hold) bool { return h.tracker == t }) {
		return
	}
	t.Hold(sequence)
	e.holds = append(e.holds, hold{t, sequence})
}

func cloneState(s agent.State) agent.State {
	s.AppHealth = maps.Clone(s.AppHealth)
	return s // Network.Regions is replaced as a whole, never changed in place
}
