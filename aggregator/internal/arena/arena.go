// Package arena lays out series for cheap scrapes. A family's rendered lines stand
// one after the other in blocks. A scrape patches the values that changed since the
// last one. While protobuf is scraped, blocks keep their series as metrics, too. A
// scrape borrows a block's bytes: they are copied before they change.
//
// A slot of a block has one of these states:
//
//	free --Add--> hidden or shown --Retire--> retired --last scrape ends--> free
//	              hidden <--Hide, Show--> shown --Remove--> free
//
// A retired slot is shown only by the scrapes that were under way then. Block.mu
// guards the state of a slot. Generations.mu guards the list of retired slots.
//
// Lines of which there are few for each workspace, and whose values rarely change, are not
// rendered before a scrape: they are rows of a Group.
//
// Locks are taken in this order: Family.mu, shared.mu, Block.mu or Group.mu, Generations.mu.
// Only scrapes take shared.mu, which is held while a block is compressed. The others
// are held to copy a block, or to render 64 values, at most.
package arena

import (
	"slices"
	"sync"

	"github.com/coder/agentstatsd/metrics"
)

// Family has the series of one family.
type Family struct {
	generations *Generations
	name        string

	mu sync.Mutex
	// blocks is appended to or replaced. Its elements never change: scrapes
	// iterate over it without mu.
	blocks []*Block
	// roomy has the blocks that may have room. The last one is tried first.
	roomy []*Block
	// rows are the family's part of groups. They are appended to or replaced, as blocks
	// are.
	rows []*Rows
	// slots is the size of the next block.
	slots int
}

// NewFamily returns an empty family whose lines all begin with name. The families
// of one exposition share the generations.
func NewFamily(generations *Generations, name string) *Family {
	return &Family{generations: generations, name: name, slots: firstSlots}
}

// Add makes a series and returns its block and slot. prefix and key are as for Block.Show.
// The series is hidden if prefix is empty. No two series have the same prefix.
func (f *Family) Add(prefix []byte, key metrics.ShardKey, v float64) (*Block, uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		b := f.roomyLocked()
		b.mu.Lock()
		if !b.hasRoomLocked() {
			b.mu.Unlock()
			b.listed = false
			f.roomy = f.roomy[:len(f.roomy)-1]
			continue
		}
		slot := b.takeSlotLocked()
		b.Set(slot, v)
		if len(prefix) > 0 {
			b.addLineLocked(slot, prefix, key)
		}
		if !b.hasRoomLocked() {
			b.text.compact(b.fullLocked())
		}
		b.mu.Unlock()
		return b, slot
	}
}

// roomyLocked returns the last block that may have room. It makes one if there is
// none.
func (f *Family) roomyLocked() *Block {
	if n := len(f.roomy); n > 0 {
		return f.roomy[n-1]
	}
	b := newBlock(f, f.slots)
	f.slots = min(blockSlots, f.slots*slotGrowth)
	f.blocks = append(f.blocks, b)
	f.listLocked(b)
	return b
}

func (f *Family) listLocked(b *Block) {
	if !b.listed {
		b.listed = true
		f.roomy = append(f.roomy, b)
	}
}

// remove frees a slot. It removes a block without series.
func (f *Family) remove(b *Block, slot uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b.mu.Lock()
	b.freeSlotLocked(slot)
	empty := b.live == 0
	b.mu.Unlock()
	if !empty {
		f.listLocked(b)
		return
	}
	f.generations.forgetBlock(b)
	i := slices.Index(f.blocks, b)
	f.blocks = append(slices.Clip(f.blocks[:i]), f.blocks[i+1:]...)
	if b.listed {
		b.listed = false
		f.roomy = slices.DeleteFunc(f.roomy, func(o *Block) bool { return o == b })
	}
	if len(f.blocks) == 0 {
		f.slots = firstSlots
	}
}

// snapshot returns what the family has at present.
func (f *Family) snapshot() ([]*Block, []*Rows) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blocks, f.rows
}

// appendParts appends what the family has at present.
func (f *Family) appendParts(dst []part) []part {
	blocks, rows := f.snapshot()
	for _, b := range blocks {
		dst = append(dst, b)
	}
	for _, r := range rows {
		dst = append(dst, r)
	}
	return dst
}
