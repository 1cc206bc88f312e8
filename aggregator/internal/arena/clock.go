package arena

import (
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
// first was gone before the scrape began.
//
// It also knows what blocks hold for scrapes only, to let go of it.
type Clock struct {
	scrapes atomic.Uint32

	mu sync.Mutex
	// compressing scrapes are under way, and sharing has the blocks that keep
	// compressed segments for them.
	compressing int
	sharing     map[*Block]struct{}
	// formed has the blocks with a protobuf form, which idle takes away.
	formed map[*Block]struct{}
	idle   *time.Timer
}

// begin starts a scrape, which shows the lines born before the stamp.
func (c *Clock) begin() (stamp uint32) {
	return c.scrapes.Add(1)
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
