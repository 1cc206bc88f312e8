package pushed

import (
	"context"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// decodeInLine is decode of one snapshot at a time: what a snapshot takes while it is
// decoded is bounded, and so is what all of them take. It ends with ctx.
func (f *Families) decodeInLine(ctx context.Context, now time.Time, p *agent.Push) ([]*decodedFamily, error) {
	select {
	case f.decoding <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-f.decoding }()
	return f.decode(now, p), nil
}
