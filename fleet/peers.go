package fleet

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// newsChannel carries what replicas tell each other of the fleet.
const newsChannel = "agentstatsd_fleet"

const (
	// newsGather is how long the first news waits for others: when a replica
	// dies, thousands of agents connect within a second or two.
	newsGather = 20 * time.Millisecond
	// newsTimeout bounds the publications of what there is to tell.
	newsTimeout = 2 * time.Second
	// newsRecords fit into a message of the pubsub, which has at most 7,977
	// bytes: 24 for the kind and the replica, and 4 characters for 3 bytes.
	newsRecords = (7977 - 1 - 22) / 4 * 3 / recordBytes
	recordBytes = 16 + 8 + 8 + 1
)

// Replicas tells how this replica stands among the others. The methods touch
// memory only. replica.Replicas is one.
type Replicas interface {
	Self() agent.ID
	// Member tells whether the others take this replica for alive, Leads whether
	// it alone serves what is nobody's.
	Member() bool
	Leads() bool
	// Live tells whether another replica is taken for alive.
	Live(id agent.ID) bool
}

// News carries hints between replicas. A nil payload says that some were missed.
// pubsub's engines are some.
type News interface {
	Publish(ctx context.Context, channel string, payload []byte) error
	Subscribe(channel string, f func(payload []byte)) (cancel func(), err error)
}

// Join makes the fleet one of several over the same store. It is called once,
// before Load and Run.
func (f *Fleet) Join(r Replicas, n News) {
	f.peers = &peers{
		replicas: r,
		news:     n,
		metrics:  f.metrics,
		log:      f.log,
		waiters:  make(chan struct{}, f.opts.MaxLookups),
		wake:     make(chan struct{}, 1),
		outgoing: make(map[*entry]struct{}),
		doubted:  make(map[*entry]struct{}),
		send:     make(chan struct{}, 1),
	}
}

// self returns the id of this replica; zero: it is alone.
func (f *Fleet) self() agent.ID {
	if f.peers == nil {
		return agent.ID{}
	}
	return f.peers.replicas.Self()
}

// peers are the other replicas, as this one deals with them.
type peers struct {
	replicas Replicas
	news     News
	metrics  *metrics
	log      *slog.Logger

	// member and leads are Replicas' as of the last scan: what is served goes by
	// them. The others wait longer than the time between two scans.
	member, leads atomic.Bool

	// waiters are those who wait for what other replicas wrote.
	waiters chan struct{}

	// wake has an element when there is something to follow.
	wake chan struct{}
	// send has an element when there is something to tell.
	send chan struct{}
	// missed is true if news may have been missed since the others were asked.
	missed atomic.Bool

	mu sync.Mutex
	// Guarded by mu.

	// next is the pass of those who wait for what other replicas wrote; nil:
	// nobody waits.
	next *pass
	err  error // of the last pass
	// What is to be told.
	outgoing map[*entry]struct{}
	// doubted have a session whose epoch is below what is stored.
	doubted                         map[*entry]struct{}
	registrations, states, question bool
}

// pass is one look for what other replicas wrote.
type pass struct {
	done chan struct{}
	err  error // once done is closed
}

// failing returns why the other replicas cannot be followed; nil: they can.
func (p *peers) failing() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// nudge has the other replicas followed soon.
func (p *peers) nudge() { signal(p.wake) }

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// join returns the pass that is made next.
func (p *peers) join() *pass {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		p.next = &pass{done: make(chan struct{})}
	}
	p.nudge()
	return p.next
}

// begin returns the pass to make, which nobody can join any more.
func (p *peers) begin() *pass {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.next
	p.next = nil
	if next == nil {
		next = &pass{done: make(chan struct{})}
	}
	return next
}

// end tells those who wait.
func (p *peers) end(made *pass, err error) {
	made.err = err
	close(made.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && p.err == nil && !errors.Is(err, context.Canceled) { // told to stop
		p.log.Warn("the other replicas cannot be followed, trying again", "error", err)
	}
	p.err = err
}

// tellSessions has the newest session of each of these agents told.
func (p *peers) tellSessions(entries ...*entry) {
	if len(entries) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range entries {
		p.outgoing[e] = struct{}{}
	}
	signal(p.send)
}

// ask has the others asked for the sessions that they could not write yet: of
// these, news are all there is.
func (p *peers) ask() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.question = true
	signal(p.send)
}

// tellRegistrations has it told that the registrations changed.
func (p *peers) tellRegistrations() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.registrations = true
	signal(p.send)
}

// tellStates has it told that states were written.
func (p *peers) tellStates() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.states = true
	signal(p.send)
}

// tellUntilDone tells the other replicas what there is to tell, and makes up for
// what was missed. What is lost on the way they read in the database.
func (f *Fleet) tellUntilDone(ctx context.Context) {
	p := f.peers
	// One who falls behind and misses news does not ask for more of them at once.
	ticker := time.NewTicker(f.opts.FollowInterval)
	defer ticker.Stop()
	// Once ctx has ended the rest is told once, whatever else is ready.
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-ticker.C:
			f.makeUp()
			continue
		case <-p.send:
		}
		timer := time.NewTimer(newsGather)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		p.tell(ctx)
	}
	p.tell(ctx) // the last sessions have ended
}

// makeUp makes up for news that were missed, if any may have been: by this replica
// and, as a connection that was lost carried nothing in either direction, by the
// others. What was written they read anyway.
func (f *Fleet) makeUp() {
	if f.peers.missed.Swap(false) {
		f.peers.ask()
		f.peers.tellSessions(f.writes.unwritten()...)
	}
}

// tell publishes what there is to tell, within newsTimeout, however much it is; a
// ctx that has ended does not end it. What it fails to publish is told again, as
// far as it is not written.
func (p *peers) tell(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), newsTimeout)
	defer cancel()
	for _, payload := range p.payloads() {
		err := ctx.Err() // a pubsub that hangs is waited for once
		if err == nil {
			err = p.news.Publish(ctx, newsChannel, payload)
		}
		if err != nil {
			p.metrics.newsErrors.Inc()
			p.missed.Store(true)
			p.log.DebugContext(ctx, "news of the fleet are not published", "error", err)
		}
	}
}

// The kinds of news: the first byte of a payload. The replica's id follows.
const (
	newsRegistrations = 'r'
	newsStates        = 't'
	newsSessions      = 's' // followed by the records
	newsQuestion      = 'q' // which sessions are not written yet?
)

// payloads takes what is to be told.
func (p *peers) payloads() [][]byte {
	p.mu.Lock()
	entries := slices.Collect(maps.Keys(p.outgoing))
	clear(p.outgoing)
	registrations, states, question := p.registrations, p.states, p.question
	p.registrations, p.states, p.question = false, false, false
	p.mu.Unlock()

	self := p.replicas.Self()
	header := func(kind byte) []byte { return encoding.AppendEncode([]byte{kind}, self[:]) }
	var out [][]byte
	if registrations {
		out = append(out, header(newsRegistrations))
	}
	if states {
		out = append(out, header(newsStates))
	}
	if question {
		out = append(out, header(newsQuestion))
	}
	for part := range slices.Chunk(entries, newsRecords) {
		raw := make([]byte, 0, len(part)*recordBytes)
		for _, e := range part {
			e.mu.Lock()
			record, stays := e.newest, !e.leaving && !e.gone
			record.Incarnation = e.reg.Load().Incarnation
			e.mu.Unlock()
			if stays && record.Replica == self {
				raw = appendRecord(raw, &record)
			}
		}
		if len(raw) > 0 {
			out = append(out, encoding.AppendEncode(header(newsSessions), raw))
		}
	}
	return out
}

var encoding = base64.RawStdEncoding.Strict()

// Flags of a record.
const (
	flagOpen = 1 << iota
	flagReported
)

// appendRecord appends a record but for its replica.
func appendRecord(dst []byte, r *agent.SessionRecord) []byte {
	dst = append(dst, r.Agent[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Incarnation))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Epoch))
	var flags byte
	if r.Open {
		flags |= flagOpen
	}
	if r.Reported {
		flags |= flagReported
	}
	return append(dst, flags)
}

// parseNews is the inverse of payloads. records are those of newsSessions. An
// error says that the payload is of another version of this program.
func parseNews(payload []byte) (kind byte, from agent.ID, records []agent.SessionRecord, err error) {
	const headerLen = 1 + 22
	if len(payload) < headerLen {
		return 0, from, nil, fmt.Errorf("news of the fleet: %d bytes", len(payload))
	}
	var id [17]byte // what 22 characters may decode to, as far as the encoding knows
	if n, err := encoding.Decode(id[:], payload[1:headerLen]); err != nil || n != len(from) {
		return 0, from, nil, fmt.Errorf("news of the fleet: replica %q", payload[1:headerLen])
	}
	copy(from[:], id[:])
	kind = payload[0]
	if kind != newsSessions {
		return kind, from, nil, nil
	}
	raw, err := encoding.AppendDecode(nil, payload[headerLen:])
	if err != nil || len(raw)%recordBytes != 0 {
		return 0, from, nil, fmt.Errorf("news of the fleet: %d bytes of records: %w", len(raw), err)
	}
	for r := range slices.Chunk(raw, recordBytes) {
		flags := r[recordBytes-1]
		records = append(records, agent.SessionRecord{
			Agent:       agent.ID(r[:16]),
			Incarnation: int64(binary.BigEndian.Uint64(r[16:24])),
			Epoch:       int64(binary.BigEndian.Uint64(r[24:32])),
			Replica:     from,
			Open:        flags&flagOpen != 0,
			Reported:    flags&flagReported != 0,
		})
	}
	return kind, from, records, nil
}

// hear takes in news. It is called by the pubsub, one call at a time.
func (f *Fleet) hear(payload []byte) {
	if payload == nil {
		f.peers.missed.Store(true)
		f.peers.nudge()
		return
	}
	kind, from, records, err := parseNews(payload)
	switch {
	case err != nil:
		f.metrics.newsMalformed.Inc()
		f.peers.nudge()
	case from == f.self():
	case kind == newsSessions:
		if !f.adoptSessions(records, math.MaxInt64) {
			f.peers.missed.Store(true) // asked for again, once the registrations are read
			f.peers.nudge()
		}
	case kind == newsQuestion:
		f.peers.tellSessions(f.writes.unwritten()...)
	default:
		f.peers.nudge()
	}
}
