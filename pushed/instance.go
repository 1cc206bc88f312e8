package pushed

import (
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// instance is what is kept of one coderd instance, or, with the zero id, of all
// that are merged into the totals. But for live it is never changed: a push makes a
// new one.
type instance struct {
	id       agent.Instance
	replica  string
	interval time.Duration
	snapshot int64
	final    bool
	// version is that of the row; until it is written, of the row that it replaces.
	version int64
	// updatedAt is when the newest snapshot was received, by the clock of the
	// replica that received it: all replicas put instances in the same order.
	updatedAt time.Time
	// aliveAt is the same, but no later than when the row was read here: a clock
	// that is ahead keeps nobody alive.
	aliveAt time.Time
	// folded means that the totals include all that it counted. It is kept with its
	// last values, to count only the increase if it comes back.
	folded bool
	// passThrough means that it has what agents have, in place of the service.
	passThrough bool
	refused     []agent.PushRefusal
	families    family.Set
	// lines are those of families. rowBytes is the size of the row.
	lines, rowBytes int

	// live means that its gauges are served. Guarded by Families.mu.
	live bool
}

// expiresAt is when the gauges go.
func (i *instance) expiresAt(seriesTTL time.Duration) time.Time {
	return i.aliveAt.Add(max(seriesTTL, 3*i.interval))
}

// isLive reports whether gauges are served at now.
func (i *instance) isLive(now time.Time, seriesTTL time.Duration) bool {
	return i.id != (agent.Instance{}) && !i.final && !i.folded && now.Before(i.expiresAt(seriesTTL))
}

// clocksDiffer is how far a scrape may be ahead of the clock here before it is taken for
// one by a clock that was wrong.
const clocksDiffer = time.Minute

// numberOf returns what orders the snapshots of an instance: of those that are scraped
// the time, in milliseconds.
func numberOf(p *agent.Push) int64 {
	if p.ScrapedAt.IsZero() {
		return p.Snapshot
	}
	return p.ScrapedAt.UnixMilli()
}

// supersedes reports whether the instance has a scrape that was later than p, or shortly
// before: counts of an older one would be taken for those of a new process, and one sender
// is enough. What is final is the word of who saw the next process.
func (i *instance) supersedes(now time.Time, p *agent.Push) bool {
	if p.Final || i.snapshot > now.Add(clocksDiffer).UnixMilli() {
		return false
	}
	return p.ScrapedAt.Before(time.UnixMilli(i.snapshot).Add(p.Interval * 9 / 10))
}

// withFamilies returns the instance with other families.
func (i *instance) withFamilies(families family.Set) *instance {
	out := *i
	out.families, out.lines = families, families.Lines()
	return &out
}

// ofTypes returns the instance with the families that have the types of their
// names.
func (i *instance) ofTypes(types family.Types) *instance {
	families := i.families.OfTypes(types)
	if len(families) == len(i.families) {
		return i
	}
	return i.withFamilies(families)
}

// fold returns the instance as it is once the totals include all that it counted.
func (i *instance) fold() *instance {
	out := i.withFamilies(i.families.Fold())
	out.folded, out.live, out.refused = true, false, nil
	return out
}

// contributor returns who the instance is to a merge.
func (i *instance) contributor() family.Contributor {
	return family.Contributor{Instance: i.id, UpdatedAt: i.updatedAt, Live: i.live}
}

// compareAge puts the instance with the newest snapshot last.
func compareAge(a, b *instance) int { return a.contributor().CompareAge(b.contributor()) }
