package pushed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// badRow is a row that cannot be decoded. It is skipped: what is held of its
// instance stays as it is, and the next snapshot of the instance replaces the row.
// If none comes it is deleted when its instance would be forgotten.
//
// The totals go on from what is held of them, or from nothing; the row is kept
// under another id when it is replaced.
type badRow struct {
	id        agent.Instance
	version   int64
	updatedAt time.Time
	err       error
}

// skipLocked notes rows that cannot be decoded, and reports those that it did not
// know.
func (f *Families) skipLocked(ctx context.Context, bad []badRow) {
	for _, b := range bad {
		if f.unreadable[b.id].version == b.version {
			continue
		}
		f.unreadable[b.id] = b
		f.metrics.undecodable.Inc()
		f.log.ErrorContext(ctx, "a stored push cannot be decoded and is skipped", "instance", fmt.Sprintf("%x", b.id), "error", b.err)
		if held := f.instances[b.id]; held != nil {
			copied := *held
			copied.version = b.version
			f.instances[b.id] = &copied
		}
	}
	if v := f.view.Load(); v.unreadable != len(f.unreadable) {
		next := *v
		next.unreadable = len(f.unreadable)
		f.view.Store(&next)
	}
}

// replacedVersion returns the version of the row that a first one of the instance
// replaces: 0, or that of one that cannot be decoded.
func (f *Families) replacedVersion(id agent.Instance) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unreadable[id].version
}

// overdue returns the rows that cannot be decoded, and of instances that would be
// forgotten, to be removed.
func (f *Families) overdue(now time.Time) (out []*instance) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, b := range f.unreadable {
		if id != (agent.Instance{}) && f.instances[id] == nil && now.Sub(b.updatedAt) >= f.opts.ForgetAfter {
			out = append(out, &instance{id: id, version: b.version})
		}
	}
	return out
}

// setAside returns the totals, which cannot be decoded, as a row of another id, so
// that they are there to be looked at; nil: there are none such. The caller has
// the turn.
func (f *Families) setAside(ctx context.Context, now time.Time) ([]agent.PushRow, error) {
	f.mu.Lock()
	b, ok := f.unreadable[agent.Instance{}]
	f.mu.Unlock()
	if !ok {
		return nil, nil
	}
	rows, err := f.readRows(ctx, []agent.Instance{{}})
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 || rows[0].Version != b.version {
		return nil, fmt.Errorf("fold pushes: totals: %w", agent.ErrOutdated)
	}
	row := agent.PushRow{Replica: "totals", UpdatedAt: now, Data: rows[0].Data}
	if _, err := rand.Read(row.Instance[:]); err != nil {
		return nil, fmt.Errorf("choose an id: %w", err)
	}
	return []agent.PushRow{row}, nil
}

// check returns why what was decoded cannot be worked with.
func (i *instance) check() error {
	for name, f := range i.families {
		switch {
		case f.Name != name:
			return fmt.Errorf("family %q under the name %q", f.Name, name)
		case !slices.IsSortedFunc(f.Series, compareSeries):
			return fmt.Errorf("the series of %s are not sorted", name)
		}
		for j := range f.Series {
			s := &f.Series[j]
			if f.Type == metrics.Histogram || f.Type == metrics.Summary {
				if s.Hist == nil && (s.BaseHist == nil || i.id != agent.Instance{}) {
					return fmt.Errorf("a series of the %v %s has no distribution", f.Type, name)
				}
			}
			for _, d := range []*distribution{s.Hist, s.BaseHist} {
				if d != nil && len(d.Bounds) != len(d.Counts) {
					return fmt.Errorf("%s has %d bounds and %d counts", name, len(d.Bounds), len(d.Counts))
				}
			}
		}
	}
	return nil
}

var errNoFamily = errors.New("a family is missing")
