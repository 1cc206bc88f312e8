// Package arena lays out series for cheap scrapes: per family, rendered lines
// stand one after the other in blocks, and the values that changed since the
// last scrape are patched into them. While protobuf is scraped, the same is true
// of the metrics in that form. Scrapes write blocks as they stand: what is lent to
// one is copied before it changes.
//
// Locks are taken in this order: Family.mu, shared.mu, Block.mu, Clock.mu. Only
// shared.mu, which nobody but scrapes takes, is held for longer than it takes to
// copy a block or to render 64 values.
package arena

import (
	"slices"
	"sync"
)

// Family has the series of one family.
type Family struct {
	clock *Clock
	name  string

	mu sync.Mutex
	// blocks is appended to or replaced, what is there is never changed: scrapes
	// go through it without mu.
	blocks []*Block
	// roomy has the blocks that may have room, the last one is tried first.
	roomy []*Block
	// slots is the size of the next block.
	slots int
}

// NewFamily returns an empty family whose lines all begin with name. Families
// that are written to one exposition share a clock.
func NewFamily(clock *Clock, name string) *Family {
	return &Family{clock: clock, name: name, slots: firstSlots}
}

// Add makes a series and returns where it is. prefix is as for Block.Show; if it
// is empty, the series is hidden. Nobody else may know a series with the same
// prefix.
func (f *Family) Add(prefix []byte, v float64) (*Block, uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		b := f.roomyLocked()
		b.mu.Lock()
		if !b.roomLocked() {
			b.mu.Unlock()
			b.listed = false
			f.roomy = f.roomy[:len(f.roomy)-1]
			continue
		}
		slot := b.takeLocked()
		b.Set(slot, v)
		if len(prefix) > 0 {
			b.addLineLocked(slot, prefix)
		}
		if !b.roomLocked() {
			b.text.tighten(b.fullLocked())
		}
		b.mu.Unlock()
		return b, slot
	}
}

// roomyLocked returns the last block that may have room, a new one if need be.
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

// remove gives back a slot, and the block when that was its last.
func (f *Family) remove(b *Block, slot uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b.mu.Lock()
	b.giveBackLocked(slot)
	empty := b.live == 0
	b.mu.Unlock()
	if !empty {
		f.listLocked(b)
		return
	}
	f.clock.forget(b)
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

// snapshot returns the blocks that there are now.
func (f *Family) snapshot() []*Block {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blocks
}
