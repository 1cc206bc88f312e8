package replica

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
)

// The kinds of messages between replicas.
const (
	kindBeat  = "beat"  // the replica lives
	kindNews  = "news"  // and something about it changed: look into the database
	kindLeave = "leave" // it does not any more
)

// message is what one replica tells the others.
type message struct {
	kind string
	from agent.ID
	// lease has the beats of the lease if the replica holds it; 0: it does not.
	lease int64
	// sent is when, in nanoseconds since 1970 by the sender's clock, which only
	// the sender reads.
	sent int64
}

func (m message) String() string {
	return fmt.Sprintf("%s %s %d %d", m.kind, m.from, m.lease, m.sent)
}

func parseMessage(payload string) (message, error) {
	var m message
	var from string
	if _, err := fmt.Sscanf(payload, "%s %s %d %d", &m.kind, &from, &m.lease, &m.sent); err != nil {
		return m, fmt.Errorf("message of a replica: %w", err)
	}
	var err error
	if m.from, err = uuid.Parse(from); err != nil {
		return m, fmt.Errorf("message of a replica: %w", err)
	}
	return m, nil
}

// tellEvery beats over the pubsub until ctx ends.
func (r *Replicas) tellEvery(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		r.tell(ctx, kindBeat)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// tell tells the others of this replica, once it is in the database. What it
// fails to tell they see there.
func (r *Replicas) tell(ctx context.Context, kind string) {
	r.mu.RLock()
	known := !r.until.IsZero()
	m := message{kind: kind, from: r.self, sent: time.Now().UnixNano()}
	if r.leads && r.memberLocked() {
		m.lease = r.leaseBeats
	}
	r.mu.RUnlock()
	if !known && kind != kindLeave {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, newsTimeout)
	defer cancel()
	if err := r.news.Publish(ctx, channel, []byte(m.String())); err != nil {
		r.log.DebugContext(ctx, "a beat is not published", "error", err)
	}
}

// hear takes in what replicas tell, this one too: what comes back was heard by
// the others. It is called by the pubsub, one call at a time.
func (r *Replicas) hear(payload []byte) {
	m, err := parseMessage(string(payload))
	if err != nil { // also nil: something was missed
		r.nudge()
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.from == r.self {
		// Who was taken for gone may have been replaced.
		r.leads = r.leads && r.memberLocked()
		// The clock may have been set: an echo from the future says nothing.
		if took := now.UnixNano() - m.sent; took >= 0 {
			r.echoed = r.validFrom(now.Add(-time.Duration(took)))
		}
		return
	}
	switch m.kind {
	case kindLeave:
		delete(r.heard, m.from)
		delete(r.live, m.from)
		r.nudge()
		return
	case kindNews:
		r.nudge()
	}
	r.heardLocked(m.from, now)
	// While the database is reached, it alone says who holds the lease.
	if m.lease > r.leaseBeats && !now.Before(r.until) {
		r.leads = false
	}
}

// heardLocked notes that another replica lives, and forgets those that were not
// heard for a lease.
func (r *Replicas) heardLocked(id agent.ID, now time.Time) {
	for other, at := range r.heard {
		if now.Sub(at) >= r.opts.LeaseDuration {
			delete(r.heard, other)
		}
	}
	r.heard[id] = now
}

// stranger is a replica that is heard but is not in the database.
type stranger struct {
	heard time.Time // when, as of the last beat
	beats int       // beats of ours in a row that it was not in
}

// strangeBeats is after how many such beats a replica is told as a stranger. One that
// leaves is heard for a moment after its row is gone.
const strangeBeats = 5

// lookForStrangers tells of replicas that are heard time and again but are not in the
// database: a replica writes its row before it is heard. Either it is cut off from the
// database for so long that its row was removed, or it has another database, and this
// one is a physical copy of that, with its deployment's id.
func (r *Replicas) lookForStrangers(ctx context.Context, began time.Time, replicas []agent.Replica) {
	r.mu.Lock()
	defer r.mu.Unlock()
	listed := make(map[agent.ID]struct{}, len(replicas))
	for _, replica := range replicas {
		listed[replica.ID] = struct{}{}
	}
	before := r.strangers
	r.strangers = make(map[agent.ID]stranger)
	for id, at := range r.heard {
		if _, known := listed[id]; known || began.Sub(at) >= r.opts.LeaseDuration {
			continue
		}
		s := before[id]
		if at.After(s.heard) && !at.After(began) {
			s = stranger{heard: at, beats: s.beats + 1}
			if s.beats == strangeBeats {
				r.log.WarnContext(ctx, "a replica is heard that is not in the database: it is cut off from it,"+
					" or it is of another deployment whose database this one was copied from: give one of them --deployment-id", "replica", id)
			}
		}
		r.strangers[id] = s
	}
}

// countStrangers returns how many replicas are told as strangers.
func (r *Replicas) countStrangers() (n int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, s := range r.strangers {
		if s.beats >= strangeBeats {
			n++
		}
	}
	return n
}
