package arena

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// protoIdle is how long blocks keep their metrics after the last scrape of protobuf.
// It is five times the longest scrape interval that is common. A metric takes some
// 170 bytes, and 200 ns to make.
const protoIdle = 5 * time.Minute

// Generations numbers scrapes: each scrape begins a generation, and a line has the
// generation in which it was added. A scrape shows the lines of earlier generations
// only. So it shows no series twice that moves to another block meanwhile. A retired
// line is shown by the scrapes under way, which do not show the line that replaces
// it. So each scrape shows the series once.
//
// Generations also has the parts that keep something for scrapes only, to drop it.
type Generations struct {
	newest atomic.Uint32

	mu sync.Mutex
	// active are the generations of the scrapes under way, in no order.
	active []uint32
	// retired are the lines that some of these scrapes may still show, those of the oldest
	// generations first.
	retired retiredLines
	// compressing is the number of scrapes under way that compress. sharing are
	// the parts that keep compressed segments for them.
	compressing int
	sharing     map[*sharing]struct{}
	// protoBlocks are the blocks with metrics. protoTimer drops them.
	protoBlocks map[*Block]struct{}
	protoTimer  *time.Timer
}

// beginScrape returns the generation of a new scrape. endScrape must follow.
func (c *Generations) beginScrape() (generation uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	generation = c.newest.Add(1)
	c.active = append(c.active, generation)
	return generation
}

// endScrape ends a scrape, and removes the lines that no other scrape shows.
func (c *Generations) endScrape(generation uint32) {
	c.mu.Lock()
	at := slices.Index(c.active, generation)
	c.active = slices.Delete(c.active, at, at+1)
	c.mu.Unlock()
	for gone := c.takeGone(); len(gone) > 0; gone = c.takeGone() {
		for _, l := range gone {
			l.from.Remove(l.slot)
		}
	}
}

// takeGone returns some of the retired lines that no scrape shows any more; none: there
// are none.
func (c *Generations) takeGone() []retiredLine {
	c.mu.Lock()
	defer c.mu.Unlock()
	oldest := uint32(math.MaxUint32)
	if len(c.active) > 0 {
		oldest = slices.Min(c.active)
	}
	return c.retired.takeBefore(oldest)
}

// retireLine retires a line, and returns the last generation that shows it. It
// returns false if no scrape is under way.
func (c *Generations) retireLine(from remover, slot uint32) (last uint32, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.active) == 0 {
		return 0, false
	}
	last = c.current()
	c.retired.add(retiredLine{from, slot, last})
	return last, true
}

func (c *Generations) current() uint32 {
	return c.newest.Load()
}

// beginCompressing counts a scrape that may share what it compresses.
func (c *Generations) beginCompressing() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compressing++
}

// endCompressing ends such a scrape. The last one drops all shared segments.
func (c *Generations) endCompressing() {
	for s := range c.takeSharing() {
		s.drop()
	}
}

// takeSharing returns what the last one drops. Meanwhile others may begin that compress.
// They make again what is dropped.
func (c *Generations) takeSharing() map[*sharing]struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.compressing--; c.compressing > 0 {
		return nil
	}
	taken := c.sharing
	c.sharing = nil
	return taken
}

// addSharing adds a part that keeps compressed segments. It returns false if only
// one scrape compresses.
func (c *Generations) addSharing(s *sharing) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.compressing < 2 {
		return false
	}
	if c.sharing == nil {
		c.sharing = make(map[*sharing]struct{})
	}
	c.sharing[s] = struct{}{}
	return true
}

// addProtoBlock adds a block that keeps metrics.
func (c *Generations) addProtoBlock(b *Block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.protoBlocks == nil {
		c.protoBlocks = make(map[*Block]struct{})
	}
	c.protoBlocks[b] = struct{}{}
}

// forgetBlock removes a block that has no series. A scrape under way may add it
// again. It is then dropped with the others.
func (c *Generations) forgetBlock(b *Block) {
	c.forgetSharing(&b.shared)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.protoBlocks, b)
}

// forgetSharing removes a part that has no series, as forgetBlock does.
func (c *Generations) forgetSharing(s *sharing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sharing, s)
}

// resetProtoTimer restarts the time after which metrics are dropped.
func (c *Generations) resetProtoTimer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.protoTimer == nil {
		c.protoTimer = time.AfterFunc(protoIdle, c.dropProto)
		return
	}
	c.protoTimer.Reset(protoIdle)
}

// dropProto drops the metrics of all blocks. A scrape under way makes again what it
// needs.
func (c *Generations) dropProto() {
	c.mu.Lock()
	blocks := c.protoBlocks
	c.protoBlocks = nil
	c.mu.Unlock()
	for b := range blocks {
		b.dropProto()
	}
}
