package pushed

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/backoff"
)

// Lease decides which replica serves what exactly one may serve. It must not block.
type Lease interface {
	// Term returns 0 while this replica does not lead. Otherwise it returns a number
	// above 0, which differs each time that it came to lead. In a new term, what
	// another leader served meanwhile must be read first, or counters would fall.
	Term() int64
}

// Notifier carries notifications between replicas. Engines of pubsub implement it.
type Notifier interface {
	// Publish notifies subscribers of channel. It may fail, and notifications may
	// be lost.
	Publish(ctx context.Context, channel string, payload []byte) error
	// Subscribe calls f with each payload, one after the other; with nil after
	// some were lost.
	Subscribe(channel string, f func(payload []byte)) (cancel func(), err error)
}

const (
	// notificationChannel carries an instance in hex and the version of its stored
	// row; after a fold those of the zero instance.
	notificationChannel = "agentstatsd_pushes"
	// notificationTimeout bounds one publication.
	notificationTimeout = time.Second
	// followPause is the least time between two reads of the store. What is pushed
	// meanwhile is merged and rendered together.
	followPause = 100 * time.Millisecond
	// leaseCheck is how often the lease, which is in memory, is checked. A new
	// leader begins to serve that much later at most.
	leaseCheck = 100 * time.Millisecond
	// unreadIntervals that reading fails make the families unhealthy.
	unreadIntervals = 3
)

// serves reports whether this replica serves: it leads, and has read what was
// stored before it came to lead.
func (f *Families) serves() bool {
	if f.opts.Load().Lease == nil {
		return true
	}
	term := f.opts.Load().Lease.Term()
	return term != 0 && term == f.caughtUp.Load()
}

// Follow reads what other replicas stored or removed, and serves it.
func (f *Families) Follow(ctx context.Context) error {
	if err := f.follow(ctx, time.Now()); err != nil {
		return fmt.Errorf("follow pushes: %w", err)
	}
	return nil
}

func (f *Families) follow(ctx context.Context, now time.Time) error {
	if err := f.acquireWriting(ctx); err != nil {
		return err
	}
	defer f.releaseWriting()
	return f.catchUp(ctx, now)
}

// catchUp is follow for a caller that holds writing.
func (f *Families) catchUp(ctx context.Context, now time.Time) error {
	term := int64(0)
	if f.opts.Load().Lease != nil {
		term = f.opts.Load().Lease.Term()
	}
	next, gone, bad, err := f.readNewer(ctx, now)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.metrics.follows.WithLabelValues(followFailed).Inc()
		if ctx.Err() == nil {
			f.readError.record(err)
		}
		f.requestFollow()
		return err
	}
	f.readError.record(nil)
	f.skipLocked(ctx, bad)
	switch {
	case len(next)+len(gone) == 0:
		f.metrics.follows.WithLabelValues(followUnchanged).Inc()
	default:
		f.metrics.follows.WithLabelValues(followChanged).Inc()
		f.metrics.rowsRead.Add(float64(len(next)))
		f.replaceLocked(now, next, gone)
	}
	f.loaded = true
	f.caughtUp.Store(term)
	return nil
}

// readNewer returns the instances whose rows are newer than those in memory, those
// whose rows were removed, and the rows that cannot be decoded. The caller holds
// writing.
//
// A push changes one row. Rows are read in any mixture of before and after pushes.
// A fold changes several rows, which must be read together. The version of the
// totals shows that there was a fold. Then all rows are read in one transaction.
// That also finds a row that was removed and came back, whose versions start again.
func (f *Families) readNewer(ctx context.Context, now time.Time) (
	next []*instance, gone []agent.Instance, bad []badRow, _ error,
) {
	before, err := f.readVersions(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	ids, folded := f.newer(before)
	var rows []agent.PushRow
	if !folded {
		if len(ids) == 0 {
			return nil, nil, nil, nil
		}
		if rows, err = f.readRows(ctx, ids); err != nil {
			return nil, nil, nil, err
		}
		after, err := f.readVersions(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		folded = after[agent.Instance{}] != before[agent.Instance{}]
	}
	if folded {
		if rows, err = f.readRows(ctx, nil); err != nil {
			return nil, nil, nil, err
		}
	}
	f.mu.Lock()
	known := f.instances // only the holder of writing changes it
	f.mu.Unlock()
	stay := make(map[agent.Instance]bool, len(rows))
	for _, r := range rows {
		stay[r.Instance] = true
		if h := known[r.Instance]; h != nil && h.version == r.Version && h.updatedAt.Equal(r.UpdatedAt) {
			continue
		}
		i, omitted, err := f.decode(r, now)
		if err != nil {
			bad = append(bad, badRow{r.Instance, r.Version, r.UpdatedAt, err})
			continue
		}
		f.metrics.omitted.Add(float64(omitted))
		next = append(next, i)
	}
	for id := range known {
		if folded && !stay[id] {
			gone = append(gone, id)
		}
	}
	return next, gone, bad, nil
}

// newer returns the instances whose stored versions are newer than those in memory.
// folded is true if all rows are to be read: some were folded or removed, or
// nothing was loaded yet.
func (f *Families) newer(stored map[agent.Instance]int64) (ids []agent.Instance, folded bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.loaded {
		return nil, true
	}
	for id := range f.unreadable {
		if _, still := stored[id]; !still {
			delete(f.unreadable, id)
		}
	}
	count := 0
	for id, version := range stored {
		known := f.instances[id]
		switch {
		case known == nil && f.unreadable[id].version == version:
			continue
		case known == nil:
			ids = append(ids, id)
			folded = folded || id == agent.Instance{}
			continue
		case known.version == version:
		case known.version < version && id != agent.Instance{}:
			ids = append(ids, id)
		default:
			folded = true
		}
		count++
	}
	return ids, folded || count < len(f.instances)
}

func (f *Families) readVersions(ctx context.Context) (map[agent.Instance]int64, error) {
	bounded, cancel := context.WithTimeout(ctx, f.opts.Load().StoreTimeout)
	defer cancel()
	versions, err := f.store.PushVersions(bounded)
	if err != nil {
		return nil, fmt.Errorf("read versions of pushes: %w", err)
	}
	return versions, nil
}

func (f *Families) readRows(ctx context.Context, ids []agent.Instance) ([]agent.PushRow, error) {
	bounded, cancel := context.WithTimeout(ctx, f.opts.Load().StoreTimeout)
	defer cancel()
	rows, err := f.store.Pushes(bounded, ids)
	if err != nil {
		return nil, fmt.Errorf("read pushes: %w", err)
	}
	return rows, nil
}

// followUntilDone follows on request. With a lease it also follows every
// FollowInterval, and when this replica becomes the leader.
func (f *Families) followUntilDone(ctx context.Context) {
	var interval, check <-chan time.Time
	if f.opts.Load().Lease != nil {
		i, c := time.NewTicker(f.opts.Load().FollowInterval), time.NewTicker(leaseCheck)
		defer i.Stop()
		defer c.Stop()
		interval, check = i.C, c.C
	}
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.followRequested:
		case <-interval:
		case <-check:
			if !f.cameToLead() {
				continue
			}
		}
		pause := followPause
		if err := f.Follow(ctx); err == nil {
			failures = 0
			f.reads.Works(ctx)
		} else {
			failures++
			pause = f.retries.Delay(failures)
			if ctx.Err() == nil {
				f.reads.Failed(ctx, err)
			}
		}
		if !backoff.Sleep(ctx, pause) {
			return
		}
	}
}

// cameToLead reports whether this replica leads and has something to read before
// it serves.
func (f *Families) cameToLead() bool {
	term := f.opts.Load().Lease.Term()
	if term == 0 {
		f.caughtUp.Store(0)
	}
	return term != 0 && term != f.caughtUp.Load()
}

// requestFollow makes Run follow soon.
func (f *Families) requestFollow() {
	select {
	case f.followRequested <- struct{}{}:
	default:
	}
}

// publishStored notifies the other replicas of a stored row. Without a notification
// they read it within FollowInterval.
func (f *Families) publishStored(ctx context.Context, id agent.Instance, version int64) {
	if f.opts.Load().Notifier == nil {
		return
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), notificationTimeout)
	defer cancel()
	if err := f.opts.Load().Notifier.Publish(bounded, notificationChannel, fmt.Appendf(nil, "%x %d", id, version)); err != nil {
		f.metrics.notificationErrors.Inc()
		f.log.DebugContext(ctx, "notification of a push is not published", "error", err)
	}
}

// handleNotification handles a notification of a push; nil: some were missed. A row
// that is in memory here, as after a push to this replica, is not read.
func (f *Families) handleNotification(payload []byte) {
	name, number, _ := strings.Cut(string(payload), " ")
	id, idErr := hex.DecodeString(name)
	version, err := strconv.ParseInt(number, 10, 64)
	if idErr != nil || err != nil || len(id) != len(agent.Instance{}) || !f.isKnown(agent.Instance(id), version) {
		f.requestFollow()
	}
}

// isKnown reports whether this version of a row, or a later one, is in memory.
func (f *Families) isKnown(id agent.Instance, version int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.instances[id]
	return known != nil && known.version >= version
}
