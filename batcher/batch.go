package batcher

import "github.com/coder/agentstatsd/agent"

// batch is what one flush writes. Its buffers are used again.
type batch struct {
	// rows are given to the store; the slices below are parallel to them.
	rows    []agent.Metadata
	entries []*entry
	acks    []pendingAck
	fates   []fate
	// changed has the agent of each written row that changed something; unchanged
	// is how many did not.
	changed   []agent.ID
	unchanged int
	// lost are the trackers of rows that were superseded.
	lost []lost
	// suspects has an entry of each agent of which a row was refused.
	suspects []*entry
	// order has the place that each row was taken at, if they were sorted since;
	// empty: they were not.
	order []int

	// agents is how many rows each agent has, by slot.
	agents []int
}

// lost is a tracker to be notified of an epoch.
type lost struct {
	tracker agent.Tracker
	epoch   int64
}

// fate is what became of a row.
type fate uint8

const (
	failed fate = iota // not tried, or the database could not
	written
	rejected   // by the database, for good
	superseded // by another session or incarnation
)

// reset empties b, keeping its buffers.
func (b *batch) reset() {
	clear(b.rows) // let go of the strings
	clear(b.entries)
	clear(b.acks)
	clear(b.suspects)
	clear(b.lost)
	b.rows, b.entries, b.acks = b.rows[:0], b.entries[:0], b.acks[:0]
	b.fates, b.agents, b.changed = b.fates[:0], b.agents[:0], b.changed[:0]
	b.suspects, b.order, b.lost = b.suspects[:0], b.order[:0], b.lost[:0]
	b.unchanged = 0
}

// count returns how many rows have a fate.
func (b *batch) count(f fate) int {
	n := 0
	for _, other := range b.fates {
		if other == f {
			n++
		}
	}
	return n
}
