package reports

import (
	"context"
	"errors"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// maxFree sums are kept to be used again: those of a batch that is written and of one
// that gathers.
const maxFree = 2 * batchSize

// maxFreeBytes of data, and maxFreeReports, are kept with such a sum.
const (
	maxFreeBytes   = 1024
	maxFreeReports = 4
)

// write writes batches until ctx is cancelled.
func (r *Reports) write(ctx context.Context) {
	for ctx.Err() == nil {
		timer := time.NewTimer(batchInterval)
		select {
		case <-r.due:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		// What is gathered now is at most two batches if the database keeps up.
		for failures := 0; ctx.Err() == nil && r.freeze(); {
			// An attempt goes on when the service stops: its outcome is wanted.
			if r.writeFrozen(context.WithoutCancel(ctx)) {
				failures = 0
				continue
			}
			failures++
			retries.Wait(ctx, failures)
		}
	}
}

// stop writes what is left, and says that this replica adds nothing any more.
func (r *Reports) stop(ctx context.Context) {
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
	if err := r.store.RemoveReportWriter(ctx, r.opts.ID); err != nil {
		r.log.DebugContext(ctx, "this writer of reports is not removed", "error", err)
	}
}

// dropAll counts what cannot be written before the end. The trackers are not notified:
// agents send it to another replica, or to this one when it is back.
func (r *Reports) dropAll(ctx context.Context) {
	var n int64
	for r.freeze() {
		n = agent.SaturatingAdd(n, r.thaw())
	}
	r.metrics.dropped.WithLabelValues(droppedShutdown).Add(float64(n))
	r.log.WarnContext(ctx, "reports for watchers could not be written before the end", "reports", n)
}

// freeze makes the oldest reports a batch, unless there is one. It returns false if there
// is nothing to write.
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
		write:  agent.ReportWrite{Writer: r.opts.ID, Sequence: r.sequence + 1, Sums: make([]agent.ReportSum, 0, reports)},
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

// thaw lets go of the batch, and returns its number of reports.
func (r *Reports) thaw() (reports int64) {
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

// finish is thaw of a batch that need not be kept: it is written, or never will be. It
// notifies the trackers.
func (r *Reports) finish() (reports int64) {
	sums := r.frozen.write.Sums
	reports = r.thaw()
	for i := range sums {
		if t := sums[i].Tracker; t != nil {
			t.ReportWritten(sums[i].Order.Sequence)
		}
	}
	return reports
}

// halve has half of the batch written first, under the same sequence: the database
// refused the whole, whenever an attempt was made.
func (r *Reports) halve() {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.frozen
	n := len(f.write.Sums) / 2
	first, second := &frozenBatch{write: f.write}, &frozenBatch{write: f.write, agents: f.agents}
	first.write.Sums, second.write.Sums = f.write.Sums[:n], f.write.Sums[n:]
	r.frozen, r.halves = first, append(r.halves, second)
}

// writeFrozen makes one attempt. It returns false if the outcome is not known: the
// same batch is to be written again.
func (r *Reports) writeFrozen(ctx context.Context) (known bool) {
	var written agent.ReportWritten
	err := r.call(ctx, func(ctx context.Context) (err error) {
		written, err = r.store.AddReports(ctx, r.frozen.write)
		if errors.Is(err, agent.ErrUnknownWriter) {
			// The database is older than this process.
			if err = r.store.RecordReportWriterHeartbeat(ctx, r.opts.ID); err == nil {
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
		n := r.finish()
		r.metrics.dropped.WithLabelValues(droppedRejected).Add(float64(n))
		r.log.ErrorContext(ctx, "the database refused reports of an agent for watchers", "reports", n, "error", err)
		return true
	case err != nil:
		r.metrics.errors.WithLabelValues(errorWrite).Inc()
		r.log.WarnContext(ctx, "reports for watchers are not written, trying again", "error", err)
		return false
	}
	r.sequence++
	r.metrics.writes.Inc()
	to := len(r.frozen.write.To)
	r.metrics.written.Add(max(0, float64(r.finish())*float64(to)-float64(written.Refused)-float64(written.Gone)-float64(written.Found)))
	r.metrics.found.Add(float64(written.Found))
	r.metrics.dropped.WithLabelValues(droppedFull).Add(float64(written.Refused))
	r.metrics.dropped.WithLabelValues(droppedRemoved).Add(float64(written.Gone))
	if written.Lost > 0 {
		r.metrics.lost.Add(float64(written.Lost))
		r.log.ErrorContext(ctx, "the database has lost reports for watchers: it is an older one, or a standby that was behind", "writes", written.Lost)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for stream := range r.streams {
		signal(stream)
	}
	return true
}
