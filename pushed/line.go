package pushed

import (
	"context"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// decodeSerially decodes one snapshot at a time. That bounds the memory of all that
// are being decoded. It returns the error of ctx when that ends.
func (f *Families) decodeSerially(ctx context.Context, now time.Time, p *agent.Push) (family.Snapshot, error) {
	select {
	case f.decoding <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-f.decoding }()
	return family.DecodeSnapshot(p.Families, f.opts.Load().limits(), now, p.PassThrough), nil
}
