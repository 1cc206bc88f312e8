package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
)

// The kinds of messages between replicas.
const (
	kindHeartbeat = "heartbeat" // the replica lives
	kindChange    = "change"    // and its row or the lease changed: the others read the database
	kindLeave     = "leave"     // the replica stops
)

// message is what a replica publishes to the others.
type message struct {
	kind string
	from agent.ID
	// lease is the lease's number of heartbeats if the replica is its holder; 0: it
	// is not.
	lease int64
	// sent is the time in nanoseconds since 1970 by the sender's clock. Only the
	// sender reads it.
	sent int64
	// phase of the replica. Versions that do not say it end before it.
	phase agent.ReplicaPhase
}

func (m message) String() string {
	return fmt.Sprintf("%s %s %d %d %d", m.kind, m.from, m.lease, m.sent, m.phase)
}

func parseMessage(payload string) (message, error) {
	var m message
	var from string
	n, err := fmt.Sscanf(payload, "%s %s %d %d %d", &m.kind, &from, &m.lease, &m.sent, &m.phase)
	if err != nil && (n < 4 || !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF)) {
		return m, fmt.Errorf("message of a replica: %w", err)
	}
	if m.from, err = uuid.Parse(from); err != nil {
		return m, fmt.Errorf("message of a replica: %w", err)
	}
	return m, nil
}

// publishHeartbeats publishes a heartbeat at once and then at each interval, until
// ctx ends.
func (r *Replicas) publishHeartbeats(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		r.publish(ctx, kindHeartbeat)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-r.announce:
		}
	}
}

// publish sends a message of this replica, once its row is in the database. After an
// error the others read the same in the database.
func (r *Replicas) publish(ctx context.Context, kind string) {
	r.mu.RLock()
	known := !r.until.IsZero()
	m := message{kind: kind, from: r.self, sent: time.Now().UnixNano(), phase: r.phase}
	if r.leads && r.memberLocked() {
		m.lease = r.leaseHeartbeats
	}
	r.mu.RUnlock()
	if !known && kind != kindLeave {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if err := r.pubsub.Publish(ctx, channel, []byte(m.String())); err != nil {
		r.log.DebugContext(ctx, "a heartbeat is not published", "error", err)
	}
}

// handleMessage handles a message of any replica, this one included: its own message,
// once it is back, has reached the others. The pubsub calls it, one call at a time.
func (r *Replicas) handleMessage(payload []byte) {
	m, err := parseMessage(string(payload))
	if err != nil { // also nil: something was missed
		r.wakeRun()
		return
	}
	now := time.Now()
	defer signal(r.changed)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phases[m.from] = max(r.phases[m.from], m.phase)
	if m.from == r.self {
		// After this replica was considered gone another one may have the lease.
		r.leads = r.leads && r.memberLocked()
		// The clock may have been set: a message from the future is ignored.
		if took := now.UnixNano() - m.sent; took >= 0 {
			r.echoed = r.validUntil(now.Add(-time.Duration(took)))
		}
		return
	}
	switch m.kind {
	case kindLeave:
		delete(r.messages, m.from)
		delete(r.live, m.from)
		delete(r.phases, m.from)
		r.wakeRun()
		return
	case kindChange:
		r.wakeRun()
	}
	r.noteMessageLocked(m.from, now)
	// While the database is reached, it alone decides who has the lease.
	if m.lease > r.leaseHeartbeats && !now.Before(r.until) {
		r.leads = false
	}
}

// noteMessageLocked records that another replica lives. It removes those without a
// message for a lease's duration.
func (r *Replicas) noteMessageLocked(id agent.ID, now time.Time) {
	for other, at := range r.messages {
		if now.Sub(at) >= r.opts.LeaseDuration {
			delete(r.messages, other)
			if _, listed := r.listed[other]; !listed {
				delete(r.phases, other)
			}
		}
	}
	r.messages[id] = now
}

// stranger is a replica that sends messages but is not in the database.
type stranger struct {
	message    time.Time // when the newest came, as of the last heartbeat
	heartbeats int       // of this replica in a row that did not find it in the database
}

// strangerHeartbeats is the number of this replica's heartbeats after which a stranger
// is logged and counted. It is above 1, as messages of a replica that stops arrive for
// a moment after its row is removed.
const strangerHeartbeats = 5

// lookForStrangers logs replicas that keep sending messages but are not in the
// database. A replica writes its row before its first message. So it is cut off from
// the database, and its row was removed. Or it has another database, of which this one
// is a physical copy, deployment id included.
func (r *Replicas) lookForStrangers(ctx context.Context, began time.Time, replicas []agent.Replica) {
	r.mu.Lock()
	defer r.mu.Unlock()
	listed := make(map[agent.ID]struct{}, len(replicas))
	for _, replica := range replicas {
		listed[replica.ID] = struct{}{}
	}
	before := r.strangers
	r.strangers = make(map[agent.ID]stranger)
	for id, at := range r.messages {
		if _, known := listed[id]; known || began.Sub(at) >= r.opts.LeaseDuration {
			continue
		}
		s := before[id]
		if at.After(s.message) && !at.After(began) {
			s = stranger{message: at, heartbeats: s.heartbeats + 1}
			if s.heartbeats == strangerHeartbeats {
				r.log.WarnContext(ctx, "a replica sends messages but is not in the database: it is cut off from it,"+
					" or it is of another deployment whose database this one was copied from: give one of them --deployment-id", "replica", id)
			}
		}
		r.strangers[id] = s
	}
}

// countStrangers returns the number of strangers that were logged.
func (r *Replicas) countStrangers() (n int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, s := range r.strangers {
		if s.heartbeats >= strangerHeartbeats {
			n++
		}
	}
	return n
}
