package web

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// lineLength bounds who waits for a slot; each is a goroutine.
	lineLength = 64
	// lineWait bounds the wait for a slot: half of Prometheus's usual timeout.
	lineWait = 5 * time.Second
	// lineLook is how often waiting tickets look for a slot to reclaim.
	lineLook = 250 * time.Millisecond
	// stallAfter is how long a reader that takes nothing keeps its slot while others
	// wait.
	stallAfter = 2 * time.Second
	// slowAfter is how long a reader may be slow before it can lose its slot.
	slowAfter = 4 * time.Second
	// A reader is slow below slowRate bytes a second, or below slowRateToTrusted while
	// a better known one waits. A scrape of a million series has 100 MB, or 10 MB
	// compressed: who is slower cannot have read it within the usual timeout.
	slowRate          = 64 << 10
	slowRateToTrusted = 1 << 20
	// headStart is the advantage in line of a connection that was served whole before.
	// It grows by headStartGrowth within trustGrowth. Both together are less than
	// lineWait: everybody becomes first in the end. Other connections of its address
	// have headStartOfAddress.
	headStart          = 3 * time.Second
	headStartOfAddress = 1 * time.Second
	headStartGrowth    = 1 * time.Second
	trustGrowth        = 2 * time.Minute
)

// line gives slots to requests, in a fair order. The address with the fewest slots is
// first, within it the connection with the fewest, within that the oldest request.
// Connections that were served whole before have a head start, and one slot is kept
// for them. While somebody waits, readers that take nothing, or too little, lose
// their slots. Slots are given at a limited rate: small scrapes that follow one another
// without a pause would take all processors. A slot counts for its address for as long
// as the rate needs to give all slots, also if it is free before. It does not for its
// connection: that would favor new ones, of which anybody can have many.
type line struct {
	pace *rate.Limiter // of slots that are given

	mu      sync.Mutex
	slots   int
	waiting []*ticket // no order
	running []*ticket
	recent  []served    // done, and still counted
	paced   *time.Timer // gives slots when the pace allows it; nil: it is not waited for
}

// served is a slot that is free again.
type served struct {
	address netip.Prefix
	started time.Time
}

// newLine returns a line that gives so many slots a second for ever, and slots at once.
func newLine(slots int, perSecond rate.Limit) *line {
	return &line{slots: slots, pace: rate.NewLimiter(perSecond, slots)}
}

// ticket is one request for a slot.
type ticket struct {
	address netip.Prefix
	// conn identifies the connection.
	conn any
	// trusted is since when the connection, or else (byAddress) the address, is served
	// whole; zero: it was not yet.
	trusted   time.Time
	byAddress bool
	// progress says how the reader does; cut takes its slot back. Neither blocks. They
	// are called under the line's mutex, and not after release.
	progress func(now time.Time) progress
	cut      func()

	arrived time.Time
	// granted is closed when the slot is given, or place is lost.
	granted chan struct{}
	lost    bool
	started time.Time
	wasCut  bool
}

// progress describes how far a reader came.
type progress struct {
	// bytes were taken in blocked, the time in which the reader was waited for.
	bytes   int64
	blocked time.Duration
	// stalled is how long nothing was taken, until now.
	stalled time.Duration
}

// headStart returns when t arrived, with its head start.
func (t *ticket) headStart() time.Time {
	switch {
	case t.trusted.IsZero():
		return t.arrived
	case t.byAddress:
		return t.arrived.Add(-headStartOfAddress)
	}
	growth := min(t.arrived.Sub(t.trusted), trustGrowth)
	return t.arrived.Add(-headStart - growth/(trustGrowth/headStartGrowth))
}

// acquire waits for a slot, at most for wait. It reports whether there is one, to be
// given back with release.
func (l *line) acquire(ctx context.Context, t *ticket, wait time.Duration) bool {
	t.arrived, t.granted = time.Now(), make(chan struct{})
	if !l.addTicket(t) {
		return false
	}
	timeout := time.NewTimer(min(wait, lineWait))
	defer timeout.Stop()
	look := time.NewTicker(lineLook)
	defer look.Stop()
	for {
		select {
		case <-t.granted:
			return !t.lost
		case now := <-look.C:
			l.reclaim(now)
		case <-ctx.Done():
			return l.cancelWait(t)
		case <-timeout.C:
			return l.cancelWait(t)
		}
	}
}

// addTicket gives t a slot at once, or adds it to the line. If the line is full,
// the last ticket loses its place.
func (l *line) addTicket(t *ticket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, t)
	l.grantLocked()
	if len(l.waiting) <= lineLength {
		return true
	}
	last := slices.MaxFunc(l.waiting, l.compareLocked)
	last.lost = true
	l.removeWaitingLocked(last)
	close(last.granted)
	return last != t
}

// cancelWait ends the wait. It reports whether t got a slot meanwhile.
func (l *line) cancelWait(t *ticket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-t.granted:
		return !t.lost
	default:
		l.removeWaitingLocked(t)
		return false
	}
}

// release gives the slot back. t is not cut any more when it returns.
func (l *line) release(t *ticket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = slices.DeleteFunc(l.running, func(o *ticket) bool { return o == t })
	l.recent = append(l.recent, served{t.address, t.started})
	l.grantLocked()
}

// forgetLocked forgets who was given a slot too long ago to count.
func (l *line) forgetLocked(now time.Time) {
	counts := time.Duration(float64(l.slots) / float64(l.pace.Limit()) * float64(time.Second))
	l.recent = slices.DeleteFunc(l.recent, func(s served) bool { return now.Sub(s.started) >= counts })
}

func (l *line) removeWaitingLocked(t *ticket) {
	l.waiting = slices.DeleteFunc(l.waiting, func(o *ticket) bool { return o == t })
}

// grantLocked gives free slots to those who come first, or will do so when the pace
// allows it.
func (l *line) grantLocked() {
	l.forgetLocked(time.Now())
	for l.paced == nil && len(l.running) < l.slots {
		t := l.nextLocked()
		if t == nil {
			return
		}
		if !l.pace.Allow() {
			l.paced = time.AfterFunc(time.Duration(float64(time.Second)/float64(l.pace.Limit())), l.grantPaced)
			return
		}
		l.removeWaitingLocked(t)
		t.started = time.Now()
		l.running = append(l.running, t)
		close(t.granted)
	}
}

func (l *line) grantPaced() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paced = nil
	l.grantLocked()
}

// nextLocked returns who comes first of those who may have a slot now; nil: nobody.
func (l *line) nextLocked() *ticket {
	strangers := 0
	for _, r := range l.running {
		if r.trusted.IsZero() {
			strangers++
		}
	}
	onlyKept := l.slots > 1 && strangers >= l.slots-1
	var next *ticket
	for _, t := range l.waiting {
		if (!onlyKept || !t.trusted.IsZero()) && (next == nil || l.compareLocked(t, next) < 0) {
			next = t
		}
	}
	return next
}

// compareLocked is negative if a comes before b.
func (l *line) compareLocked(a, b *ticket) int {
	var ofAddress, ofConn int
	count := func(address netip.Prefix) {
		switch address {
		case a.address:
			ofAddress++
		case b.address:
			ofAddress--
		}
	}
	for _, s := range l.recent {
		count(s.address)
	}
	for _, r := range l.running {
		count(r.address)
		if r.conn == a.conn {
			ofConn++
		}
		if r.conn == b.conn {
			ofConn--
		}
	}
	if a.address == b.address {
		ofAddress = 0
	}
	switch {
	case ofAddress != 0:
		return ofAddress
	case ofConn != 0:
		return ofConn
	default:
		return a.headStart().Compare(b.headStart())
	}
}

// reclaim reclaims the slots of readers that read nothing, at most one for each
// waiting ticket. If there are none and the first ticket waits for long, it
// reclaims the slot of the slowest reader that is too slow.
func (l *line) reclaim(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetLocked(now)
	wanted := len(l.waiting)
	var slowest *ticket
	var slowestRate float64
	for _, r := range l.running {
		if r.wasCut {
			wanted--
		}
	}
	if wanted <= 0 {
		return
	}
	cut := wanted < len(l.waiting)
	first := slices.MinFunc(l.waiting, l.compareLocked)
	for _, r := range l.running {
		if r.wasCut || wanted == 0 {
			continue
		}
		p := r.progress(now)
		if p.stalled >= stallAfter {
			r.wasCut, cut = true, true
			r.cut()
			wanted--
			continue
		}
		ran := now.Sub(r.started)
		if ran < slowAfter || p.blocked < ran/2 {
			continue
		}
		rate := float64(p.bytes) / p.blocked.Seconds()
		if rate < leastRate(first, r) && (slowest == nil || rate < slowestRate) {
			slowest, slowestRate = r, rate
		}
	}
	if !cut && slowest != nil && now.Sub(first.arrived) >= stallAfter {
		slowest.wasCut = true
		slowest.cut()
	}
}

// leastRate is the rate that a reader needs to keep its slot while t waits.
func leastRate(t, reader *ticket) float64 {
	switch {
	case t.trusted.IsZero():
		return slowRate
	case reader.trusted.IsZero(), reader.byAddress && !t.byAddress, t.trusted.Before(reader.trusted):
		return slowRateToTrusted
	}
	return slowRate
}
