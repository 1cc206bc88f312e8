package batcher

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Time before a failed flush is tried again: firstRetry, doubled by each
// further failure up to maxRetry, of which the second half is random.
const (
	firstRetry = 500 * time.Millisecond
	maxRetry   = 15 * time.Second
)

// backoff returns the time to wait after failures > 0 failed flushes in a row;
// random is within [0, 1).
func backoff(failures int, random float64) time.Duration {
	wait := maxRetry
	if doublings := failures - 1; doublings < 10 {
		wait = min(firstRetry<<doublings, maxRetry)
	}
	return wait/2 + time.Duration(random*float64(wait/2))
}

// Run flushes until ctx is cancelled: every FlushInterval, and when a batch is
// full. Then it flushes what is left, for at most ShutdownTimeout, and returns
// nil. To be called once.
func (b *Batcher) Run(ctx context.Context) error {
	// A flush under way when ctx is cancelled goes on.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var expiry sync.WaitGroup
	expiry.Go(func() { stopLater(ctx, work, stop, b.opts.ShutdownTimeout) })
	defer expiry.Wait()
	defer stop()

	timer := time.NewTimer(b.opts.FlushInterval)
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
			wait := backoff(failures, rand.Float64())
			b.log.WarnContext(ctx, "flush of metadata failed", "attempt", failures, "retry_in", wait, "error", err)
			timer.Reset(wait)
		case scheduled:
			if failures > 0 {
				b.log.InfoContext(ctx, "flush of metadata works again", "failed_attempts", failures)
			}
			failures = 0
			timer.Reset(b.opts.FlushInterval)
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
	for b.waiting() >= b.opts.BatchSize && ctx.Err() == nil {
		if _, err := b.flush(work, flushCapacity, b.opts.BatchSize); err != nil {
			return err
		}
	}
	return nil
}

// flushWaiting flushes as many entries as wait when it begins: those, as the
// oldest go first.
func (b *Batcher) flushWaiting(ctx, work context.Context) error {
	for left := b.waiting(); left > 0 && ctx.Err() == nil; {
		n, err := b.flush(work, flushScheduled, min(left, b.opts.BatchSize))
		if err != nil {
			return err
		}
		if n == 0 { // removed meanwhile
			return nil
		}
		left -= n
	}
	return nil
}

// drain flushes until nothing waits or ctx ends. Nothing that is left then was
// acknowledged.
func (b *Batcher) drain(ctx context.Context) {
	failures := 0
	for {
		n, err := b.flush(ctx, flushShutdown, b.opts.BatchSize)
		if err == nil {
			if n == 0 {
				return
			}
			failures = 0
			continue
		}
		failures++
		timer := time.NewTimer(backoff(failures, rand.Float64()))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			b.log.ErrorContext(ctx, "metadata was not written before the end: agents send it again",
				"entries", b.waiting(), "error", err)
			return
		}
	}
}

func (b *Batcher) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pending.waiting
}

// flush writes up to n of the oldest waiting entries, n at most BatchSize, and
// returns how many. After an error those that were not written wait again.
func (b *Batcher) flush(ctx context.Context, reason string, n int) (rows int, err error) {
	defer b.batch.reset()
	b.mu.Lock()
	b.pending.take(&b.batch, n)
	b.mu.Unlock()
	rows = len(b.batch.rows)
	if rows == 0 {
		return 0, nil
	}
	b.metrics.batchSize.Observe(float64(rows))
	for _, n := range b.batch.agents {
		b.metrics.batchUtilization.Observe(float64(n))
	}

	began := time.Now()
	refused, err := b.write(ctx, 0, rows)

	b.mu.Lock()
	b.pending.land(&b.batch, &b.ends)
	b.noteLocked(err, began)
	b.mu.Unlock()
	// Trackers do not wait for the news: what is written is durable.
	b.ends.tell()
	b.publish(ctx)

	b.metrics.flushed.Add(float64(b.batch.count(written)))
	if refused != nil {
		b.log.WarnContext(ctx, "database refused metadata", "rows", b.batch.count(rejected), "first_error", refused)
	}
	if err != nil {
		b.metrics.flushErrors.Inc()
		return rows, err
	}
	b.metrics.batches.WithLabelValues(reason).Inc()
	b.metrics.flushDuration.WithLabelValues(reason).Observe(time.Since(began).Seconds())
	return rows, nil
}

// noteLocked keeps what Healthy tells.
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

// publish tells of the agents that have a row that changed something.
func (b *Batcher) publish(ctx context.Context) {
	if len(b.batch.changed) == 0 {
		return
	}
	slices.SortFunc(b.batch.changed, func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
	agents := slices.Compact(b.batch.changed)
	ctx, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	if err := b.publisher.PublishMetadata(ctx, agents); err != nil {
		b.metrics.publishErrors.Inc()
		b.log.WarnContext(ctx, "publish of metadata news failed: watchers read it later", "agents", len(agents), "error", err)
	}
}

// count returns how many rows have a fate.
func (b *batch) count(f fate) int {
	n := 0
	for _, other := range b.fates {
		if other == f {
			n++
		}
	}
	return n
}
