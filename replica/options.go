package replica

import (
	"cmp"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
)

// Options of Replicas. A zero field takes its default.
type Options struct {
	// ID of this replica, which must be new; zero: one at random.
	ID agent.ID
	// Name of this replica for people; at most 256 bytes are kept.
	Name string
	// LeaseDuration is the time without a heartbeat after which the others consider a
	// replica gone; default 15 s, at least 2 s.
	LeaseDuration time.Duration
}

func (o Options) withDefaults() Options {
	if o.ID == (agent.ID{}) {
		o.ID = uuid.New()
	}
	o.LeaseDuration = cmp.Or(o.LeaseDuration, 15*time.Second)
	o.Name = agent.ShortenText(o.Name, maxNameBytes)
	return o
}

func (o Options) validate() error {
	if o.LeaseDuration < 2*time.Second {
		return fmt.Errorf("lease duration: want at least 2s, got %v", o.LeaseDuration)
	}
	return nil
}
