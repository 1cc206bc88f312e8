package pushed

import (
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// Pusher is an instance with what it pushed of one family.
type Pusher struct {
	agent.PushInstance
	// ExpiresAt is until when its gauges are served if it does not push again.
	ExpiresAt time.Time
	// Series of the family that it has, or counted before; 0: it has none. Type is theirs.
	// Lasting are served also when it is gone.
	Series  int
	Type    metrics.Type
	Lasting bool
	// Refused is what was refused of the family in its newest snapshot.
	Refused []agent.PushRefusal
}

// Pushers returns who has pushed a family, or was refused it, the newest first. serves is
// true if this replica serves what is pushed.
func (f *Families) Pushers(name string) (all []Pusher, serves bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range f.instances {
		if i.id == (agent.Instance{}) || i.folded {
			continue // they are part of the totals
		}
		p := Pusher{PushInstance: i.describeLocked(), ExpiresAt: i.expiresAt(f.opts.Load().SeriesTTL)}
		if i.final {
			p.ExpiresAt = i.updatedAt
		}
		if fam := i.families[name]; fam != nil {
			p.Series, p.Type, p.Lasting = len(fam.Series), fam.Type, fam.Cumulative()
		}
		for _, r := range i.refused {
			if r.Name == name {
				p.Refused = append(p.Refused, r)
			}
		}
		if p.Series > 0 || len(p.Refused) > 0 {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b Pusher) int { return b.PushedAt.Compare(a.PushedAt) })
	return all, f.serves()
}
