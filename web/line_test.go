package web

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/coder/agentstatsd/internal/bubble"
)

func address(n int) netip.Prefix { return prefixOf(fmt.Sprintf("10.0.%d.%d:1", n/256, n%256)) }

// reader is who asks for a slot, in a bubble of synctest.
type reader struct {
	ticket
	stopped atomic.Bool // takes nothing since
	since   atomic.Int64
	bytes   atomic.Int64
	wasCut  chan struct{}
}

func newReader(addr int, trusted time.Time) *reader {
	r := &reader{wasCut: make(chan struct{})}
	r.ticket = ticket{
		address: address(addr), conn: r, trusted: trusted,
		progress: func(now time.Time) progress {
			since := time.Duration(now.UnixNano() - r.since.Load())
			p := progress{bytes: r.bytes.Load(), blocked: since}
			if r.stopped.Load() {
				p.stalled = since
			}
			return p
		},
		cut: func() { close(r.wasCut) },
	}
	return r
}

// tickets returns those that have a slot.
func (l *line) tickets() []*ticket {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.running)
}

// stall has the reader hold its slot, and take nothing, until it is cut.
func (r *reader) stall(t *testing.T, l *line) {
	r.since.Store(time.Now().UnixNano())
	r.stopped.Store(true)
	go func() {
		<-r.wasCut
		l.release(&r.ticket)
	}()
}

func (r *reader) acquire(l *line) bool {
	ok := l.acquire(context.Background(), &r.ticket, lineWait)
	r.since.Store(time.Now().UnixNano())
	return ok
}

func TestStalledReadersLoseTheirSlotsOnlyWhileOthersWait(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newLine(2, rate.Inf)
		first, second := newReader(1, time.Now()), newReader(2, time.Now())
		for _, r := range []*reader{first, second} {
			require.True(t, r.acquire(l))
			r.stall(t, l)
		}
		time.Sleep(time.Minute)
		require.Len(t, l.tickets(), 2, "nobody waits")

		start := time.Now()
		third := newReader(3, time.Time{})
		third.trusted = time.Now().Add(-time.Minute)
		require.True(t, third.acquire(l))
		require.LessOrEqual(t, time.Since(start), lineLook)
		synctest.Wait()
		require.Len(t, l.tickets(), 2, "one was wanted, one was taken")
		for r := range map[*reader]bool{first: true, second: true} {
			select {
			case <-r.wasCut:
			default:
				close(r.wasCut)
			}
		}
		l.release(&third.ticket)
	})
}

// While strangers hold and want all slots, whoever was served before gets in at once.
func TestOneSlotIsKept(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newLine(4, rate.Inf)
		known := time.Now()
		time.Sleep(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		var got atomic.Int64
		for i := range 30 {
			r := newReader(i, time.Time{})
			go func() {
				if l.acquire(ctx, &r.ticket, lineWait) {
					got.Add(1)
				}
			}()
		}
		synctest.Wait()
		require.EqualValues(t, 3, got.Load())
		start := time.Now()
		for range 5 {
			r := newReader(1, known)
			require.True(t, r.acquire(l))
			l.release(&r.ticket)
			synctest.Wait()
		}
		require.Zero(t, time.Since(start))
		require.EqualValues(t, 3, got.Load())
		cancel()
	})
}

// An address with many requests waits longer than one with few, a connection too.
func TestSlotsAreShared(t *testing.T) {
	for name, second := range map[string]int{"address": 2, "connection": 1} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				l := newLine(3, rate.Inf)
				greedy, other := newReader(1, time.Time{}), newReader(5, time.Time{})
				require.True(t, greedy.acquire(l))
				require.True(t, other.acquire(l))
				order := make(chan string, 20)
				ask := func(name string, r *reader) {
					go func() {
						if r.acquire(l) {
							order <- name
						}
					}()
					synctest.Wait()
				}
				for range 5 {
					r := newReader(1, time.Time{})
					r.conn = greedy.conn
					ask("greedy", r)
				}
				modest := newReader(second, time.Time{})
				ask("modest", modest)
				l.release(&other.ticket)
				require.Equal(t, "modest", <-order)
				time.Sleep(2 * lineWait)
			})
		})
	}
}

func TestNobodyWaitsForLong(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newLine(1, rate.Inf)
		busy := newReader(1, time.Time{})
		require.True(t, busy.acquire(l))
		start := time.Now()
		require.False(t, newReader(2, time.Time{}).acquire(l))
		require.Equal(t, lineWait, time.Since(start))
		start = time.Now()
		require.False(t, l.acquire(t.Context(), &newReader(2, time.Time{}).ticket, time.Second))
		require.Equal(t, time.Second, time.Since(start), "its scraper gives it less")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		require.False(t, l.acquire(ctx, &newReader(2, time.Time{}).ticket, time.Hour))
		l.mu.Lock()
		defer l.mu.Unlock()
		require.Empty(t, l.waiting)
	})
}

// The line is bounded: who comes last in it gives way, which a stranger does before
// somebody known.
func TestLineIsBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newLine(1, rate.Inf)
		busy := newReader(1, time.Time{})
		require.True(t, busy.acquire(l))
		var lost atomic.Int64
		for range 3 * lineLength {
			r := newReader(2, time.Time{})
			go func() {
				if !r.acquire(l) {
					lost.Add(1)
				}
			}()
		}
		synctest.Wait()
		require.EqualValues(t, 2*lineLength, lost.Load())
		known := newReader(3, time.Now())
		done := make(chan bool)
		go func() { done <- known.acquire(l) }()
		synctest.Wait()
		require.EqualValues(t, 2*lineLength+1, lost.Load())
		l.release(&busy.ticket)
		require.True(t, <-done, "and it comes first")
		l.release(&known.ticket)
		time.Sleep(2 * lineWait)
	})
}

// Readers that take a little all the time keep nobody out that is better known.
func TestSlowReadersGiveWayToWhoIsBetterKnown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		known := time.Now()
		time.Sleep(time.Hour)
		l := newLine(2, rate.Inf)
		slow, slower := newReader(1, time.Now()), newReader(1, time.Now())
		require.True(t, slow.acquire(l))
		require.True(t, slower.acquire(l))
		slow.bytes.Store(10 * slowRate * 10)
		slower.bytes.Store(5 * slowRate * 10)
		time.Sleep(slowAfter)
		stranger := newReader(2, time.Time{})
		require.False(t, stranger.acquire(l), "they are not that slow")
		good := newReader(1, known)
		go func() {
			<-slower.wasCut
			l.release(&slower.ticket)
		}()
		start := time.Now()
		require.True(t, good.acquire(l))
		require.LessOrEqual(t, time.Since(start), stallAfter+lineLook)
		select {
		case <-slow.wasCut:
			t.Fatal("one is enough")
		default:
		}
	})
}

// Everybody is first in the end: strangers are served while known ones come in
// without end.
func TestStrangersAreServedAtLast(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newLine(2, rate.Inf)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		since := time.Now()
		time.Sleep(time.Hour)
		for range 8 { // 8 known ones, whose scrapes take 100 ms
			go func() {
				for ctx.Err() == nil {
					r := newReader(1, since)
					if r.acquire(l) {
						time.Sleep(100 * time.Millisecond)
						l.release(&r.ticket)
					}
				}
			}()
		}
		time.Sleep(10 * time.Second)
		stranger := newReader(1, time.Time{})
		require.True(t, stranger.acquire(l))
		l.release(&stranger.ticket)
		cancel()
		time.Sleep(lineWait)
	})
}

func TestSlotsArePaced(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const slots, perSecond = 4, 100
		l := newLine(slots, perSecond)
		start := time.Now()
		for n := range slots + 50 { // one after another, none of which takes any time
			r := newReader(n, time.Time{})
			require.True(t, r.acquire(l))
			l.release(&r.ticket)
			require.Equal(t, time.Duration(max(0, n+1-slots))*time.Second/perSecond, time.Since(start))
		}

		// Who was served before goes first while others wait.
		var served atomic.Int64
		for n := range 40 {
			go func() {
				r := newReader(1000+n, time.Time{})
				if r.acquire(l) {
					served.Add(1)
					l.release(&r.ticket)
				}
			}()
		}
		synctest.Wait()
		known := newReader(2000, start)
		before := time.Now()
		require.True(t, known.acquire(l))
		l.release(&known.ticket)
		require.LessOrEqual(t, time.Since(before), time.Second/perSecond)
		require.LessOrEqual(t, served.Load(), int64(1))
		time.Sleep(time.Second)
		require.EqualValues(t, 40, served.Load())
	})
}

// Connections of one address that scrape without a pause, all of them served whole
// before, do not delay a scraper of another address.
func TestGreedyAddressesWaitForOthers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const slots, perSecond = 16, 100
		l := newLine(slots, perSecond)
		trusted := time.Now().Add(-time.Hour)
		stop := make(chan struct{})
		var served atomic.Int64
		for range 60 {
			go func() {
				for conn := newReader(1, trusted); ; {
					r := newReader(1, trusted)
					r.conn = conn
					if r.acquire(l) {
						served.Add(1)
						l.release(&r.ticket)
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			}()
		}
		conn := newReader(2, trusted)
		for range 20 {
			time.Sleep(500 * time.Millisecond)
			r := newReader(2, trusted)
			r.conn = conn
			before := time.Now()
			require.True(t, r.acquire(l))
			require.LessOrEqual(t, time.Since(before), time.Second/perSecond)
			l.release(&r.ticket)
		}
		close(stop)
		require.Greater(t, served.Load(), int64(900), "of 1,000 in 10 s")
		time.Sleep(time.Minute)
	})
}

// A connection that scrapes without a pause, and was served whole before, keeps its
// place when new connections of its address fill the line.
func TestKnownConnectionsKeepTheirPlace(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const slots, perSecond = 16, 100
		l := newLine(slots, perSecond)
		trusted := time.Now().Add(-time.Hour)
		conn := newReader(1, trusted)
		scrape := func() {
			r := newReader(1, trusted)
			r.conn = conn
			before := time.Now()
			require.True(t, r.acquire(l))
			require.LessOrEqual(t, time.Since(before), time.Second/perSecond)
			l.release(&r.ticket)
		}
		for range slots {
			scrape()
		}
		var waited sync.WaitGroup
		for range 2 * lineLength {
			waited.Go(func() {
				r := newReader(1, time.Time{})
				if r.acquire(l) {
					time.Sleep(10 * time.Millisecond)
					l.release(&r.ticket)
				}
			})
		}
		synctest.Wait()
		for range 20 {
			scrape()
		}
		waited.Wait()
	})
}

// Who was served too long ago to count has its place, also if no slot was free since.
func TestOldSlotsDoNotCount(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newLine(2, 2)
		known := time.Now()
		modest := newReader(1, known)
		require.True(t, modest.acquire(l))
		l.release(&modest.ticket)
		var slow []*reader
		for n := range 2 {
			r := newReader(2+n, known)
			require.True(t, r.acquire(l))
			slow = append(slow, r)
		}
		time.Sleep(lineWait)
		for n := range lineLength {
			go newReader(10+n, time.Time{}).acquire(l)
		}
		synctest.Wait()
		got := make(chan bool, 1)
		again := newReader(1, known)
		go func() { got <- again.acquire(l) }()
		synctest.Wait()
		l.release(&slow[0].ticket)
		require.True(t, <-got)
		time.Sleep(2 * lineWait)
	})
}
