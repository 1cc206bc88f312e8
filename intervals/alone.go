package intervals

import (
	"context"

	"github.com/coder/agentstatsd/agent"
)

// Store is the database of a service without other replicas. store.Store is one.
type Store interface {
	Lease(ctx context.Context) (agent.Lease, error)
	SaveIntervalFactor(ctx context.Context, holder agent.ID, factor float64) error
}

// Alone is the Replicas of a service without other replicas. It needs no lease and
// records no heartbeats. The factor is stored, so it survives restarts. Alone is not
// safe for concurrent use.
type Alone struct {
	store  Store
	factor float64 // 0: not read yet
}

// NewAlone returns the Replicas of a service that is alone.
func NewAlone(store Store) *Alone { return &Alone{store: store} }

// ExchangeLoads returns the load of this replica, and the factor, which the first call
// reads from the database.
func (a *Alone) ExchangeLoads(ctx context.Context, load agent.Load) (agent.ServiceLoad, error) {
	if a.factor == 0 {
		lease, err := a.store.Lease(ctx)
		if err != nil {
			return agent.ServiceLoad{}, err
		}
		a.factor = lease.IntervalFactor
	}
	return agent.ServiceLoad{Replicas: []agent.Replica{{Load: load}}, IntervalFactor: a.factor, Decides: true}, nil
}

// DecideIntervalFactor stores the factor in the database.
func (a *Alone) DecideIntervalFactor(ctx context.Context, factor float64) error {
	if err := a.store.SaveIntervalFactor(ctx, agent.ID{}, factor); err != nil {
		return err
	}
	a.factor = factor
	return nil
}
