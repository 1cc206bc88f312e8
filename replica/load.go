package replica

import (
	"context"
	"slices"

	"github.com/coder/agentstatsd/agent"
)

// ExchangeLoads stores this replica's load with its next heartbeat, and returns the
// loads that the last heartbeat read. It touches memory only. Its error is nil.
func (r *Replicas) ExchangeLoads(_ context.Context, load agent.Load) (agent.ServiceLoad, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.load = load
	return agent.ServiceLoad{
		Replicas:       append(slices.Clone(r.others), r.describeSelfLocked()),
		IntervalFactor: r.intervalFactor,
		Decides:        r.leads && r.memberLocked(),
	}, nil
}

// DecideIntervalFactor stores the factor that this replica decided, and makes all
// replicas read it. If another replica has the lease, the error wraps
// agent.ErrOutdated.
func (r *Replicas) DecideIntervalFactor(ctx context.Context, factor float64) error {
	if err := r.store.SaveIntervalFactor(ctx, r.self, factor); err != nil {
		return err
	}
	r.publish(ctx, kindChange)
	r.wakeRun()
	return nil
}

// describeSelf returns this replica for a heartbeat.
func (r *Replicas) describeSelf() agent.Replica {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.describeSelfLocked()
}

func (r *Replicas) describeSelfLocked() agent.Replica {
	return agent.Replica{ID: r.self, Name: r.opts.Name, Load: r.load, Config: r.config, Phase: r.phase}
}

// noteLoadsLocked keeps the loads and the factor that a heartbeat read.
func (r *Replicas) noteLoadsLocked(replicas []agent.Replica, lease agent.Lease) {
	r.intervalFactor = lease.IntervalFactor
	r.others = r.others[:0]
	for _, other := range replicas {
		if _, live := r.live[other.ID]; live {
			r.others = append(r.others, other)
		}
	}
}
