package reports

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/backoff"
)

// stream is one stream of a subscription. Only the goroutine of Serve uses it.
type stream struct {
	reports *Reports
	watch   agent.ReportWatch
	id      agent.ID
	send    func(agent.ReportMessage) error
	acks    <-chan int64
	written chan struct{} // has an element after each write of this replica

	subscription agent.Subscription
	// number and nonce are those of the newest batch. acked is the number of the newest
	// that the watcher has acked. stored is the newest whose ack is in the database.
	number, nonce, acked, stored int64
	// When the next batch may be made, the lease be renewed, and a call be tried
	// again.
	next, renew, retry time.Time
	failures           int
}

// Serve serves a stream until ctx is cancelled, acks is closed, or another stream owns
// the subscription. acks has the numbers that the watcher has processed. send is called
// with one message at a time, and with a batch only after the one before was acked.
// After acks is closed Serve stores the last ack and returns nil. Other errors wrap
// agent.ErrSuperseded, ErrNameFree, ErrTooMany or ErrRejected, are an *agent.AckError,
// or those of ctx and send. While the database cannot be used, Serve waits and tries
// again.
func (r *Reports) Serve(ctx context.Context, w agent.ReportWatch, acks <-chan int64, send func(agent.ReportMessage) error) error {
	s := &stream{reports: r, watch: w, id: uuid.New(), send: send, acks: acks, written: make(chan struct{}, 1)}
	r.mu.Lock()
	r.streams[s.written] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.streams, s.written)
	}()
	err := s.serve(ctx)
	if errors.Is(err, agent.ErrSuperseded) {
		r.metrics.superseded.Inc()
		return err
	}
	s.release(ctx)
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// errEnded is that the watcher has ended the stream.
var errEnded = errors.New("the watcher ended the stream")

func (s *stream) serve(ctx context.Context) error {
	opened, keep, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer keep(0)
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.send(agent.ReportMessage{Position: s.position(s.acked), Since: s.subscription.Since}); err != nil {
		return err
	}
	if err := s.deliver(opened.Unacked); err != nil {
		return err
	}
	keep(0)
	return s.follow(ctx)
}

// room waits for the memory of a batch. The caller calls keep(0) when it has no batch
// any more. Further calls have no effect.
func (s *stream) room(ctx context.Context) (keep func(bytes int), err error) {
	if s.watch.Room == nil {
		return func(int) {}, nil
	}
	return s.watch.Room(ctx)
}

// bytesOf returns what a batch takes in memory, in bytes.
func bytesOf(b *agent.ReportBatch) int {
	if b == nil {
		return 0
	}
	n := sumBytes * len(b.Sums)
	for i := range b.Sums {
		n += len(b.Sums[i].Data)
	}
	return n
}

// position returns the position of the batch with a number. Its nonce is known only of
// the newest one.
func (s *stream) position(number int64) agent.Position {
	p := agent.Position{Incarnation: s.subscription.Incarnation, Number: number}
	if number == s.number {
		p.Nonce = s.nonce
	}
	return p
}

// randomID returns a number above 0 that cannot be guessed and is not drawn again.
func randomID() int64 { return 1 + rand.Int64N(1<<62) }

// open waits until this stream owns the subscription. There may be a batch that is not
// acked. The caller calls keep(0) when that is sent.
func (s *stream) open(ctx context.Context) (opened agent.OpenedSubscription, keep func(int), err error) {
	r, owned := s.reports, false
	for {
		if keep, err = s.room(ctx); errors.Is(err, agent.ErrNoRoom) {
			if err := s.wait(ctx, batchInterval); err != nil {
				return opened, nil, err
			}
			continue
		} else if err != nil {
			return opened, nil, err
		}
		err = r.call(ctx, func(ctx context.Context) (err error) {
			opened, err = r.store.OpenSubscription(ctx, agent.SubscriptionOpening{
				Name: s.watch.Name, Stream: s.id, Position: s.watch.Position, StandBy: s.watch.StandBy,
				Lease: r.opts.Load().Lease, Max: r.opts.Load().MaxSubscriptions, Incarnation: randomID(),
			})
			return err
		})
		keep(bytesOf(opened.Unacked))
		wait := r.opts.Load().Lease / 3
		switch {
		case errors.Is(err, agent.ErrTooMany):
			r.metrics.refused.Inc()
			return opened, nil, err
		case errors.Is(err, agent.ErrRejected):
			return opened, nil, err
		case err != nil:
			wait = s.failed(ctx, err)
		case opened.Owned:
			owned = true
		case owned:
			s.subscription = opened.Subscription
			keep(0)
			return opened, nil, agent.ErrNameFree
		default:
			s.opened(ctx, opened)
			return opened, keep, nil
		}
		keep(0)
		if err := s.wait(ctx, wait); err != nil {
			return opened, nil, err
		}
	}
}

func (s *stream) opened(ctx context.Context, o agent.OpenedSubscription) {
	r := s.reports
	s.subscription, s.failures = o.Subscription, 0
	s.number, s.nonce, s.acked, s.stored = o.Number, o.Nonce, o.Number, o.Number
	if o.Unacked != nil {
		s.acked, s.stored = o.Number-1, o.Number-1
	}
	s.renew = time.Now().Add(r.opts.Load().Lease / 3)
	switch {
	case o.Created:
		r.log.InfoContext(ctx, "a subscription to reports was made", "name", o.Name)
	case o.Restored:
		r.metrics.restored.Inc()
		r.log.WarnContext(ctx, "a watcher has processed a batch that the database does not have: an older database was restored", "name", o.Name)
	}
	signal(r.pollNow)
}

// start waits until all replicas add to the subscription, or for confirmTimeout.
func (s *stream) start(ctx context.Context) error {
	r := s.reports
	within := writerTimeout
	if !r.opts.Load().Shared {
		within = 0
	}
	missing, forced := false, false
	for began := time.Now(); s.subscription.Since.IsZero(); {
		// The last attempt has shown that a replica is missing. After an error it may
		// have been the forced one, whose answer was lost.
		force := missing && time.Since(began) >= confirmTimeout
		if force && !forced {
			// Counted before the outcome is known: if the answer is lost it would not
			// be counted at all.
			forced = true
			r.metrics.unconfirmed.Inc()
			r.log.WarnContext(ctx, "a subscription to reports begins although a replica does not confirm it", "name", s.watch.Name)
		}
		err := r.call(ctx, func(ctx context.Context) (err error) {
			s.subscription.Since, err = r.store.StartSubscription(ctx, s.subscription.ID, r.opts.Load().ID, within, force)
			return err
		})
		wait := batchInterval / 4
		switch {
		case errors.Is(err, agent.ErrSuperseded):
			return err
		case err != nil:
			wait = s.failed(ctx, err)
		case !s.subscription.Since.IsZero():
			return nil
		}
		missing = err == nil
		if err := s.wait(ctx, wait); err != nil {
			return err
		}
	}
	return nil
}

// wait waits for d while nothing was sent. The error is why the stream ends.
func (s *stream) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return nil
		case number, open := <-s.acks:
			if !open {
				return errEnded
			}
			if number != 0 {
				return s.badAck(number)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *stream) badAck(number int64) error {
	return &agent.AckError{Newest: s.number, Got: number}
}

// failed counts a call that failed, and returns how long to wait.
func (s *stream) failed(ctx context.Context, err error) time.Duration {
	if ctx.Err() == nil {
		s.reports.metrics.errors.WithLabelValues(errorDeliver).Inc()
		s.reports.deliveries.Failed(ctx, err, "name", s.watch.Name)
	}
	s.failures++
	return retries.Delay(s.failures)
}

// follow delivers batches until the stream ends.
func (s *stream) follow(ctx context.Context) error {
	for {
		if err := s.step(ctx); err != nil {
			return err
		}
		timer := time.NewTimer(time.Until(s.wakeAt()))
		select {
		case <-timer.C:
		case <-s.written:
		case number, open := <-s.acks:
			switch {
			case !open:
				timer.Stop()
				return s.storeLastAck(ctx)
			case number < 0 || number > s.number:
				timer.Stop()
				return s.badAck(number)
			}
			s.acked = max(s.acked, number) // an older one says nothing
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// wakeAt returns when the next step is due without an ack or a write.
func (s *stream) wakeAt() time.Time {
	at := s.renew
	if s.acked == s.number && s.next.Before(at) {
		at = s.next
	}
	if s.acked > s.stored {
		at = time.Time{}
	}
	if at.Before(s.retry) {
		return s.retry
	}
	return at
}

// step does what is due. The error ends the stream.
func (s *stream) step(ctx context.Context) error {
	r, now := s.reports, time.Now()
	if now.Before(s.retry) {
		return nil
	}
	wanted := s.acked == s.number && !now.Before(s.next)
	needed := s.acked > s.stored || !now.Before(s.renew)
	if !wanted && !needed {
		return nil
	}
	keep := func(int) {}
	if wanted {
		switch room, err := s.room(ctx); {
		case err == nil:
			keep = room
			defer keep(0)
		case !errors.Is(err, agent.ErrNoRoom):
			return err
		default: // the sums wait, the lease is renewed
			if wanted, s.next = false, now.Add(batchInterval); !needed {
				return nil
			}
		}
	}
	d := agent.Delivery{
		Subscription: s.subscription.ID, Incarnation: s.subscription.Incarnation, Stream: s.id,
		Number: s.number, Nonce: s.nonce, Acked: s.acked, Lease: r.opts.Load().Lease,
	}
	if wanted {
		d.Limit, d.Bytes, d.NextNonce = batchSize, batchBytes, randomID()
	}
	var batch *agent.ReportBatch
	err := r.call(ctx, func(ctx context.Context) error {
		if !needed {
			// A read is cheaper than a transaction.
			if has, err := r.store.HasReportSums(ctx, s.subscription.ID); err != nil || !has {
				return err
			}
		}
		needed = true
		var err error
		batch, err = r.store.DeliverReports(ctx, d)
		return err
	})
	switch {
	case errors.Is(err, agent.ErrSuperseded):
		return err
	case err != nil:
		s.retry = now.Add(s.failed(ctx, err))
		return nil
	}
	keep(bytesOf(batch))
	s.failures = 0
	s.reports.deliveries.Works(ctx)
	if needed {
		s.stored, s.renew = max(s.stored, s.acked), now.Add(r.opts.Load().Lease/3)
	}
	if wanted && (batch == nil || !batch.More) {
		s.next = now.Add(batchInterval)
	}
	return s.deliver(batch)
}

// deliver sends a batch, if there is one.
func (s *stream) deliver(batch *agent.ReportBatch) error {
	if batch == nil {
		return nil
	}
	s.number, s.nonce = batch.Number, batch.Nonce
	m := s.reports.metrics
	m.batches.Inc()
	var n int64
	for i := range batch.Sums {
		n = agent.SaturatingAdd(n, batch.Sums[i].Reports)
	}
	m.delivered.Add(float64(n))
	return s.send(agent.ReportMessage{Position: s.position(batch.Number), Since: s.subscription.Since, Sums: batch.Sums})
}

// storeLastAck stores the last ack when the watcher has ended the stream. The error is
// errEnded, or why it is not stored.
func (s *stream) storeLastAck(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for s.acked > s.stored {
		_, err := s.reports.store.DeliverReports(ctx, agent.Delivery{
			Subscription: s.subscription.ID, Incarnation: s.subscription.Incarnation, Stream: s.id,
			Number: s.number, Nonce: s.nonce, Acked: s.acked, Lease: s.reports.opts.Load().Lease,
		})
		if err == nil {
			break
		}
		if errors.Is(err, agent.ErrSuperseded) || ctx.Err() != nil {
			return fmt.Errorf("store the last ack: %w", err)
		}
		backoff.Sleep(ctx, s.failed(ctx, err))
	}
	return errEnded
}

// release ends the ownership, so that a stream that stands by gets the name at once.
func (s *stream) release(ctx context.Context) {
	if s.subscription.ID == 0 {
		return
	}
	err := s.reports.call(context.WithoutCancel(ctx), func(ctx context.Context) error {
		return s.reports.store.ReleaseSubscription(ctx, s.subscription.ID, s.id)
	})
	if err != nil {
		s.reports.log.DebugContext(ctx, "a subscription is not released", "name", s.watch.Name, "error", err)
	}
}
