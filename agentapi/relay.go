package agentapi

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Bus carries messages between the replicas of this service. Delivery is not
// promised. pubsub's engines are buses.
type Bus interface {
	// Publish sends a payload, 1 to 7977 bytes of text without NUL, to the
	// subscribers of the channel, those of the same process too.
	Publish(ctx context.Context, channel string, payload []byte) error
	// Subscribe calls f with each payload, one call at a time, until cancel has
	// returned; nil: some were missed. f must not keep the payload.
	Subscribe(channel string, f func(payload []byte)) (cancel func(), err error)
}

const (
	// announceInterval is the time between two announcements of what is watched;
	// that of urgent ones is urgentInterval.
	announceInterval = 5 * time.Second
	urgentInterval   = time.Second
	// lastRounds are announced after the end of all that was watched.
	lastRounds = 3
	// resendInterval is the time after which a parcel without an ack is sent
	// again.
	resendInterval = 2 * time.Second
	// hurryInterval is the same of a replica that stops.
	hurryInterval = 250 * time.Millisecond
	// earlyTime is how long a new replica gathers what its agents report, for
	// watches that it did not hear of yet.
	earlyTime = 2 * announceInterval
	// publishTimeout bounds the publishing of a message.
	publishTimeout = time.Second
	// handOverTimeout bounds the time in which a replica that stops hands on what
	// it has gathered.
	handOverTimeout = 2 * time.Second
	// maxRemotes is the number of other replicas that are known at once; of more
	// that which was silent longest is forgotten.
	maxRemotes = 64
	// maxSettled of what one replica is to be told is kept; it asks again.
	maxSettled = 256
)

// relay hands the reports that one replica takes in on to watchers on others.
// While a replica has watchers it announces this. Each other replica then
// gathers, coalesced per agent, what its own agents report, and sends it in
// parcels. One parcel is on the way at a time, and is sent again until it is
// acked; who receives it twice takes it once. So what is missed on the bus, or
// reported while that is down, is late and not lost.
type relay struct {
	bus       Bus
	self      agent.ID
	retention time.Duration
	maxAgents int
	feed      *feed
	names     *statsNames
	metrics   *metrics
	log       *slog.Logger
	// news is true when something is to be announced at once.
	news atomic.Bool
	// wake has an element when there may be something to send.
	wake chan struct{}
	// cancel ends the subscriptions.
	cancel []func()

	// mu is taken before that of statsNames.
	mu sync.Mutex
	// Guarded by mu.
	remotes map[agent.ID]*remote
	epochs  uint64 // that parcels had
	resend  time.Duration
	stopped bool        // what comes is not taken in
	early   *earlyStats // nil when its time is over
	// Of announcements:
	due   time.Time // of the next one
	ask   bool      // it asks the others for theirs
	asked time.Time
	round int64
	idle  int // rounds since something was watched
}

// earlyStats is what a replica has gathered since it began: for the watches of
// others that it has not heard of.
type earlyStats struct {
	watch *statsWatch
	began int64 // in Unix nanoseconds
	end   func()
}

// since returns what a watch that began then has missed here; nil: nothing.
func (e *earlyStats) since(then int64) *statsWatch {
	if e == nil || then > e.began {
		return nil
	}
	return e.watch
}

func newRelay(bus Bus, self agent.ID, names *statsNames, log *slog.Logger) *relay {
	r := &relay{
		bus:       bus,
		self:      self,
		retention: names.retention,
		maxAgents: names.maxAgents,
		feed:      names.feed,
		names:     names,
		metrics:   names.metrics,
		log:       log,
		wake:      make(chan struct{}, 1),
		remotes:   make(map[agent.ID]*remote),
		resend:    resendInterval,
	}
	names.self = self
	names.changed, names.feed.changed = r.changed, r.changed
	return r
}

// begin listens to the other replicas, and gathers for their watchers, before
// the first agent reports. An error is that of the bus.
func (r *relay) begin() error {
	now := time.Now()
	early := &earlyStats{watch: newStatsWatch(nil, r.maxAgents, r.metrics), began: now.UnixNano()}
	early.end = r.feed.watch(early.watch, nil)
	r.mu.Lock()
	r.early, r.due, r.ask, r.asked = early, now, true, now
	r.names.setEarly(early)
	r.mu.Unlock()
	for _, s := range []struct {
		channel string
		hear    func(*relayMessage)
	}{{relayChannel, r.hearAll}, {relayChannelOf(r.self), r.hearOwn}} {
		cancel, err := r.bus.Subscribe(s.channel, func(payload []byte) { r.receive(payload, s.hear) })
		if err != nil {
			r.end()
			return fmt.Errorf("subscribe to %s: %w", s.channel, err)
		}
		r.cancel = append(r.cancel, cancel)
	}
	return nil
}

// run sends what is due until ctx is cancelled. Then it hands on what was
// gathered, within handOverTimeout, and takes leave. To be called after begin.
func (r *relay) run(ctx context.Context) {
	r.work(ctx, func() bool { return true })
	r.hurry()
	handOver, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOverTimeout)
	defer cancel()
	r.work(handOver, r.owes)
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
	defer cancel()
	r.publish(leave, r.leave())
	r.end()
}

func (r *relay) hurry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resend = hurryInterval
}

// work sends what is due until ctx is cancelled or there is no more.
func (r *relay) work(ctx context.Context, more func() bool) {
	for {
		letters, next := r.collect(time.Now())
		r.publish(ctx, letters)
		if !more() {
			return
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-r.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// end stops listening and gathering.
func (r *relay) end() {
	for _, cancel := range r.cancel {
		cancel()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endEarlyLocked()
	for _, to := range r.remotes {
		to.watch(interest{}, r)
	}
	clear(r.remotes)
	r.metrics.relayReplicas.Set(0)
}

func (r *relay) endEarlyLocked() {
	if r.early == nil {
		return
	}
	r.names.setEarly(nil) // before it misses the first report
	r.early.end()
	r.early = nil
}

// changed has what is watched be announced. It takes no locks.
func (r *relay) changed() {
	r.news.Store(true)
	r.rouse()
}

func (r *relay) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// letter is a message to be published.
type letter struct {
	channel string
	payload []byte
}

// publish sends letters until one cannot be sent. What matters is sent again.
func (r *relay) publish(ctx context.Context, letters []letter) {
	for _, l := range letters {
		publishCtx, cancel := context.WithTimeout(ctx, publishTimeout)
		err := r.bus.Publish(publishCtx, l.channel, l.payload)
		cancel()
		if err != nil {
			r.metrics.relayErrors.WithLabelValues(relayPublish).Inc()
			r.log.Debug("reports are not relayed", "error", err)
			return
		}
	}
}

func (r *relay) letter(channel string, m relayMessage) letter {
	m.From = r.self
	payload, err := json.Marshal(m)
	if err != nil {
		r.log.Error("a message to other replicas cannot be encoded", "error", err)
	}
	return letter{channel, payload}
}

// receive decodes a message and hands it to its handler.
func (r *relay) receive(payload []byte, hear func(*relayMessage)) {
	if payload == nil {
		r.missed(time.Now())
		return
	}
	var m relayMessage
	if err := json.Unmarshal(payload, &m); err != nil {
		r.metrics.relayErrors.WithLabelValues(relayMalformed).Inc()
		r.log.Debug("a message of another replica is malformed", "error", err)
		return
	}
	hear(&m)
	r.rouse()
}

// missed asks for what may have been missed, and sends it to those who may have
// missed it: at most once in urgentInterval.
func (r *relay) missed(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ask = true
	if r.due = now; now.Sub(r.asked) < urgentInterval {
		r.due = r.asked.Add(urgentInterval)
	}
	for _, to := range r.remotes {
		if to.way != nil && now.Sub(to.way.sent) >= urgentInterval {
			to.way.sent = time.Time{}
		}
	}
	r.rouse()
}

// collect returns what is to be sent now, and when to look again.
func (r *relay) collect(now time.Time) (letters []letter, next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.early != nil && now.UnixNano()-r.early.began >= int64(earlyTime) {
		r.endEarlyLocked()
	}
	r.names.dropSilent(now)
	if r.news.Swap(false) || !r.due.After(now) {
		letters = r.announceLocked(now)
	}
	next = r.due
	gathers := r.names.gathersForOthers()
	for id, to := range r.remotes {
		if to.expire(now, r) {
			delete(r.remotes, id)
			continue
		}
		letters = append(letters, r.lettersLocked(to, now)...)
		gathers = gathers || to.unnamed != nil || to.activity != nil
		if to.way != nil {
			next = earlier(next, to.way.sent.Add(r.resend))
		}
	}
	if gathers {
		next = earlier(next, now.Add(watchPause))
	}
	r.metrics.relayReplicas.Set(float64(len(r.remotes)))
	return letters, next
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// announceLocked returns what tells the others what is watched here.
func (r *relay) announceLocked(now time.Time) (letters []letter) {
	claims, ended, urgent := r.names.claims()
	watched := r.feed.interest()
	r.due = now.Add(announceInterval)
	if urgent {
		r.due = now.Add(urgentInterval)
	}
	r.idle++
	if watched != (interest{}) || len(claims) > 0 || len(ended) > 0 {
		r.idle = 0
	}
	if r.idle > lastRounds && !r.ask {
		return nil
	}
	r.round++
	if r.ask {
		r.asked = now
	}
	add := func(claims, ended []claim) {
		letters = append(letters, r.letter(relayChannel, relayMessage{
			Announce: &announcement{Round: r.round, Ask: r.ask, interest: watched, Claims: claims, Ended: ended},
		}))
		r.ask = false
	}
	for _, part := range cutList(claims) {
		add(part, nil)
	}
	for _, part := range cutList(ended) {
		add(nil, part)
	}
	if len(letters) == 0 {
		add(nil, nil)
	}
	return letters
}

// hearAll takes in what replicas tell all.
func (r *relay) hearAll(m *relayMessage) {
	a := m.Announce
	if a == nil {
		r.metrics.relayErrors.WithLabelValues(relayMalformed).Inc()
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.From == r.self {
		for _, c := range a.Claims {
			r.names.sent(c, a.Round)
		}
		return
	}
	if a.Ask {
		r.due = now
	}
	if a.interest == (interest{}) && len(a.Claims) == 0 && r.remotes[m.From] == nil {
		return
	}
	from := r.remoteLocked(m.From, now)
	if from.gone || a.Round < from.round {
		return
	}
	from.round, from.announced = a.Round, now
	from.watch(a.interest, r)
	for _, c := range a.Claims {
		c.home = m.From
		if settled := r.names.hear(c); settled != nil && len(from.settled) < maxSettled {
			from.settled = append(from.settled, *settled)
		}
	}
	for _, c := range a.Ended {
		c.home = m.From
		r.names.hearEnd(c)
	}
}

// owes tells whether something was not handed on.
func (r *relay) owes() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, to := range r.remotes {
		if to.owes() {
			return true
		}
	}
	return r.names.waiting() > 0
}

// leave returns the last letters: what comes from now on is not taken in.
func (r *relay) leave() (letters []letter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	lost := r.names.waiting()
	for _, to := range r.remotes {
		lost = saturatingAdd(lost, to.way.reports())
		if !to.gone {
			letters = append(letters, r.letter(to.channel, relayMessage{Gone: &to.taken}))
		}
	}
	if lost > 0 {
		r.log.Warn("reports were not told to watchers before the end", "reports", lost)
	}
	return letters
}
