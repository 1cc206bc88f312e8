// Package refusals knows whom the service refuses what, and why. It keeps the last
// refusals of each agent, and sums by template, by owner and by the version of agents.
// It logs them in few lines, however many agents are refused something.
package refusals

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

// Bounds of what is kept of a refusal, in bytes but for the numbers.
const (
	maxNames       = 5
	maxNameBytes   = 200
	maxProblem     = 500
	maxReasons     = 8 // of an agent; the one that is oldest makes room
	maxSumReasons  = 64
	maxSubjectText = 256
)

// Agents knows who is registered.
type Agents interface {
	// Registration returns the registration of an agent, which is not changed; nil: it
	// has none. It does not block.
	Registration(id agent.ID) *agent.Registration
}

// Subject is whom a refusal is of.
type Subject struct {
	Agent agent.ID
	// AgentName, Workspace, Owner and Template are empty if the agent is not registered.
	AgentName, Workspace, Owner, Template string
	// Version of the agent, as it says itself; empty: it does not.
	Version string
}

// Refusal is what an agent was refused last for one reason.
type Refusal struct {
	Reason string
	// Problem is for a person: it names the field, the limit and the value.
	Problem string
	// Names are sample names or metadata keys, the first few.
	Names []string
	At    time.Time
	// Count is how many items the agent was refused for the reason since it was first
	// refused something.
	Count int64
}

// Last are the last refusals of an agent, the newest first: one for each reason.
type Last struct {
	Subject
	Refusals []Refusal
}

// Refusals keeps what was refused. Its methods may be called concurrently. They touch
// memory only.
type Refusals struct {
	agents  Agents
	opts    Options
	metrics *metrics
	log     *slog.Logger

	mu sync.Mutex
	// Guarded by mu.

	slots *simplelru.LRU[agent.ID, *slot] // which has no limit of its own
	bytes int                             // of all slots
	sums  [groups]sums
	// labelled are the templates with a label of their own in metrics.
	labelled map[string]struct{}
	lines    lines
}

// slot has what is kept of an agent.
type slot struct {
	subject Subject
	reasons []reason
	bytes   int
}

// reason is what an agent was refused for one reason.
type reason struct {
	Refusal
	level slog.Level // of its line
	// unlogged is how many items were refused since the last line of the agent and the
	// reason, which was loggedAt; zero: there was none.
	unlogged int
	loggedAt time.Time
}

// New returns a Refusals that has none. It registers families in reg.
func New(agents Agents, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Refusals, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("refusals options: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("refusals: %w", err)
	}
	r := &Refusals{agents: agents, opts: opts, metrics: m, log: log, slots: newLRU[agent.ID, *slot](), labelled: make(map[string]struct{})}
	for i := range r.sums {
		r.sums[i] = newSums(opts.MaxSums)
	}
	if err := r.registerLimits(reg); err != nil {
		return nil, fmt.Errorf("refusals: %w", err)
	}
	return r, nil
}

// Refused notes what an agent was refused. version is the agent's own; empty: it is not
// known. Nothing of refused is retained.
func (r *Refusals) Refused(id agent.ID, version string, refused []agent.Refusal) {
	r.note(id, version, slog.LevelWarn, refused)
}

// Expired notes what of an agent has expired. It is as Refused, and logged as routine.
func (r *Refusals) Expired(id agent.ID, expired agent.Refusal) {
	r.note(id, "", slog.LevelInfo, []agent.Refusal{expired})
}

// ReasonExpired is why the series of an agent are not served any more.
const ReasonExpired = "series_expired"

// SeriesExpired notes that all series of an agent have expired, as it sent no report for
// their TTL.
func (r *Refusals) SeriesExpired(id agent.ID, series int, ttl time.Duration) {
	r.Expired(id, agent.Refusal{
		Kind: agent.RefusedLimit, Reason: ReasonExpired, Count: series,
		Message: fmt.Sprintf("series: want a report within %v (--series-ttl), got none: %d are not served any more", ttl, series),
	})
}

func (r *Refusals) note(id agent.ID, version string, level slog.Level, refused []agent.Refusal) {
	if len(refused) == 0 {
		return
	}
	subject, now := r.subject(id, version), time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	s, found := r.slots.Get(id)
	if !found {
		s = &slot{}
		r.slots.Add(id, s)
	}
	if version == "" {
		subject.Version = s.subject.Version
	}
	s.subject = subject
	for i := range refused {
		of, count := &refused[i], max(refused[i].Count, 1)
		if s.note(of, count, now, level) {
			r.lines.dropped++
		}
		r.countLocked(&subject, of.Reason, int64(count), now)
	}
	size := s.size()
	r.bytes += size - s.bytes
	s.bytes = size
	r.evictLocked()
}

// subject returns whom a refusal of an agent is of.
func (r *Refusals) subject(id agent.ID, version string) Subject {
	s := Subject{Agent: id, Version: own(version, maxSubjectText)}
	if reg := r.agents.Registration(id); reg != nil {
		w := &reg.Workspace
		s.AgentName, s.Workspace = own(reg.Name, maxSubjectText), own(w.Name, maxSubjectText)
		s.Owner, s.Template = own(w.OwnerUsername, maxSubjectText), own(w.Template.Name, maxSubjectText)
	}
	return s
}

// own returns a copy of a text, cut to the limit.
func own(text string, limit int) string { return strings.Clone(agent.ShortenText(text, limit)) }

// note notes a refusal. It reports whether another one was forgotten that no line named.
func (s *slot) note(refused *agent.Refusal, count int, now time.Time, level slog.Level) (dropped bool) {
	i := slices.IndexFunc(s.reasons, func(of reason) bool { return of.Reason == refused.Reason })
	switch {
	case i >= 0:
	case len(s.reasons) < maxReasons:
		s.reasons = append(s.reasons, reason{})
		i = len(s.reasons) - 1
	default:
		i = 0
		for j := range s.reasons {
			if s.reasons[j].At.Before(s.reasons[i].At) {
				i = j
			}
		}
		dropped = s.reasons[i].unlogged > 0
		s.reasons[i] = reason{}
	}
	of := &s.reasons[i]
	of.Reason, of.Problem, of.At, of.level = own(refused.Reason, maxNameBytes), own(refused.Message, maxProblem), now, level
	of.Names = nil
	for _, name := range refused.Names[:min(len(refused.Names), maxNames)] {
		of.Names = append(of.Names, own(name, maxNameBytes))
	}
	of.Count += int64(count)
	of.unlogged += count
	return dropped
}

// size is what the slot takes in memory.
func (s *slot) size() int {
	n := int(unsafe.Sizeof(slot{})) + entryBytes + cap(s.reasons)*int(unsafe.Sizeof(reason{}))
	t := &s.subject
	n += len(t.AgentName) + len(t.Workspace) + len(t.Owner) + len(t.Template) + len(t.Version)
	for i := range s.reasons {
		of := &s.reasons[i]
		n += len(of.Reason) + len(of.Problem) + cap(of.Names)*int(unsafe.Sizeof(""))
		for _, name := range of.Names {
			n += len(name)
		}
	}
	return n
}

// isUnlogged reports whether a line is due that names something of the agent.
func (s *slot) isUnlogged() bool {
	return slices.ContainsFunc(s.reasons, func(of reason) bool { return of.unlogged > 0 })
}

// evictLocked forgets the agents whose last refusal is the oldest, as long as there are
// too many.
func (r *Refusals) evictLocked() {
	for r.slots.Len() > r.opts.MaxAgents || r.bytes > r.opts.MaxBytes && r.slots.Len() > 1 {
		_, s, _ := r.slots.RemoveOldest()
		r.bytes -= s.bytes
		r.metrics.evicted.Inc()
		if s.isUnlogged() {
			r.lines.dropped++
		}
	}
}

// countLocked adds refused items to the sums and the metrics.
func (r *Refusals) countLocked(s *Subject, reason string, items int64, now time.Time) {
	r.sums[ByTemplate].add(s.Template, reason, items, now)
	r.sums[ByOwner].add(s.Owner, reason, items, now)
	r.sums[ByVersion].add(s.Version, reason, items, now)
	r.metrics.refused.WithLabelValues(r.labelLocked(s.Template), agent.ShortenText(reason, maxNameBytes)).Add(float64(items))
}

// labelLocked returns the label of a template in metrics.
func (r *Refusals) labelLocked(template string) string {
	if _, known := r.labelled[template]; known {
		return template
	}
	if len(r.labelled) >= r.opts.MaxTemplateLabels || template == "" {
		return otherTemplates
	}
	r.labelled[template] = struct{}{}
	return template
}

// Newest returns at most limit agents that were refused something, the newest first.
func (r *Refusals) Newest(limit int) []Last {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Last
	for _, s := range slices.Backward(r.slots.Values()) {
		if len(all) >= limit {
			break
		}
		all = append(all, s.last())
	}
	return all
}

// Of returns the last refusals of an agent; false: there are none, or they are forgotten.
func (r *Refusals) Of(id agent.ID) (Last, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, found := r.slots.Peek(id)
	if !found {
		return Last{}, false
	}
	return s.last(), true
}

// last returns copies; texts and names are not changed any more.
func (s *slot) last() Last {
	l := Last{Subject: s.subject, Refusals: make([]Refusal, len(s.reasons))}
	for i := range s.reasons {
		l.Refusals[i] = s.reasons[i].Refusal
	}
	slices.SortStableFunc(l.Refusals, func(a, b Refusal) int { return b.At.Compare(a.At) })
	return l
}

// Sums returns the sums of a group, those with the most items first. others are the items
// of those that were forgotten, as there were too many.
func (r *Refusals) Sums(by Group) (all []Sum, others int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sums[by].list()
}
