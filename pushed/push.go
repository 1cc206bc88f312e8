package pushed

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Push takes in a snapshot that was received at now, and returns what it
// refused of it, when the rest is durable and shown. After an error the snapshot
// can be pushed again, here or elsewhere: if it was stored nevertheless, it does
// not count twice. A snapshot that is not above the newest of its instance is
// known already: its refusals are those of the newest.
//
// It waits for pushes that came before. p is not changed, nor kept.
func (f *Families) Push(ctx context.Context, now time.Time, p agent.Push) ([]agent.PushRefusal, error) {
	if p.Instance == (agent.Instance{}) {
		f.metrics.pushes.WithLabelValues(outcomeInvalid).Inc()
		return nil, errors.New("push families: the instance id is all zero")
	}
	if !f.isLoaded() {
		f.metrics.pushes.WithLabelValues(outcomeUnavailable).Inc()
		return nil, errNotLoaded
	}
	decoded, err := f.decodeInLine(ctx, now, &p)
	if err != nil {
		f.metrics.pushes.WithLabelValues(outcomeUnavailable).Inc()
		return nil, fmt.Errorf("push families of %q: %w", p.Replica, err)
	}
	taken, outcome, err := f.push(ctx, now, &p, decoded)
	f.metrics.pushes.WithLabelValues(outcome).Inc()
	if err != nil {
		return nil, fmt.Errorf("push families of %q: %w", p.Replica, err)
	}
	if outcome == outcomeStored {
		f.tell(ctx, taken.id, taken.version)
	}
	return taken.refused, nil
}

// push returns the instance as it is with the snapshot. It decides again if what
// it decided on was not the newest.
func (f *Families) push(ctx context.Context, now time.Time, p *agent.Push, decoded []*decodedFamily) (
	taken *instance, outcome string, err error,
) {
	if err := f.takeTurn(ctx); err != nil {
		return nil, outcomeUnavailable, err
	}
	defer f.endTurn()
	for range decisions {
		taken, outcome, err = f.pushOnHeld(ctx, now, p, decoded)
		if !errors.Is(err, agent.ErrOutdated) {
			break
		}
		f.metrics.outdated.Inc()
		if err := f.catchUp(ctx, now); err != nil {
			return nil, outcomeUnavailable, err
		}
	}
	return taken, outcome, err
}

// pushOnHeld decides on what is held here of the instance. The caller has the
// turn.
func (f *Families) pushOnHeld(ctx context.Context, now time.Time, p *agent.Push, decoded []*decodedFamily) (
	_ *instance, outcome string, _ error,
) {
	old, full := f.find(p.Instance)
	if old == nil && full {
		// Before another is forgotten: it may be known elsewhere.
		if err := f.catchUp(ctx, now); err != nil {
			return nil, outcomeUnavailable, err
		}
		old, full = f.find(p.Instance)
	}
	if old != nil && p.Snapshot <= old.snapshot {
		return old, outcomeDuplicate, nil
	}
	if old == nil && full {
		if err := f.makeRoom(ctx, now); err != nil {
			return nil, outcomeOf(err), err
		}
	}
	next, refused, err := f.decideAndSave(ctx, now, p, decoded, old)
	if err != nil {
		return nil, outcomeOf(err), err
	}
	f.metrics.countRefused(refused)
	return next, outcomeStored, nil
}

// maxShrinks bounds how often it is decided on fewer series until the row is small
// enough. Each time the size tells how many will fit; the last time no new ones do.
const maxShrinks = 5

// decideAndSave decides what is taken in of a snapshot, and stores it. Where the
// row would be too large, it takes in fewer series.
func (f *Families) decideAndSave(ctx context.Context, now time.Time, p *agent.Push, decoded []*decodedFamily, old *instance) (
	*instance, []refusals, error,
) {
	most := math.MaxInt
	for shrinks := 0; ; shrinks++ {
		next, spilled, refused := f.decide(now, p, decoded, old, most)
		if excess := f.excess(next); excess > 0 {
			changed, err := f.makeSeriesRoom(ctx, now, next, excess)
			if err != nil {
				return nil, nil, err
			}
			if changed {
				next, spilled, refused = f.decide(now, p, decoded, old, most)
			}
		}
		err := f.savePush(ctx, now, next, spilled)
		var tooLarge *rowTooLargeError
		if !errors.As(err, &tooLarge) || most == 0 {
			return next, refused, err
		}
		most = tooLarge.fewer(min(next.lines, most))
		if shrinks == maxShrinks-1 {
			most = 0
		}
	}
}

// outcomeOf returns what becomes of a push that was not stored.
func outcomeOf(err error) string {
	switch {
	case errors.Is(err, agent.ErrNoRoom):
		return outcomeNoRoom
	case errors.Is(err, agent.ErrRejected):
		return outcomeInvalid
	}
	return outcomeUnavailable
}

// decide returns the instance with the snapshot, where old is what is held of it,
// nil if nothing is. It has at most that many lines, but for what it counted before.
// spilled is what it counted, does not push any more, and has no room for.
func (f *Families) decide(now time.Time, p *agent.Push, decoded []*decodedFamily, old *instance, most int) (
	next, spilled *instance, refused []refusals,
) {
	admit := func() {
		next = &instance{
			id:        p.Instance,
			replica:   agent.ShortenText(p.Replica, maxReplicaBytes),
			interval:  min(max(p.Interval, 0), maxInterval),
			snapshot:  p.Snapshot,
			final:     p.Final,
			updatedAt: now,
			aliveAt:   now,
		}
		if old != nil {
			next.version = old.version
		} else {
			next.version = f.replacedVersion(p.Instance)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		refused = f.admitLocked(next, old, decoded, most)
	}
	admit()
	if old != nil && slices.ContainsFunc(refused, refusals.wantRoom) {
		f.mu.Lock()
		old, spilled = old.only(f.types).spill(decoded)
		f.mu.Unlock()
		if spilled != nil {
			admit()
		}
	}
	next.refused = told(decoded, refused)
	return next, spilled, refused
}

// savePush stores an instance and serves it, and adds to the totals what was
// spilled.
func (f *Families) savePush(ctx context.Context, now time.Time, next, spilled *instance) error {
	if spilled != nil {
		totals, err := f.fold(ctx, now, folding{pushed: next, spilled: spilled})
		if err == nil {
			f.tell(ctx, totals.id, totals.version)
		}
		return err
	}
	row, err := f.encode(next)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, f.opts.StoreTimeout)
	defer cancel()
	if err := f.noteStored(ctx, f.store.SavePush(bounded, row)); err != nil {
		return err
	}
	next.version++
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replaceLocked(now, []*instance{next}, nil)
	return nil
}

// rowTooLargeError is why fewer series are taken in, or if what was counted before is
// too large alone, why a push is refused as a whole.
type rowTooLargeError struct{ size, most int }

func (e *rowTooLargeError) Error() string {
	return fmt.Sprintf("%v: %d bytes to store, at most %d (--max-push-row-bytes)", agent.ErrNoRoom, e.size, e.most)
}

func (e *rowTooLargeError) Unwrap() error { return agent.ErrNoRoom }

// fewer returns how many of the lines fit into the row, about, and some less: what
// is compressed is not all alike.
func (e *rowTooLargeError) fewer(lines int) int {
	return int(float64(lines) * float64(e.most) / float64(e.size) * 15 / 16)
}

// encode returns the row of an instance. Only that of the totals may be larger
// than MaxRowBytes.
func (f *Families) encode(i *instance) (agent.PushRow, error) {
	row, err := f.codec.encode(i)
	if err == nil && len(row.Data) > f.opts.MaxRowBytes && i.id != (agent.Instance{}) {
		err = &rowTooLargeError{len(row.Data), f.opts.MaxRowBytes}
	}
	return row, err
}

// find returns what is held of an instance, nil if nothing is, and whether there
// is no room for another.
func (f *Families) find(id agent.Instance) (_ *instance, full bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	count := len(f.instances)
	if f.instances[agent.Instance{}] != nil {
		count--
	}
	return f.instances[id], count >= f.opts.MaxInstances
}
