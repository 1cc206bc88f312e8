package pushed

import (
	"cmp"
	"slices"

	"github.com/coder/agentstatsd/agent"
)

// Instances returns the instances that are known here and have not been folded into the
// totals, in the order of their names. It touches memory only.
func (f *Families) Instances() []agent.PushInstance {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []agent.PushInstance
	for _, i := range f.instances {
		if i.folded || i.id == (agent.Instance{}) {
			continue
		}
		all = append(all, i.describeLocked())
	}
	slices.SortFunc(all, func(a, b agent.PushInstance) int {
		return cmp.Or(cmp.Compare(a.Replica, b.Replica), slices.Compare(a.Instance[:], b.Instance[:]))
	})
	return all
}

// describeLocked returns what operators see of the instance.
func (i *instance) describeLocked() agent.PushInstance {
	return agent.PushInstance{
		Replica: i.replica, Instance: i.id, Families: len(i.families), Lines: i.lines,
		PushedAt: i.updatedAt, Live: i.live, PassThrough: i.passThrough,
	}
}
