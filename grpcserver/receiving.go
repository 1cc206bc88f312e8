package grpcserver

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
)

// largeMessage is the size above which a message needs room before its content is
// read. gRPC keeps up to streamWindow of what a peer sends on a stream, whether it
// is read or not. So smaller messages need not wait.
const largeMessage = 64 << 10

// receiving bounds the large messages of a role that are being received. A message
// has room from its header until it is decoded, or its stream ends. Messages
// without room wait in a queue; one of an agent that has another one is overtaken.
type receiving struct {
	mu sync.Mutex
	// Guarded by mu.
	limit int
	used  int
	of    map[agent.ID]struct{} // agents with a message that has room
	queue []*receipt
}

// receipt is one large message.
type receipt struct {
	in   *receiving
	size int
	of   agent.ID // zero: coderd, which may have several
	// ready is closed when it has room. Guarded by receiving.mu, as is done.
	ready chan struct{}
	done  bool
}

func newReceiving(limit int) *receiving {
	return &receiving{limit: limit, of: make(map[agent.ID]struct{})}
}

// newReceivingOf returns what each role may receive. If there is a token that may only
// push, pushes have half of coderd's room, so that its holders leave the other half.
func newReceivingOf(o *Options) map[Role]*receiving {
	r := make(map[Role]*receiving)
	for role, limit := range receivingLimits(o, len(o.Tokens.Push) > 0) {
		r[role] = newReceiving(limit)
	}
	return r
}

func receivingLimits(o *Options, forPushers bool) map[Role]int {
	half := o.MaxReceivingBytes / 2
	limits := map[Role]int{RoleAgent: half, RoleCoderd: half}
	if forPushers {
		share := max(half/2, o.MaxMessageBytes)
		limits[RoleCoderd], limits[rolePusher] = share, share
	}
	return limits
}

// setLimit changes the limit. What has room above a lowered one keeps it.
func (r *receiving) setLimit(limit int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limit = limit
	r.admitLocked()
}

// most returns the limit.
func (r *receiving) most() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.limit
}

// enqueue puts a message into the queue. The caller calls release.
func (r *receiving) enqueue(size int, of agent.ID) *receipt {
	m := &receipt{in: r, size: size, of: of, ready: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, m)
	r.admitLocked()
	return m
}

// admitLocked gives room to the first in the queue. The first one that does not fit
// keeps the others waiting, so that large ones are not starved. One that is above a limit
// which was lowered since its stream began has room alone.
func (r *receiving) admitLocked() {
	full := false
	r.queue = slices.DeleteFunc(r.queue, func(m *receipt) bool {
		if _, another := r.of[m.of]; full || another {
			return false
		}
		if full = r.used > 0 && r.used+m.size > r.limit; full {
			return false
		}
		r.used += m.size
		if m.of != (agent.ID{}) {
			r.of[m.of] = struct{}{}
		}
		close(m.ready)
		return true
	})
}

// release gives the room back, or the place in the queue.
func (m *receipt) release() {
	r := m.in
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.done {
		return
	}
	m.done = true
	if i := slices.Index(r.queue, m); i >= 0 {
		r.queue = slices.Delete(r.queue, i, i+1)
	} else {
		r.used -= m.size
		delete(r.of, m.of)
	}
	r.admitLocked()
}

// inUse returns how many bytes have room.
func (r *receiving) inUse() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used
}

// reserve waits for room for a large message, and bounds the time to its end. The
// caller calls done when it is decoded. An error is a status.
func (s *sizedStream) reserve(size int, m any) (done func(), err error) {
	of := agent.ID{}
	if message, ok := m.(AgentMessage); ok {
		of = message.Sender()
	}
	within := s.server.opts.Load().MessageTimeout
	began := time.Now()
	receipt := s.receiving.enqueue(size, of)
	if err := s.awaitRoom(receipt, within/2); err != nil {
		receipt.release()
		return nil, err
	}
	timer := time.AfterFunc(within-time.Since(began), func() {
		s.server.metrics.limited.WithLabelValues(limitedSlowMessage).Inc()
		_ = s.reader.WriteStatus(status.Newf(codes.DeadlineExceeded, "message: want all of its %d bytes within %v (%s)", size, within, flagMessageTimeout))
	})
	return func() {
		timer.Stop()
		receipt.release()
	}, nil
}

func (s *sizedStream) awaitRoom(m *receipt, within time.Duration) error {
	select {
	case <-m.ready:
		return nil
	default:
	}
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	select {
	case <-m.ready:
		return nil
	case <-timeout.C:
		s.server.metrics.limited.WithLabelValues(limitedReceiving).Inc()
		return Exhausted(within, fmt.Sprintf("message: want at most %d bytes of large messages received at once, a share of %s, waited %v for %d bytes; try again later",
			m.in.most(), flagReceivingBytes, within, m.size))
	case <-s.Context().Done():
		return context.Cause(s.Context())
	}
}
