package reports

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// maxFree bounds the free list: the agents of a batch that is being written, and of the
// next one.
const maxFree = 2 * batchSize

// Each has at most maxFreeBytes of data, and maxFreeReports reports.
const (
	maxFreeBytes   = 1024
	maxFreeReports = 4
)

// writeBatches writes batches until ctx is cancelled.
func (r *Reports) writeBatches(ctx context.Context) {
	for ctx.Err() == nil {
		timer := time.NewTimer(batchInterval)
		select {
		case <-r.due:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		// If the database keeps up, at most two batches wait now.
		for failures := 0; ctx.Err() == nil && r.freeze(); {
			// An attempt is not cancelled when the service stops, as its outcome is
			// needed.
			if r.writeFrozen(context.WithoutCancel(ctx)) {
				failures = 0
				continue
			}
			failures++
			retries.Wait(ctx, failures)
		}
	}
}

// writeRest writes what is left, then records that this replica adds nothing any more.
func (r *Reports) writeRest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	for failures := 0; r.freeze(); {
		if r.writeFrozen(ctx) {
			failures = 0
			continue
		}
		failures++
		if !retries.Wait(ctx, failures) {
			r.dropAll(ctx)
			return
		}
	}
	if err := r.store.RemoveReportWriter(ctx, r.opts.Load().ID); err != nil {
		r.log.DebugContext(ctx, "this writer of reports is not removed", "error", err)
	}
}

// dropAll drops and counts what could not be written before the end. The trackers are
// not notified: agents send these reports to another replica, or to this one when it is
// back.
func (r *Reports) dropAll(ctx context.Context) {
	var n int64
	for r.freeze() {
		n = agent.SaturatingAdd(n, r.freeFrozen())
	}
	r.metrics.dropped.WithLabelValues(droppedShutdown).Add(float64(n))
	r.log.WarnContext(ctx, "reports for watchers could not be written before the service stopped", "reports", n)
}

// freeze makes a batch of the oldest reports, unless there is one. It returns false if
// there is nothing to write.
func (r *Reports) freeze() bool {
	if r.frozen != nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.halves); n > 0 {
		r.frozen, r.halves = r.halves[n-1], r.halves[:n-1]
		r.frozen.write.Sequence = r.sequence + 1
		return true
	}
	for len(r.groups) > 1 && len(r.groups[0].order) == 0 {
		r.groups = r.groups[1:]
	}
	if len(r.groups) == 0 || len(r.groups[0].order) == 0 {
		return false
	}
	g := r.groups[0]
	n, reports, size := 0, 0, 0
	for _, u := range g.order {
		if n > 0 && (reports+len(u.reports) > batchSize || size+u.bytes() > batchBytes) {
			break
		}
		n, reports, size = n+1, reports+len(u.reports), size+u.bytes()
	}
	f := &frozenBatch{
		agents: g.order[:n:n],
		write:  agent.ReportWrite{Writer: r.opts.Load().ID, Sequence: r.sequence + 1, Sums: make([]agent.ReportSum, 0, reports)},
	}
	g.order = g.order[n:]
	r.pending, r.pendingBytes = r.pending-n, r.pendingBytes-size
	for _, u := range f.agents {
		f.write.Sums = u.appendSums(f.write.Sums)
		delete(g.agents, u.agent)
	}
	for _, id := range g.to {
		f.write.To = append(f.write.To, agent.ReportTarget{Subscription: id, Full: r.full[id]})
	}
	r.frozen = f
	return true
}

// freeFrozen frees the batch, and returns its number of reports.
func (r *Reports) freeFrozen() (reports int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.frozen
	r.frozen = nil
	for i := range f.write.Sums {
		reports = agent.SaturatingAdd(reports, f.write.Sums[i].Reports)
	}
	for _, u := range f.agents {
		r.freeLocked(u)
	}
	return reports
}

// resolveFrozen frees a batch that is written, or never will be, and notifies the
// trackers. It returns the number of reports.
func (r *Reports) resolveFrozen() (reports int64) {
	sums := r.frozen.write.Sums
	reports = r.freeFrozen()
	for i := range sums {
		if t := sums[i].Tracker; t != nil {
			t.ReportWritten(sums[i].Order.Sequence)
		}
	}
	return reports
}

// halve replaces the batch, which the database refused, by its first half. The sequence
// stays the same, as no attempt was committed.
func (r *Reports) halve() {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.frozen
	n := len(f.write.Sums) / 2
	first, second := &frozenBatch{write: f.write}, &frozenBatch{write: f.write, agents: f.agents}
	first.write.Sums, second.write.Sums = f.write.Sums[:n], f.write.Sums[n:]
	r.frozen, r.halves = first, append(r.halves, second)
}

// writeFrozen makes one attempt to write the batch. It returns false if the outcome is
// not known. Then the same batch is to be written again.
func (r *Reports) writeFrozen(ctx context.Context) (known bool) {
	var written agent.ReportWritten
	err := r.call(ctx, func(ctx context.Context) (err error) {
		written, err = r.store.AddReports(ctx, r.frozen.write)
		if errors.Is(err, agent.ErrUnknownWriter) {
			// The database is older than this process.
			if err = r.store.RecordReportWriterHeartbeat(ctx, r.opts.Load().ID); err == nil {
				written, err = r.store.AddReports(ctx, r.frozen.write)
			}
		}
		return err
	})
	switch {
	case errors.Is(err, agent.ErrRejected) && len(r.frozen.write.Sums) > 1:
		r.halve()
		return true
	case errors.Is(err, agent.ErrRejected):
		// Its sequence is the next one's: nothing was written.
		n := r.resolveFrozen()
		r.metrics.dropped.WithLabelValues(droppedRejected).Add(float64(n))
		r.refused.Log(ctx, r.log, slog.LevelError, "reports", int(n), "the database refused reports of an agent for watchers", "error", err)
		return true
	case err != nil:
		r.metrics.errors.WithLabelValues(errorWrite).Inc()
		r.writing.Failed(ctx, err)
		return false
	}
	r.writing.Works(ctx)
	r.sequence++
	r.metrics.writes.Inc()
	to := len(r.frozen.write.To)
	r.metrics.written.Add(max(0, float64(r.resolveFrozen())*float64(to)-float64(written.Refused)-float64(written.Removed)-float64(written.Found)))
	r.metrics.found.Add(float64(written.Found))
	r.metrics.dropped.WithLabelValues(droppedFull).Add(float64(written.Refused))
	r.metrics.dropped.WithLabelValues(droppedRemoved).Add(float64(written.Removed))
	if written.Lost > 0 {
		r.metrics.lost.Add(float64(written.Lost))
		r.log.ErrorContext(ctx, "the database has lost reports for watchers: it was restored from a backup, or is a standby that was behind", "writes", written.Lost)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for stream := range r.streams {
		signal(stream)
	}
	return true
}
