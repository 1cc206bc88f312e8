package pushed

import (
	"fmt"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// encode returns i as a row in place of that of its version, and notes how large it
// is. Only the row of the totals may be larger than MaxRowBytes. The caller holds
// writing.
func (f *Families) encode(i *instance) (agent.PushRow, error) {
	data, err := f.codec.Encode(&family.Row{
		Interval: i.interval, Snapshot: i.snapshot, Final: i.final, Folded: i.folded, PassThrough: i.passThrough, Refused: i.refused, Families: i.families,
	})
	if err != nil {
		return agent.PushRow{}, fmt.Errorf("encode what instance %x pushed: %w", i.id, err)
	}
	if len(data) > f.opts.Load().MaxRowBytes && i.id != (agent.Instance{}) {
		return agent.PushRow{}, &rowTooLargeError{len(data), f.opts.Load().MaxRowBytes}
	}
	i.rowBytes = len(data)
	return agent.PushRow{Instance: i.id, Replica: i.replica, UpdatedAt: i.updatedAt, Data: data, Version: i.version}, nil
}

// decode returns the instance of a row that was read at now, and how many values of
// it are left out. The caller holds writing.
func (f *Families) decode(in agent.PushRow, now time.Time) (_ *instance, omitted int, _ error) {
	r, omitted, err := f.codec.Decode(in.Data, in.Instance == agent.Instance{})
	if err != nil {
		return nil, 0, fmt.Errorf("decode what instance %x pushed: %w", in.Instance, err)
	}
	i := &instance{
		id: in.Instance, replica: in.Replica, version: in.Version, updatedAt: in.UpdatedAt, aliveAt: in.UpdatedAt,
		interval: r.Interval, snapshot: r.Snapshot, final: r.Final, folded: r.Folded, passThrough: r.PassThrough, refused: r.Refused,
		families: r.Families, lines: r.Families.Lines(), rowBytes: len(in.Data),
	}
	if now.Before(i.aliveAt) {
		i.aliveAt = now
	}
	return i, omitted, nil
}
