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

// Lease says which replica serves what exactly one may serve. It must not block.
type Lease interface {
	// Term returns 0 while this replica does not lead, otherwise a number above 0
	// that is another one each time it came to lead: what another leader served
	// meanwhile is to be read first, or counters would fall.
	Term() int64
}

// News carries hints between replicas. pubsub's engines are some.
type News interface {
	// Publish tells subscribers of channel. It may fail, and news may be lost.
	Publish(ctx context.Context, channel string, payload []byte) error
	// Subscribe calls f with each payload, one after the other; with nil after
	// some were lost.
	Subscribe(channel string, f func(payload []byte)) (cancel func(), err error)
}

const (
	// newsChannel carries an instance in hex and the version of its row that was
	// stored; the zero instance after a fold.
	newsChannel = "agentstatsd_pushes"
	// newsTimeout bounds one publication.
	newsTimeout = time.Second
	// followPause is the least time between two looks at the store: what is pushed
	// meanwhile is merged and rendered at once.
	followPause = 100 * time.Millisecond
	// leaseCheck is how often the lease, which is in memory, is looked at: a new
	// leader begins to serve that much later at most.
	leaseCheck = 100 * time.Millisecond
	// unreadIntervals that reading fails make the families unhealthy.
	unreadIntervals = 3
)

// serves reports whether this replica serves: it leads, and has read what was
// stored before it came to lead.
func (f *Families) serves() bool {
	if f.opts.Lease == nil {
		return true
	}
	term := f.opts.Lease.Term()
	return term != 0 && term == f.caughtUp.Load()
}

// Follow reads what is stored and not held here, because other replicas stored
// or removed it, and shows it.
func (f *Families) Follow(ctx context.Context) error {
	if err := f.follow(ctx, time.Now()); err != nil {
		return fmt.Errorf("follow pushes: %w", err)
	}
	return nil
}

func (f *Families) follow(ctx context.Context, now time.Time) error {
	if err := f.takeTurn(ctx); err != nil {
		return err
	}
	defer f.endTurn()
	return f.catchUp(ctx, now)
}

// catchUp is follow for who has the turn.
func (f *Families) catchUp(ctx context.Context, now time.Time) error {
	term := int64(0)
	if f.opts.Lease != nil {
		term = f.opts.Lease.Term()
	}
	next, gone, bad, err := f.readNewer(ctx, now)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.metrics.follows.WithLabelValues(followFailed).Inc()
		if ctx.Err() == nil {
			f.unread.note(err)
		}
		f.nudge()
		return err
	}
	f.unread.note(nil)
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

// readNewer returns the instances whose rows are newer than what is held here,
// those whose rows are gone, and the rows that cannot be decoded. The caller has
// the turn.
//
// A push changes one row, and rows are shown in any mixture of before and after
// pushes. A fold changes several, which must be seen together: so if there was
// one, which the version of the totals tells, all are read at one moment. A row
// that was removed and came back, its versions counted anew, is seen by that too.
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
	held := f.instances // only changed by who has the turn
	f.mu.Unlock()
	stay := make(map[agent.Instance]bool, len(rows))
	for _, r := range rows {
		stay[r.Instance] = true
		if h := held[r.Instance]; h != nil && h.version == r.Version && h.updatedAt.Equal(r.UpdatedAt) {
			continue
		}
		i, healed, err := f.codec.decode(r, now)
		if err != nil {
			bad = append(bad, badRow{r.Instance, r.Version, r.UpdatedAt, err})
			continue
		}
		f.metrics.healed.Add(float64(healed))
		next = append(next, i)
	}
	for id := range held {
		if folded && !stay[id] {
			gone = append(gone, id)
		}
	}
	return next, gone, bad, nil
}

// newer returns the instances whose stored versions are newer than those held
// here. folded means that there is more to it: rows were folded or removed, or
// nothing is held yet.
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
	known := 0
	for id, version := range stored {
		held := f.instances[id]
		switch {
		case held == nil && f.unreadable[id].version == version:
			continue
		case held == nil:
			ids = append(ids, id)
			folded = folded || id == agent.Instance{}
			continue
		case held.version == version:
		case held.version < version && id != agent.Instance{}:
			ids = append(ids, id)
		default:
			folded = true
		}
		known++
	}
	return ids, folded || known < len(f.instances)
}

func (f *Families) readVersions(ctx context.Context) (map[agent.Instance]int64, error) {
	bounded, cancel := context.WithTimeout(ctx, f.opts.StoreTimeout)
	defer cancel()
	versions, err := f.store.PushVersions(bounded)
	if err != nil {
		return nil, fmt.Errorf("read versions of pushes: %w", err)
	}
	return versions, nil
}

func (f *Families) readRows(ctx context.Context, ids []agent.Instance) ([]agent.PushRow, error) {
	bounded, cancel := context.WithTimeout(ctx, f.opts.StoreTimeout)
	defer cancel()
	rows, err := f.store.Pushes(bounded, ids)
	if err != nil {
		return nil, fmt.Errorf("read pushes: %w", err)
	}
	return rows, nil
}

// followUntilDone follows when it is nudged, and if there is a lease every
// FollowInterval and when this replica comes to lead.
func (f *Families) followUntilDone(ctx context.Context) {
	var interval, check <-chan time.Time
	if f.opts.Lease != nil {
		i, c := time.NewTicker(f.opts.FollowInterval), time.NewTicker(leaseCheck)
		defer i.Stop()
		defer c.Stop()
		interval, check = i.C, c.C
	}
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.nudged:
		case <-interval:
		case <-check:
			if !f.cameToLead() {
				continue
			}
		}
		pause := followPause
		if err := f.Follow(ctx); err == nil {
			failures = 0
		} else {
			failures++
			pause = f.retries.Delay(failures)
			if failures == 1 && ctx.Err() == nil {
				f.log.WarnContext(ctx, "stored pushes are not read, trying again", "error", err)
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
	term := f.opts.Lease.Term()
	if term == 0 {
		f.caughtUp.Store(0)
	}
	return term != 0 && term != f.caughtUp.Load()
}

// nudge has Run follow soon.
func (f *Families) nudge() {
	select {
	case f.nudged <- struct{}{}:
	default:
	}
}

// tell tells the other replicas that a row was stored. What they are not told
// they see within FollowInterval.
func (f *Families) tell(ctx context.Context, id agent.Instance, version int64) {
	if f.opts.News == nil {
		return
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), newsTimeout)
	defer cancel()
	if err := f.opts.News.Publish(bounded, newsChannel, fmt.Appendf(nil, "%x %d", id, version)); err != nil {
		f.metrics.untold.Inc()
		f.log.DebugContext(ctx, "news of a push are not published", "error", err)
	}
}

// hear takes news of a push; nil: some were missed. What is held here already,
// like the pushes of this replica, is nothing new.
func (f *Families) hear(payload []byte) {
	name, number, _ := strings.Cut(string(payload), " ")
	id, idErr := hex.DecodeString(name)
	version, err := strconv.ParseInt(number, 10, 64)
	if idErr != nil || err != nil || len(id) != len(agent.Instance{}) || !f.holds(agent.Instance(id), version) {
		f.nudge()
	}
}

func (f *Families) holds(id agent.Instance, version int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	held := f.instances[id]
	return held != nil && held.version >= version
}
