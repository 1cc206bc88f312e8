package pushed

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// badRow is a row that cannot be decoded. It is skipped. Its instance in memory
// stays as it is, and the instance's next snapshot replaces the row. Without one
// the row is deleted after ForgetAfter.
//
// The totals continue from those in memory, or from nothing. Their row is copied
// under another id before it is replaced.
type badRow struct {
	id        agent.Instance
	version   int64
	updatedAt time.Time
	err       error
}

// skipLocked records rows that cannot be decoded, and logs new ones.
func (f *Families) skipLocked(ctx context.Context, bad []badRow) {
	for _, b := range bad {
		if f.unreadable[b.id].version == b.version {
			continue
		}
		f.unreadable[b.id] = b
		f.metrics.undecodable.Inc()
		f.undecoded.Log(ctx, f.log, slog.LevelError, "rows", 1, "a stored push cannot be decoded and is skipped", "instance", fmt.Sprintf("%x", b.id), "error", b.err)
		if known := f.instances[b.id]; known != nil {
			copied := *known
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

// replacedVersion returns the version of the row that an instance's first one
// replaces: 0, or that of a row that cannot be decoded.
func (f *Families) replacedVersion(id agent.Instance) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unreadable[id].version
}

// overdue returns the rows that cannot be decoded, of instances to be forgotten.
func (f *Families) overdue(now time.Time) (out []*instance) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, b := range f.unreadable {
		if id != (agent.Instance{}) && f.instances[id] == nil && now.Sub(b.updatedAt) >= f.opts.Load().ForgetAfter {
			out = append(out, &instance{id: id, version: b.version})
		}
	}
	return out
}

// copyUnreadableTotals returns totals that cannot be decoded as a row of another
// id, for inspection; nil: they can be decoded. The caller holds writing.
func (f *Families) copyUnreadableTotals(ctx context.Context, now time.Time) ([]agent.PushRow, error) {
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
		return nil, fmt.Errorf("merge pushes into totals: %w", agent.ErrOutdated)
	}
	row := agent.PushRow{Replica: "totals", UpdatedAt: now, Data: rows[0].Data}
	if _, err := rand.Read(row.Instance[:]); err != nil {
		return nil, fmt.Errorf("choose an id: %w", err)
	}
	return []agent.PushRow{row}, nil
}
