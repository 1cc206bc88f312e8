package web

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// maxTrusted bounds the addresses that are remembered as served before.
const maxTrusted = 1024

// Slots bounds how many requests a handler serves at once, and keeps slow and
// greedy clients from taking all the room: see line. Who does not get in within 5 s,
// or half of the scraper's own timeout, is answered 503.
//
// A response that is not written whole ends with a reset of its connection or HTTP/2
// stream. HTTP/1.0 has no other way to mark it as incomplete. To HTTP/1.0 up to 1 MB is
// sent with its length.
type Slots struct {
	what    string
	line    *line
	next    http.Handler
	metrics *slotsMetrics

	mu        sync.Mutex
	addresses map[netip.Prefix]time.Time // served whole since
}

// NewSlots returns a handler that has next serve at most slots requests at once, and
// perSecond for ever. What says what it serves, scrapes or pages: names of families and
// options are made of it. It registers families in reg.
func NewSlots(next http.Handler, what string, slots int, perSecond rate.Limit, reg prometheus.Registerer) (*Slots, error) {
	m, err := newSlotsMetrics(what, reg)
	if err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	s := &Slots{what: what, line: newLine(slots, perSecond), next: next, metrics: m, addresses: make(map[netip.Prefix]time.Time)}
	if err := s.registerGauges(reg); err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	return s, nil
}

// Reconfigure changes how many requests are served at once, and in a second. Those that are
// being served go on.
func (s *Slots) Reconfigure(slots int, perSecond rate.Limit) {
	l := s.line
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots = slots
	l.pace.SetLimit(perSecond)
	l.pace.SetBurst(slots)
	l.grantLocked()
}

// Limits returns what Reconfigure set, or NewSlots.
func (s *Slots) Limits() (slots int, perSecond rate.Limit) {
	s.line.mu.Lock()
	defer s.line.mu.Unlock()
	return s.line.slots, s.line.pace.Limit()
}

// ServeHTTP implements http.Handler.
func (s *Slots) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet { // answered without work
		s.next.ServeHTTP(w, r)
		return
	}
	c := connOf(r)
	resp := &response{ResponseWriter: w, buffering: r.ProtoMajor == 1 && r.ProtoMinor == 0}
	trusted, byAddress := s.trustedSince(c)
	t := &ticket{
		address: c.address, conn: c, trusted: trusted, byAddress: byAddress, progress: resp.progress,
		cut: func() {
			resp.cut.Store(true)
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(-time.Second))
		},
	}
	if !s.line.acquire(r.Context(), t, scrapeWait(r)) {
		s.metrics.refused.Inc()
		slots, perSecond := s.Limits()
		w.Header().Set("Retry-After", "1")
		http.Error(w, fmt.Sprintf("too many %[1]s: at most %[2]d at once (--max-concurrent-%[1]s) and %.0[3]f a second (--max-%[1]s-per-second) are served",
			s.what, slots, float64(perSecond)), http.StatusServiceUnavailable)
		return
	}
	whole := false
	defer func() {
		s.line.release(t)
		s.updateTrust(c, resp, whole)
		if !whole {
			c.reset()
		}
	}()
	s.next.ServeHTTP(resp, r)
	resp.finish()
	if resp.err != nil {
		panic(http.ErrAbortHandler)
	}
	whole = true
}

// scrapeWait is how long a scrape may wait: half of the time that its scraper gives
// it, as Prometheus says in a header.
func scrapeWait(r *http.Request) time.Duration {
	seconds, err := strconv.ParseFloat(r.Header.Get("X-Prometheus-Scrape-Timeout-Seconds"), 64)
	if err != nil || !(seconds > 0) || seconds > lineWait.Seconds()*2 {
		return lineWait
	}
	return time.Duration(seconds / 2 * float64(time.Second))
}

// trustedSince returns since when the connection, or else its address, is served
// whole; zero: it was not yet.
func (s *Slots) trustedSince(c *conn) (since time.Time, byAddress bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.trusted.IsZero() {
		return c.trusted, false
	}
	return s.addresses[c.address], true
}

// updateTrust remembers the readers that read whole scrapes, and forgets the
// others.
func (s *Slots) updateTrust(c *conn, resp *response, whole bool) {
	if resp.cut.Load() {
		s.metrics.cut.Inc()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case resp.cut.Load():
		c.trusted = time.Time{}
		delete(s.addresses, c.address)
	case !whole || resp.slow():
	default:
		now := time.Now()
		if c.trusted.IsZero() {
			c.trusted = now
		}
		if _, ok := s.addresses[c.address]; ok {
			return
		}
		if len(s.addresses) >= maxTrusted {
			for address := range s.addresses {
				delete(s.addresses, address)
				break
			}
		}
		s.addresses[c.address] = now
	}
}
