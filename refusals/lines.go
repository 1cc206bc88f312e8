package refusals

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"
)

const (
	// gatherInterval is how long a line waits for other agents of the template at most.
	gatherInterval = 5 * time.Second
	// lineInterval is the least time between two lines of an agent, or of a template, for
	// one reason.
	lineInterval = time.Minute
	// maxNamed agents of a template have lines of their own for one reason. More are one
	// line.
	maxNamed = 3
)

// Texts of the lines.
const (
	textAgent    = "an agent is refused something"
	textTemplate = "agents of a template are refused something"
	textExpired  = "something of an agent has expired"
	textAllOf    = "something of agents of a template has expired"
	textLeftOut  = "agents that are refused something are left out of the log: there are too many"
)

// lines bounds the lines of a minute.
type lines struct {
	began  time.Time // of the minute
	logged int       // in it
	// groups are when a line of a template and a reason was logged, in the last minute.
	groups map[groupKey]time.Time
	// dropped counts agents that no line names.
	dropped int
}

type groupKey struct {
	template, reason string
	level            slog.Level
}

// unlogged is an agent, and a reason, without a line.
type unlogged struct {
	slot   *slot
	reason *reason
}

// line is one line of the log.
type line struct {
	level slog.Level
	text  string
	attrs []slog.Attr
}

// Run logs who is refused something, until ctx ends. It returns nil.
func (r *Refusals) Run(ctx context.Context) error {
	ticker := time.NewTicker(gatherInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done(): // what is due is logged now
		case <-ticker.C:
		}
		for _, l := range r.takeLines(time.Now()) {
			r.log.LogAttrs(ctx, l.level, l.text, l.attrs...)
		}
	}
	return nil
}

// takeLines returns the lines that are due.
func (r *Refusals) takeLines(now time.Time) (due []line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	due = r.lines.beginMinute(now, r.metrics)
	waiting := make(map[groupKey][]unlogged)
	for _, s := range slices.Backward(r.slots.Values()) {
		for i := range s.reasons {
			if of := &s.reasons[i]; of.unlogged > 0 {
				key := groupKey{s.subject.Template, of.Reason, of.level}
				waiting[key] = append(waiting[key], unlogged{s, of})
			}
		}
	}
	keys := make([]groupKey, 0, len(waiting))
	for key := range waiting {
		keys = append(keys, key)
	}
	// What concerns the most agents first.
	slices.SortFunc(keys, func(a, b groupKey) int {
		return cmp.Or(cmp.Compare(len(waiting[b]), len(waiting[a])), strings.Compare(a.template, b.template), strings.Compare(a.reason, b.reason),
			cmp.Compare(a.level, b.level))
	})
	for _, key := range keys {
		due = append(due, r.linesOfLocked(key, waiting[key], now)...)
	}
	return due
}

// linesOfLocked returns the lines of agents of a template that were refused something for
// one reason.
func (r *Refusals) linesOfLocked(key groupKey, all []unlogged, now time.Time) (due []line) {
	_, isGroup := r.lines.groups[key]
	switch {
	case isGroup: // until its minute is over
		return nil
	case len(all) > maxNamed:
		if !r.lines.hasRoom(r.opts.MaxLines) {
			r.dropLocked(all, now)
			return nil
		}
		r.lines.groups[key] = now
		due = append(due, lineOfTemplate(key, all))
		markLogged(all, now)
		return due
	}
	for i, u := range all {
		if !u.reason.loggedAt.IsZero() && now.Sub(u.reason.loggedAt) < lineInterval {
			continue
		}
		if !r.lines.hasRoom(r.opts.MaxLines) {
			r.dropLocked(all[i:i+1], now)
			continue
		}
		due = append(due, lineOfAgent(u))
		markLogged(all[i:i+1], now)
	}
	return due
}

// dropLocked leaves agents out of the log.
func (r *Refusals) dropLocked(all []unlogged, now time.Time) {
	r.lines.dropped += len(all)
	markLogged(all, now)
}

func markLogged(all []unlogged, now time.Time) {
	for _, u := range all {
		u.reason.unlogged, u.reason.loggedAt = 0, now
	}
}

// beginMinute begins another minute if one is over. It returns the line that says how many
// agents were left out in it.
func (l *lines) beginMinute(now time.Time, m *metrics) (due []line) {
	if l.groups == nil {
		l.groups = make(map[groupKey]time.Time)
	}
	for key, at := range l.groups {
		if now.Sub(at) >= lineInterval {
			delete(l.groups, key)
		}
	}
	if !l.began.IsZero() && now.Sub(l.began) < lineInterval {
		return nil
	}
	if l.dropped > 0 {
		m.leftOut.Add(float64(l.dropped))
		due = append(due, line{slog.LevelWarn, textLeftOut, []slog.Attr{slog.Int("agents", l.dropped)}})
	}
	l.began, l.logged, l.dropped = now, 0, 0
	return due
}

// hasRoom reports whether one more line may be logged in this minute, which it counts.
func (l *lines) hasRoom(most int) bool {
	if l.logged >= most {
		return false
	}
	l.logged++
	return true
}

// lineOfAgent names an agent that is refused something.
func lineOfAgent(u unlogged) line {
	s := &u.slot.subject
	attrs := []slog.Attr{
		slog.String("agent", s.Agent.String()), slog.String("agent_name", s.AgentName), slog.String("workspace", s.Workspace),
		slog.String("owner", s.Owner), slog.String("template", s.Template),
	}
	if s.Version != "" {
		attrs = append(attrs, slog.String("version", s.Version))
	}
	attrs = append(attrs, slog.String("reason", u.reason.Reason), slog.Int("count", u.reason.unlogged))
	if u.reason.level < slog.LevelWarn {
		return line{u.reason.level, textExpired, append(attrs, problem(u.reason)...)}
	}
	return line{u.reason.level, textAgent, append(attrs, problem(u.reason)...)}
}

// lineOfTemplate names a template whose agents are refused something, and the one of them
// that was last.
func lineOfTemplate(key groupKey, all []unlogged) line {
	count, owners := 0, make(map[string]struct{})
	for _, u := range all {
		count += u.reason.unlogged
		owners[u.slot.subject.Owner] = struct{}{}
	}
	example := &all[0].slot.subject
	attrs := []slog.Attr{
		slog.String("template", key.template), slog.String("reason", key.reason), slog.Int("agents", len(all)), slog.Int("owners", len(owners)),
		slog.Int("count", count), slog.String("last_agent", example.Agent.String()), slog.String("last_agent_name", example.AgentName),
		slog.String("last_workspace", example.Workspace), slog.String("last_owner", example.Owner),
	}
	text := textTemplate
	if key.level < slog.LevelWarn {
		text = textAllOf
	}
	return line{key.level, text, append(attrs, problem(all[0].reason)...)}
}

// problem names what was refused, and why.
func problem(of *reason) []slog.Attr {
	attrs := []slog.Attr{slog.String("problem", of.Problem)}
	if len(of.Names) > 0 {
		attrs = append(attrs, slog.String("names", strings.Join(of.Names, ", ")))
	}
	return attrs
}
