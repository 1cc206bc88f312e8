// Package copies has copied bytes wait until they are decoded, so that whoever passes the
// bytes on waits for nothing. Connections whose decoder is behind are given up.
package copies

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/coder/agentstatsd/bridge/internal/decode"
)

// The reasons of this package.
const (
	// ReasonBehind is that of more copied bytes than a connection may have.
	ReasonBehind decode.Reason = "behind"
	// ReasonPanic is that of a fault in our code.
	ReasonPanic decode.Reason = "panic"
)

const (
	// blockBytes is enough for a report and its answer.
	blockBytes = 4 << 10
	// maxPending is how far a decoder may be behind, in bytes of blocks.
	maxPending = 256 << 10
	// delay gathers what connections say, so that a round of decoding is worth its wake-up.
	delay = 50 * time.Millisecond
	// much is how many of them wait for no round: who adds to them decodes them.
	much = 64 << 10
)

// Decoder decodes the bytes of one connection: a decode.Connection.
type Decoder interface {
	Read(fromAgent bool, b []byte) error
	Close()
}

// Copies are the copied bytes of all connections.
type Copies struct {
	budget *decode.Budget
	wake   chan struct{}
	pool   sync.Pool // of *block

	mu      sync.Mutex
	waiting []*Copy     // to be decoded. Guarded by mu
	timer   *time.Timer // which begins the next round
}

// New returns Copies, whose memory is taken of the budget. Nothing is decoded before Run.
func New(budget *decode.Budget) *Copies {
	c := &Copies{budget: budget, wake: make(chan struct{}, 1), pool: sync.Pool{New: func() any { return new(block) }}}
	c.timer = time.AfterFunc(time.Hour, c.signal)
	c.timer.Stop()
	return c
}

func (c *Copies) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run decodes until ctx ends. Then it returns nil. What waits at that time of connections
// that were closed is decoded. What is added later is not.
func (c *Copies) Run(ctx context.Context) error {
	for {
		select {
		case <-c.wake:
			c.round()
		case <-ctx.Done():
			c.round()
			return nil
		}
	}
}

// round decodes what waits. Each connection is decoded by one goroutine.
func (c *Copies) round() {
	c.mu.Lock()
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	const enough = 64 // for a goroutine
	var done sync.WaitGroup
	defer done.Wait()
	for rest := min(runtime.GOMAXPROCS(0), len(waiting)/enough+1); rest > 0; rest-- {
		part := waiting[:len(waiting)/rest]
		waiting = waiting[len(part):]
		if rest == 1 {
			decodeAll(part)
			return
		}
		done.Go(func() { decodeAll(part) })
	}
}

func decodeAll(copies []*Copy) {
	for _, c := range copies {
		c.decode()
	}
}

// enqueue has a connection decoded in the next round.
func (c *Copies) enqueue(p *Copy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, p)
	if len(c.waiting) == 1 {
		c.timer.Reset(delay)
	}
}

// block has bytes of both directions, in the order in which they came.
type block struct {
	next  *block
	used  int
	parts int
	// sizes of the parts, negative if they are coderd's.
	sizes [blockBytes / 64]int16
	bytes [blockBytes]byte
}

// add adds as many bytes as there is room for, and returns how many these are.
func (k *block) add(fromAgent bool, b []byte) int {
	n := min(len(b), blockBytes-k.used)
	size := int16(n)
	if !fromAgent {
		size = -size
	}
	switch {
	case n == 0:
		return 0
	case k.parts > 0 && (k.sizes[k.parts-1] > 0) == fromAgent:
		k.sizes[k.parts-1] += size
	case k.parts == len(k.sizes):
		return 0
	default:
		k.sizes[k.parts] = size
		k.parts++
	}
	copy(k.bytes[k.used:], b[:n])
	k.used += n
	return n
}

// Copy is the copy of what one connection carries.
//
//	open --decoding ends--> given up --Close--> closed
//	open --Close--> closed, once what waits is decoded
type Copy struct {
	copies  *Copies
	decoder Decoder
	// ended is called once if decoding ended before Close.
	ended func(error)

	// decoding is locked by who decodes. It is locked before mu.
	decoding sync.Mutex
	finished bool // the decoder is closed. Guarded by decoding

	mu sync.Mutex
	// Guarded by mu.

	first, last *block
	pending     int   // bytes of blocks that wait, whether they are full or not
	queued      bool  // a round will come
	busy        bool  // much waited since the last one
	end         error // why nothing is added any more
	closed      bool
}

// Open returns the Copy of a connection. Its bytes are decoded by decoder, which it closes. If
// that ends before the connection does, ended is called, once.
func (c *Copies) Open(decoder Decoder, ended func(error)) *Copy {
	return &Copy{copies: c, decoder: decoder, ended: ended}
}

// Add copies what one side sent. It has to be called before the other side can answer. It
// waits for nothing. If much waits, and nobody decodes it, Add does, so that what passes fast
// is not given up for that.
func (p *Copy) Add(fromAgent bool, b []byte) {
	if p.add(fromAgent, b) && p.decoding.TryLock() {
		p.decodeLocked()
		p.decoding.Unlock()
	}
}

// add copies bytes, and reports whether much waits.
func (p *Copy) add(fromAgent bool, b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end != nil || p.closed {
		return false
	}
	for len(b) > 0 && p.end == nil {
		n := 0
		if p.last != nil {
			n = p.last.add(fromAgent, b)
		}
		switch {
		case n > 0:
			b = b[n:]
		case p.pending+blockBytes > maxPending:
			p.end = decode.NewError(ReasonBehind, "%d bytes wait to be decoded: want at most %d", p.pending+len(b), maxPending)
		case !p.copies.budget.Reserve(blockBytes, p.pending):
			p.end = decode.NewError(decode.ReasonMemory, "the memory of all decoders is used up")
		default:
			p.appendLocked()
		}
	}
	if !p.queued {
		p.queued = true
		p.copies.enqueue(p)
	}
	p.busy = p.busy || p.pending >= much
	return p.pending >= much
}

func (p *Copy) appendLocked() {
	p.pending += blockBytes
	k, _ := p.copies.pool.Get().(*block)
	if p.last == nil {
		p.first = k
	} else {
		p.last.next = k
	}
	p.last = k
}

// Close says that the connection has ended. What waits is still decoded. It does not
// block, and is safe to repeat.
func (p *Copy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed, p.queued = true, true
		p.copies.enqueue(p)
	}
}

// take returns the oldest block; nil: there is none. end and closed are as they are then.
func (p *Copy) take() (k *block, closed bool, end error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k = p.first
	if k == nil {
		p.queued = false
		return nil, p.closed, p.end
	}
	if p.first = k.next; p.first == nil {
		p.last = nil
	}
	return k, p.closed, p.end
}

// decode decodes what waits. It leaves a busy connection to who adds to it, who could not
// decode it meanwhile, to the next round.
func (p *Copy) decode() {
	p.mu.Lock()
	busy := p.busy && !p.closed
	p.busy = false
	p.mu.Unlock()
	if busy {
		p.copies.enqueue(p)
		return
	}
	p.decoding.Lock()
	defer p.decoding.Unlock()
	p.decodeLocked()
}

// decodeLocked decodes what waits, at most as much as a connection may have.
func (p *Copy) decodeLocked() {
	for range maxPending / blockBytes {
		k, closed, end := p.take()
		if k == nil {
			p.finishLocked(closed, end)
			return
		}
		if end == nil {
			if err := p.decodeBlock(k); err != nil {
				p.mu.Lock()
				p.end = err
				p.mu.Unlock()
			}
		}
		p.release(k)
	}
	p.copies.enqueue(p)
}

// finishLocked closes the decoder if nothing will be decoded any more.
func (p *Copy) finishLocked(closed bool, end error) {
	if p.finished || end == nil && !closed {
		return
	}
	p.finished = true
	p.decoder.Close()
	if end != nil {
		p.ended(end)
	}
}

// release gives a block back. Nothing that passed stays in it.
func (p *Copy) release(k *block) {
	p.mu.Lock()
	p.pending -= blockBytes
	p.mu.Unlock()
	clear(k.bytes[:k.used])
	k.next, k.used, k.parts = nil, 0, 0
	p.copies.pool.Put(k)
	p.copies.budget.Release(blockBytes)
}

// decodeBlock decodes the parts of a block.
func (p *Copy) decodeBlock(k *block) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = decode.NewError(ReasonPanic, "panic: %T", fault)
		}
	}()
	rest := k.bytes[:k.used]
	for _, size := range k.sizes[:k.parts] {
		fromAgent := size > 0
		if !fromAgent {
			size = -size
		}
		if err := p.decoder.Read(fromAgent, rest[:size]); err != nil {
			return fmt.Errorf("decode a connection: %w", err)
		}
		rest = rest[size:]
	}
	return nil
}
