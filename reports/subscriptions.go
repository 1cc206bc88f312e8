package reports

import (
	"context"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// poll reads the subscriptions, records heartbeats, counts sums and removes expired
// subscriptions until ctx is cancelled.
func (r *Reports) poll(ctx context.Context) {
	var heartbeat, count, expire time.Time
	failures := 0
	for {
		now := time.Now()
		err := r.readSubscriptions(ctx)
		if err == nil && now.Sub(heartbeat) >= r.heartbeatInterval() {
			err, heartbeat = r.call(ctx, func(ctx context.Context) error { return r.store.RecordReportWriterHeartbeat(ctx, r.opts.Load().ID) }), now
		}
		if err == nil && now.Sub(count) >= countInterval && r.Wanted() {
			err, count = r.countSums(ctx), now
		}
		if err == nil && now.Sub(expire) >= expireInterval {
			err, expire = r.expireSubscriptions(ctx), now
		}
		failures++
		if err == nil {
			failures = 0
			r.polls.Works(ctx)
		} else if ctx.Err() == nil {
			r.metrics.errors.WithLabelValues(errorPoll).Inc()
			r.polls.Failed(ctx, err)
		}
		wait := pollInterval
		if failures > 0 {
			wait = retries.Delay(failures)
		}
		timer := time.NewTimer(wait)
		select {
		case <-r.pollNow:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// heartbeatInterval is the time between two heartbeats of this replica. Without other
// replicas it may be long. It must be below a month, after which the row of a writer is
// removed.
func (r *Reports) heartbeatInterval() time.Duration {
	if r.opts.Load().Shared {
		return heartbeatInterval
	}
	return time.Hour
}

// call bounds a call of the database by callTimeout.
func (r *Reports) call(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}

// readSubscriptions reads the subscriptions, adds reports to them from then on, and
// confirms the new ones.
func (r *Reports) readSubscriptions(ctx context.Context) error {
	return r.call(ctx, func(ctx context.Context) error {
		all, err := r.store.Subscriptions(ctx)
		if err != nil {
			return err
		}
		fresh := r.setSubscriptions(all)
		if len(fresh) == 0 {
			return nil
		}
		if err := r.store.ConfirmSubscriptions(ctx, r.opts.Load().ID, fresh); err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, id := range fresh {
			r.confirmed[id] = struct{}{}
		}
		return nil
	})
}

// setSubscriptions begins a new group if the subscriptions have changed. It returns
// those that are not confirmed.
func (r *Reports) setSubscriptions(all []agent.Subscription) (fresh []int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]int64, len(all))
	for i := range all {
		ids[i] = all[i].ID
		if _, known := r.confirmed[ids[i]]; !known {
			fresh = append(fresh, ids[i])
		}
	}
	same := len(all) == len(r.subscriptions)
	for i := 0; same && i < len(all); i++ {
		same = all[i].ID == r.subscriptions[i].ID
	}
	r.subscriptions = all
	r.wanted.Store(len(all) > 0)
	if same {
		return fresh
	}
	for id := range r.confirmed {
		if !slices.Contains(ids, id) {
			delete(r.confirmed, id)
			delete(r.full, id)
		}
	}
	if n := len(r.groups); n > 0 && len(r.groups[n-1].order) == 0 {
		r.groups = r.groups[:n-1]
	}
	if len(all) > 0 {
		r.groups = append(r.groups, &group{to: ids, agents: make(map[agent.ID]*unwritten)})
	}
	return fresh
}

// countSums counts the sums of each subscription, to find out which are full.
func (r *Reports) countSums(ctx context.Context) error {
	return r.call(ctx, func(ctx context.Context) error {
		counts, err := r.store.CountReportSums(ctx)
		if err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		var most agent.ReportCount
		for _, s := range r.subscriptions {
			n := counts[s.ID]
			r.full[s.ID] = n.Agents >= int64(r.opts.Load().MaxSums) || n.Bytes >= int64(r.opts.Load().MaxSumBytes)
			most = agent.ReportCount{Agents: max(most.Agents, n.Agents), Bytes: max(most.Bytes, n.Bytes)}
		}
		r.metrics.sums.Set(float64(most.Agents))
		r.metrics.sumBytes.Set(float64(most.Bytes))
		return nil
	})
}

// expireSubscriptions removes the subscriptions that nobody watches.
func (r *Reports) expireSubscriptions(ctx context.Context) error {
	return r.call(ctx, func(ctx context.Context) error {
		expired, err := r.store.ExpireSubscriptions(ctx, r.opts.Load().Retention)
		for _, e := range expired {
			r.metrics.expired.Inc()
			r.log.WarnContext(ctx, "a subscription to reports had no stream for too long and is removed",
				"name", e.Name, "agents_undelivered", e.Agents, "batches_undelivered", e.Batches)
		}
		return err
	})
}
