// Package pendingacks has the acks that wait for an agent's state to be written.
package pendingacks

import (
	"slices"

	"github.com/coder/agentstatsd/agent"
)

// Instance is a process of an agent, whose requests are acked.
type Instance interface {
	comparable
	agent.Tracker
}

// Ack is the oldest sequence of an instance that waits. Newer ones are durable with it.
type Ack[I Instance] struct {
	Instance I
	Sequence int64
	Epoch    int64 // of the session that received it
}

// List has one ack of an instance at most, the oldest first. The owner locks it.
type List[I Instance] []Ack[I]

func (l List[I]) has(i I) bool {
	return slices.ContainsFunc(l, func(a Ack[I]) bool { return a.Instance == i })
}

// Add has a request of the instance wait, unless an older one does.
func (l *List[I]) Add(i I, order agent.Order) {
	if l.has(i) {
		return
	}
	i.AddPending(order.Sequence)
	*l = append(*l, Ack[I]{i, order.Sequence, order.Epoch})
}

// Remove forgets an instance.
func (l *List[I]) Remove(i I) {
	*l = slices.DeleteFunc(*l, func(a Ack[I]) bool { return a.Instance == i })
}

// Append adds acks that began to wait later. Of instances with an older one they are resolved:
// the older one waits for both.
func (l *List[I]) Append(newer List[I]) {
	before := *l
	for _, a := range newer {
		if before.has(a.Instance) {
			a.resolve(nil)
			continue
		}
		*l = append(*l, a)
	}
}

// Supersede removes the acks of sessions with an epoch below the stored one, and supersedes
// their instances; with 0 all: they belong to another incarnation. These stay pending.
func (l *List[I]) Supersede(stored int64) {
	*l = slices.DeleteFunc(*l, func(a Ack[I]) bool {
		if stored != 0 && stored <= a.Epoch {
			return false
		}
		a.Instance.Supersede(stored)
		return true
	})
}

// Resolve resolves all, with why the database refused the state; nil: it is stored.
func (l List[I]) Resolve(refusal *agent.Refusal) {
	for _, a := range l {
		a.resolve(refusal)
	}
}

func (a Ack[I]) resolve(refusal *agent.Refusal) {
	a.Instance.Resolve([]agent.Resolution{{Sequence: a.Sequence, Refusal: refusal}})
}
