package arena

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// protoIdle is how long blocks keep their protobuf form after the last scrape
// that used it: five times the longest scrape interval that is common. The form
// takes some 170 bytes a series, and 200 ns to make.
const protoIdle = 5 * time.Minute

// Clock counts scrapes. A scrape shows only the lines that were there when it
// began. So it cannot show a series twice that is taken out of one block and put
// into another meanwhile: if both lines are older than the scrape, then the
// first was gone before the scrape began. And a line that is retired is shown by
// the scrapes that are under way, whatever takes its place: in each of them the
// series is there once.
//
// It also knows what blocks hold for scrapes only, to let go of it.
type Clock struct {
	scrapes atomic.Uint32

	mu sync.Mutex
	// open has the stamps of the scrapes that are under way, in no order.
	open []uint32
	// retired are the lines that some of them may still have to show.
	retired []retiredLine
	// compressing scrapes are under way, and sharing has the blocks that keep
	// compressed segments for them.
	compressing int
	sharing     map[*Block]struct{}
	// formed has the blocks with a protobuf form, which idle takes away.
	formed map[*Block]struct{}
	idle   *time.Timer
}

// retiredLine is shown by the scrapes whose stamp is at most died.
type retiredLine struct {
	block *Block
	slot  uint32
	died  uint32
}

// begin starts a scrape, which shows the lines born before the stamp. It is to
// be ended.
func (c *Clock) begin() (stamp uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamp = c.scrapes.Add(1)
	c.open = append(c.open, stamp)
	return stamp
}

// end ends a scrape, and takes the lines away that only it had to show.
func (c *Clock) end(stamp uint32) {
	for _, l := range c.close(stamp) {
		l.block.Remove(l.slot)
	}
}

// close returns the lines that no scrape shows any more.
func (c *Clock) close(stamp uint32) (gone []retiredLine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.Index(c.open, stamp)
	c.open = slices.Delete(c.open, at, at+1)
	if len(c.open) == 0 {
		gone, c.retired = c.retired, nil
		return gone
	}
	oldest := slices.Min(c.open)
	c.retired = slices.DeleteFunc(c.retired, func(l retiredLine) bool {
		if l.died < oldest {
			gone = append(gone, l)
			return true
		}
		return false
	})
	return gone
}

// retire notes that a line is shown only by the scrapes under way, whose stamps
// are at most died; false if there are none.
func (c *Clock) retire(b *Block, slot uint32) (died uint32, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) == 0 {
		return 0, false
	}
	died = c.now()
	c.retired = append(c.retired, retiredLine{b, slot, died})
	return died, true
}

func (c *Clock) now() uint32 {
	return c.scrapes.Load()
}

// beginCompressing counts a scrape that may share what it compresses.
func (c *Clock) beginCompressing() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compressing++
}

// endCompressing ends it. With the last one goes all that was kept to be shared.
func (c *Clock) endCompressing() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.compressing--; c.compressing > 0 {
		return
	}
	for b := range c.sharing {
		b.unshare()
	}
	c.sharing = nil
}

// share notes that b keeps segments; false if the scrape that compresses is
// alone, so that there is nobody to keep them for.
func (c *Clock) share(b *Block) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.compressing < 2 {
		return false
	}
	if c.sharing == nil {
		c.sharing = make(map[*Block]struct{})
	}
	c.sharing[b] = struct{}{}
	return true
}

// form notes that b has a protobuf form.
func (c *Clock) form(b *Block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.formed == nil {
		c.formed = make(map[*Block]struct{})
	}
	c.formed[b] = struct{}{}
}

// forget lets go of a block that is gone. Scrapes that are under way may still
// make something of it, which then goes with the rest.
func (c *Clock) forget(b *Block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sharing, b)
	delete(c.formed, b)
}

// endProto puts off the end of the protobuf forms.
func (c *Clock) endProto() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle == nil {
		c.idle = time.AfterFunc(protoIdle, c.unform)
		return
	}
	c.idle.Reset(protoIdle)
}

// unform takes all protobuf forms away. A scrape that is under way makes anew
// what it needs.
func (c *Clock) unform() {
	c.mu.Lock()
	formed := c.formed
	c.formed = nil
	c.mu.Unlock()
	for b := range formed {
		b.unform()
	}
}
