package reports

import (
	"cmp"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
)

// Options are the knobs of Reports. A zero field takes its default.
type Options struct {
	// ID of this replica, which must be new; zero: one at random.
	ID agent.ID
	// Shared says that there may be other replicas on the database.
	Shared bool
	// MaxSubscriptions at once; default 16.
	MaxSubscriptions int
	// MaxPending is how many agents' reports wait to be written; default 100,000.
	MaxPending int
	// MaxPendingBytes bounds the memory of these; default 64 MiB. An agent takes 256
	// bytes, 96 for each report, and the encoded rest of the newest one. That is some
	// 60 bytes of a usual agent, 18 KB at most. Without room a report is merged into
	// the one before it, which its agent need not keep any more then.
	MaxPendingBytes int
	// MaxSums bounds the sums of one subscription in the database; default 500,000.
	// MaxSumBytes bounds the encoded rest of their newest reports; default 256 MiB.
	// Both are checked every 5 s, so what comes in between may exceed them.
	MaxSums, MaxSumBytes int
	// Retention is how long a subscription is kept without a stream; default 24 h.
	Retention time.Duration
	// Lease is how long a stream that was cut off still owns its subscription, while
	// others stand by; default 15 s.
	Lease time.Duration
}

func (o Options) withDefaults() Options {
	if o.ID == (agent.ID{}) {
		o.ID = uuid.New()
	}
	o.MaxSubscriptions = cmp.Or(o.MaxSubscriptions, 16)
	o.MaxPending = cmp.Or(o.MaxPending, 100_000)
	o.MaxPendingBytes = cmp.Or(o.MaxPendingBytes, 64<<20)
	o.MaxSums = cmp.Or(o.MaxSums, 500_000)
	o.MaxSumBytes = cmp.Or(o.MaxSumBytes, 256<<20)
	o.Retention = cmp.Or(o.Retention, 24*time.Hour)
	o.Lease = cmp.Or(o.Lease, 15*time.Second)
	return o
}

func (o Options) validate() error {
	switch {
	case o.MaxSubscriptions < 1:
		return fmt.Errorf("max subscriptions: want at least 1, got %d", o.MaxSubscriptions)
	case o.MaxPending < 1:
		return fmt.Errorf("max pending: want at least 1, got %d", o.MaxPending)
	case o.MaxPendingBytes < 1:
		return fmt.Errorf("max pending bytes: want at least 1, got %d", o.MaxPendingBytes)
	case o.MaxSums < 1:
		return fmt.Errorf("max sums: want at least 1, got %d", o.MaxSums)
	case o.MaxSumBytes < 1:
		return fmt.Errorf("max sum bytes: want at least 1, got %d", o.MaxSumBytes)
	case o.Retention < time.Minute:
		return fmt.Errorf("retention: want at least 1m, got %v", o.Retention)
	case o.Lease < time.Second:
		return fmt.Errorf("lease: want at least 1s, got %v", o.Lease)
	}
	return nil
}
