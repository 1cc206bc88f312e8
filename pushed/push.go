package pushed

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// Push stores a snapshot that was received at now, and returns its refusals. The
// rest is then durable and served. After an error the snapshot can be pushed again,
// here or elsewhere. It does not count twice if it was stored nevertheless. A
// snapshot that is not above the newest of its instance is known. Its refusals are
// those of the newest. One that was scraped, when a newer one is known, is
// agent.ErrNewerScrape.
//
// It waits for pushes that came before. p is neither changed nor kept.
func (f *Families) Push(ctx context.Context, now time.Time, p agent.Push) ([]agent.PushRefusal, error) {
	if p.Instance == (agent.Instance{}) {
		f.metrics.pushes.WithLabelValues(outcomeInvalid).Inc()
		return nil, errors.New("push families: the instance id is all zero")
	}
	if !f.isLoaded() {
		f.metrics.pushes.WithLabelValues(outcomeUnavailable).Inc()
		return nil, errNotLoaded
	}
	snapshot, err := f.decodeSerially(ctx, now, &p)
	if err != nil {
		f.metrics.pushes.WithLabelValues(outcomeUnavailable).Inc()
		return nil, fmt.Errorf("push families of %q: %w", p.Replica, err)
	}
	stored, outcome, err := f.push(ctx, now, &p, snapshot)
	f.metrics.pushes.WithLabelValues(outcome).Inc()
	if err != nil {
		return nil, fmt.Errorf("push families of %q: %w", p.Replica, err)
	}
	if outcome == outcomeStored {
		f.publishStored(ctx, stored.id, stored.version)
	}
	return stored.refused, nil
}

// push returns the instance with the snapshot. It decides again if it decided on a
// row that was not the newest.
func (f *Families) push(ctx context.Context, now time.Time, p *agent.Push, snapshot family.Snapshot) (
	stored *instance, outcome string, err error,
) {
	if err := f.acquireWriting(ctx); err != nil {
		return nil, outcomeUnavailable, err
	}
	defer f.releaseWriting()
	for range decisions {
		stored, outcome, err = f.pushOnKnown(ctx, now, p, snapshot)
		if !errors.Is(err, agent.ErrOutdated) {
			break
		}
		f.metrics.outdated.Inc()
		if err := f.catchUp(ctx, now); err != nil {
			return nil, outcomeUnavailable, err
		}
	}
	return stored, outcome, err
}

// pushOnKnown decides on the instance as it is in memory. The caller holds writing.
func (f *Families) pushOnKnown(ctx context.Context, now time.Time, p *agent.Push, snapshot family.Snapshot) (
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
	if old != nil && !p.ScrapedAt.IsZero() && old.supersedes(now, p) {
		return old, outcomeSuperseded, agent.ErrNewerScrape
	}
	if old != nil && p.ScrapedAt.IsZero() && p.Snapshot <= old.snapshot {
		return old, outcomeDuplicate, nil
	}
	if old == nil && full {
		if err := f.makeRoom(ctx, now); err != nil {
			return nil, outcomeOf(err), err
		}
	}
	next, refused, err := f.decideAndSave(ctx, now, p, snapshot, old)
	if err != nil {
		return nil, outcomeOf(err), err
	}
	f.metrics.countRefused(refused)
	return next, outcomeStored, nil
}

// maxShrinks bounds how often a push is decided on fewer series until its row is
// small enough. Each time the row's size gives the next number of series. The last
// time no new ones are stored.
const maxShrinks = 5

// decideAndSave decides which series of a snapshot are stored, and stores them. If
// the row would be too large, it stores fewer series.
func (f *Families) decideAndSave(ctx context.Context, now time.Time, p *agent.Push, snapshot family.Snapshot, old *instance) (
	*instance, []family.Refusals, error,
) {
	most := math.MaxInt
	for shrinks := 0; ; shrinks++ {
		next, spilled, refused := f.decide(now, p, snapshot, old, most)
		if excess := f.excess(next); excess > 0 {
			changed, err := f.makeSeriesRoom(ctx, now, next, excess)
			if err != nil {
				return nil, nil, err
			}
			if changed {
				next, spilled, refused = f.decide(now, p, snapshot, old, most)
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

// outcomeOf returns the outcome of a push that was not stored.
func outcomeOf(err error) string {
	switch {
	case errors.Is(err, agent.ErrNoRoom):
		return outcomeNoRoom
	case errors.Is(err, agent.ErrRejected):
		return outcomeInvalid
	}
	return outcomeUnavailable
}

// decide returns the instance with the snapshot. old is the instance in memory; nil
// if it is new. most bounds the lines beside those that it counted before. spilled
// is what it counted, does not push any more, and has no room for.
func (f *Families) decide(now time.Time, p *agent.Push, snapshot family.Snapshot, old *instance, most int) (
	next, spilled *instance, refused []family.Refusals,
) {
	admission := f.admission(now, p.Instance, old, most)
	admitted := admission.Admit(snapshot)
	if old != nil && slices.ContainsFunc(admitted.Refused, family.Refusals.NeedRoom) {
		kept, absent := admission.Old.Split(snapshot)
		if absent != nil {
			f.mu.Lock()
			spilled = old.withFamilies(absent)
			f.mu.Unlock()
			admission.Old = kept
			admitted = admission.Admit(snapshot)
		}
	}
	next = &instance{
		id:          p.Instance,
		replica:     agent.ShortenText(p.Replica, maxReplicaBytes),
		interval:    min(max(p.Interval, 0), maxInterval),
		snapshot:    numberOf(p),
		final:       p.Final,
		passThrough: p.PassThrough,
		updatedAt:   f.newerThan(admitted.Displaced, now),
		aliveAt:     now,
		refused:     snapshot.Messages(admitted.Refused),
		families:    admitted.Families,
		lines:       admitted.Lines,
	}
	if old != nil {
		next.version = old.version
	} else {
		next.version = f.replacedVersion(p.Instance)
	}
	return next, spilled, admitted.Refused
}

// admission returns what a snapshot of an instance is checked against. The caller
// holds writing.
func (f *Families) admission(now time.Time, id agent.Instance, old *instance, most int) *family.Admission {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &family.Admission{
		Policy: f.policy, Limits: f.opts.Load().limits(), Received: now, Types: f.types, Live: make(map[string]bool, len(f.types)), MaxRowLines: most,
	}
	if old != nil {
		a.Old, a.OldLive = old.families.OfTypes(f.types), old.live
	}
	for _, i := range f.instances {
		if !i.live || i.id == id {
			continue
		}
		a.LiveLines += i.lines
		for name, fam := range i.families {
			if f.types.Include(fam) {
				a.Live[name] = true
			}
		}
	}
	return a
}

// newerThan returns a time not before now at which an instance is newer than those
// whose families it displaces, so that all replicas prefer it. now may not be, by the
// clock of the replica that stored them. The caller holds writing.
func (f *Families) newerThan(displaced map[string]bool, now time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range displaced {
		for _, i := range f.instances {
			if i.families[name] != nil && !now.After(i.updatedAt) {
				now = i.updatedAt.Add(1)
			}
		}
	}
	return now
}

// savePush stores an instance and serves it. It adds what was spilled to the
// totals.
func (f *Families) savePush(ctx context.Context, now time.Time, next, spilled *instance) error {
	if spilled != nil {
		totals, err := f.fold(ctx, now, folding{pushed: next, spilled: spilled})
		if err == nil {
			f.publishStored(ctx, totals.id, totals.version)
		}
		return err
	}
	row, err := f.encode(next)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, f.opts.Load().StoreTimeout)
	defer cancel()
	if err := f.recordWrite(ctx, f.store.SavePush(bounded, row)); err != nil {
		return err
	}
	next.version++
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replaceLocked(now, []*instance{next}, nil)
	return nil
}

// rowTooLargeError is why fewer series are stored. If the earlier counts are too
// large alone, it is why a push is refused as a whole.
type rowTooLargeError struct{ size, most int }

func (e *rowTooLargeError) Error() string {
	return fmt.Sprintf("%v: %d bytes to store, at most %d (--max-push-row-bytes)", agent.ErrNoRoom, e.size, e.most)
}

func (e *rowTooLargeError) Unwrap() error { return agent.ErrNoRoom }

// fewer estimates how many lines fit into the row, with a margin: series compress
// unequally.
func (e *rowTooLargeError) fewer(lines int) int {
	return int(float64(lines) * float64(e.most) / float64(e.size) * 15 / 16)
}

// find returns an instance in memory, nil if it is new, and whether there is no
// room for another.
func (f *Families) find(id agent.Instance) (_ *instance, full bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	count := len(f.instances)
	if f.instances[agent.Instance{}] != nil {
		count--
	}
	return f.instances[id], count >= f.opts.Load().MaxInstances
}
