package batcher

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Bounds of the time before a failed flush is tried again.
const (
	minRetry = 500 * time.Millisecond
	maxRetry = 15 * time.Second
)

// A batch grows while more than batchesReady of its size are ready, up to batchGrowth times
// its size and maxBatch entries.
const (
	batchesReady = 4
	batchGrowth  = 8
	maxBatch     = 10_000
	// growthTime is how long a flush may take after which a larger one follows: far below
	// the timeout of a flush, also if that takes eight times as long.
	growthTime = 250 * time.Millisecond
)

// Run flushes until ctx is cancelled: every FlushInterval, and when a batch is
// full. Then it flushes what is left, for at most ShutdownTimeout, and returns
// nil. To be called once.
func (b *Batcher) Run(ctx context.Context) error {
	// A flush under way when ctx is cancelled goes on.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var expiry sync.WaitGroup
	expiry.Go(func() { stopLater(ctx, work, stop, b.opts.Load().ShutdownTimeout) })
	defer expiry.Wait()
	defer stop()

	timer := time.NewTimer(b.opts.Load().FlushInterval)
	defer timer.Stop()
	failures := 0
	for {
		full := b.wake
		if failures > 0 {
			full = nil // the database is given time
		}
		var err error
		scheduled := false
		select {
		case <-ctx.Done():
			b.drain(work)
			return nil
		case <-full:
			err = b.flushFull(ctx, work)
		case <-timer.C:
			scheduled = true
			err = b.flushWaiting(ctx, work)
		}
		switch {
		case err != nil:
			failures++
			wait := b.retries.Delay(failures)
			b.outage.Failed(ctx, err, "retry_in", wait)
			timer.Reset(wait)
		case scheduled:
			b.outage.Works(ctx)
			failures = 0
			timer.Reset(b.opts.Load().FlushInterval)
		}
	}
}

// stopLater calls stop a while after ctx has ended, unless work ends before.
func stopLater(ctx, work context.Context, stop func(), after time.Duration) {
	select {
	case <-ctx.Done():
	case <-work.Done():
		return
	}
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
		stop()
	case <-work.Done():
	}
}

// flushFull flushes as long as a batch is full.
func (b *Batcher) flushFull(ctx, work context.Context) error {
	for b.ready() >= b.opts.Load().BatchSize && ctx.Err() == nil {
		if _, err := b.flushReady(work, flushCapacity, b.batchSize()); err != nil {
			return err
		}
	}
	return nil
}

// flushWaiting flushes as many entries as wait when it begins: those, as the
// oldest go first. Then it flushes some of those in quarantine.
func (b *Batcher) flushWaiting(ctx, work context.Context) error {
	for left := b.ready(); left > 0 && ctx.Err() == nil; {
		n, err := b.flushReady(work, flushScheduled, min(left, b.batchSize()))
		if err != nil {
			return err
		}
		if n == 0 { // removed meanwhile
			break
		}
		left -= n
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := b.flushQuarantine(work, flushScheduled, quarantineCalls); err != nil {
		return err
	}
	b.confirm((*stored).confirmKnown)
	return nil
}

// confirm resolves acks of unchanged values that wait.
func (b *Batcher) confirm(confirm func(_ *stored, now time.Time, _ *resolutions)) {
	b.mu.Lock()
	confirm(&b.pending.stored, time.Now(), &b.resolved)
	b.mu.Unlock()
	b.resolved.notifyTrackers()
}

// drain flushes until nothing waits or ctx ends. Nothing that is left then was
// acknowledged.
func (b *Batcher) drain(ctx context.Context) {
	failures := 0
	for {
		n, err := b.flushReady(ctx, flushShutdown, b.batchSize())
		if n == 0 && err == nil {
			err = b.flushQuarantine(ctx, flushShutdown, math.MaxInt)
		}
		if err == nil {
			if b.waiting() == 0 {
				b.confirm((*stored).confirm) // nobody has a session here any more
				return
			}
			failures = 0
			continue
		}
		failures++
		if !b.retries.Wait(ctx, failures) {
			b.log.ErrorContext(ctx, "metadata was not written before the end: agents send it again",
				"entries", b.waiting(), "error", err)
			return
		}
	}
}

// waiting returns how many entries wait, ready how many of them are not in
// quarantine.
func (b *Batcher) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pending.waiting
}

func (b *Batcher) ready() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pending.queue.n
}

// batchSize returns how many entries the next flush writes: BatchSize, and more while many
// are ready, as a large batch takes less of the database for each row. Of a database that is
// slow or fails it is not asked more at once.
func (b *Batcher) batchSize() int {
	n := b.opts.Load().BatchSize
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failing.attempts > 0 || b.lastFlush > growthTime {
		return n
	}
	return min(max(n, b.pending.queue.n/batchesReady), n*batchGrowth, maxBatch)
}

// flushReady writes up to n of the oldest entries that are ready, and returns how many it
// tried.
func (b *Batcher) flushReady(ctx context.Context, reason string, n int) (rows int, err error) {
	done, err := b.flush(ctx, reason, &b.pending.queue, n, b.writeAgents)
	if done.rejected > 0 {
		b.logRefused(ctx, done.rejected, done.refused)
	}
	return done.rows, err
}

// logRefused logs that the database refused rows, and the first refusal.
func (b *Batcher) logRefused(ctx context.Context, rows int, first error) {
	b.refused.Log(ctx, b.log, slog.LevelWarn, "rows", rows, "database refused metadata", "first_error", first)
}

// flushed is what a flush did: the rows that it took, those that were rejected,
// and the first refusal of the database; nil: none.
type flushed struct {
	rows, rejected int
	refused        error
}

// flush writes up to n of the oldest entries of q by write.
// After an error those that were not written wait again, and so do those of agents
// that go into quarantine.
func (b *Batcher) flush(
	ctx context.Context, reason string, q *queue, n int,
	write func(ctx context.Context, from, to int) (refused error, err error),
) (done flushed, err error) {
	defer b.batch.reset()
	b.mu.Lock()
	b.pending.fillBatch(&b.batch, q, n)
	done.rows = len(b.batch.rows)
	if done.rows == 0 {
		b.mu.Unlock()
		return done, nil
	}
	began := time.Now()
	b.flushing = began
	b.mu.Unlock()
	defer b.endFlush()
	b.metrics.batchSize.Observe(float64(done.rows))
	for _, n := range b.batch.agents {
		b.metrics.batchUtilization.Observe(float64(n))
	}

	done.refused, err = write(ctx, 0, done.rows)
	done.rejected = b.batch.count(rejected)

	b.mu.Lock()
	b.pending.finishBatch(&b.batch, time.Now(), &b.resolved)
	if err != nil {
		b.pending.stored.forgetAll() // perhaps it is another database now
	}
	b.noteLocked(err, began)
	b.mu.Unlock()
	// Trackers do not wait for the notification: what is written is durable.
	b.resolved.notifyTrackers()
	for _, l := range b.batch.lost {
		if l.tracker != nil {
			l.tracker.Supersede(l.epoch)
		}
	}
	b.publish(ctx)

	b.metrics.flushed.Add(float64(b.batch.count(written)))
	if err != nil {
		b.metrics.flushErrors.Inc()
		return done, err
	}
	b.metrics.batches.WithLabelValues(reason).Inc()
	b.metrics.flushDuration.WithLabelValues(reason).Observe(time.Since(began).Seconds())
	return done, nil
}

// endFlush keeps the time of the flush under way, and adds it to that of all.
func (b *Batcher) endFlush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastFlush = time.Since(b.flushing)
	b.flushed += b.lastFlush
	b.flushing = time.Time{}
}

// noteLocked keeps what Healthy returns.
func (b *Batcher) noteLocked(err error, now time.Time) {
	if err == nil {
		b.failing = failing{}
		return
	}
	if b.failing.attempts == 0 {
		b.failing.since = now
	}
	b.failing.attempts++
	b.failing.err = err
}

// publish notifies watchers of the agents that have a row that changed something.
func (b *Batcher) publish(ctx context.Context) {
	if len(b.batch.changed) == 0 {
		return
	}
	slices.SortFunc(b.batch.changed, func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
	agents := slices.Compact(b.batch.changed)
	ctx, cancel := context.WithTimeout(ctx, b.opts.Load().PublishTimeout)
	defer cancel()
	if err := b.publisher.PublishMetadata(ctx, agents); err != nil {
		b.metrics.publishErrors.Inc()
		b.publishing.Failed(ctx, err, "agents", len(agents))
		return
	}
	b.publishing.Works(ctx)
}
