package adminapi

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// exchangeInterval is how often a replica says how it is.
	exchangeInterval = 10 * time.Second
	// firstInterval is the time between attempts until the replica has a row.
	firstInterval = time.Second
	// exchangeTimeout bounds one exchange.
	exchangeTimeout = 5 * time.Second
	// maxStatusBytes bounds the status of one replica.
	maxStatusBytes = 32 << 10
	// maxOthers bounds the other replicas that are known: with their statuses 3.2 MB.
	maxOthers = 100
)

// Replicas are those of the service. replica.Replicas is some.
type Replicas interface {
	// Live reports whether another replica is alive, at once.
	Live(id agent.ID) bool
}

// Statuses keep what replicas say of themselves. store.Store does.
type Statuses interface {
	// ExchangeStatus stores the status of the replica self, and returns those of at most
	// most others, the newest first. Of one above mostBytes the text is nil. stored is
	// false if self has no row yet.
	ExchangeStatus(ctx context.Context, self agent.ID, status []byte, most, mostBytes int) (others []agent.SavedStatus, stored bool, err error)
}

// others are what other replicas said last of themselves.
type others struct {
	mu  sync.RWMutex
	all []other // in the order of their names and ids; guarded by mu
}

// other is one of others. It does not change.
type other struct {
	id     agent.ID
	status *agentstatsv1.ReplicaStatus
	said   time.Time
}

// list returns the others, which the caller must not change.
func (o *others) list() []other {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.all
}

// exchangeStatuses says how this replica is, and reads how the others are, until ctx ends.
func (s *Service) exchangeStatuses(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		stored, err := s.exchange(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.metrics.exchangeErrors.Inc()
			s.outage.Failed(ctx, err)
		default:
			s.outage.Works(ctx)
		}
		if err == nil && !stored {
			timer.Reset(firstInterval)
		} else {
			timer.Reset(exchangeInterval)
		}
	}
}

// exchange says how this replica is, and reads how the others are. stored is false if this
// one has no row yet.
func (s *Service) exchange(ctx context.Context) (stored bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	text, err := proto.Marshal(s.status(time.Now()))
	if err != nil {
		return false, err
	}
	saved, stored, err := s.Statuses.ExchangeStatus(ctx, s.Identity.ID, text, maxOthers+1, maxStatusBytes)
	if err != nil {
		return false, err
	}
	now := time.Now()
	var all []other
	for i, one := range saved {
		status := new(agentstatsv1.ReplicaStatus)
		switch {
		case i == maxOthers:
			s.metrics.refused.WithLabelValues(refusedReplicas).Inc()
			continue
		case one.Status == nil:
			s.metrics.refused.WithLabelValues(refusedBytes).Inc()
			continue
		case proto.Unmarshal(one.Status, status) != nil:
			s.metrics.refused.WithLabelValues(refusedUndecodable).Inc()
			continue
		}
		status.Id = one.Replica.String()
		all = append(all, other{one.Replica, status, now.Add(-one.Age)})
	}
	slices.SortFunc(all, func(a, b other) int {
		return cmp.Or(cmp.Compare(a.status.GetName(), b.status.GetName()), cmp.Compare(a.status.GetId(), b.status.GetId()))
	})
	s.others.mu.Lock()
	s.others.all = all
	s.others.mu.Unlock()
	return stored, nil
}

// statusOf returns what another replica said last, at now.
func (s *Service) statusOf(o other, now time.Time) *agentstatsv1.ReplicaStatus {
	r := proto.CloneOf(o.status)
	r.AgeSeconds = max(0, now.Sub(o.said).Seconds())
	r.Alive = s.Replicas.Live(o.id)
	// One that is gone does neither, whatever it said.
	r.Leads = r.GetLeads() && r.GetAlive()
	r.Ready = r.GetReady() && r.GetAlive()
	return r
}

// Place returns the name of a replica, and the URL of its page. Both are empty if they are
// not known. It touches memory only.
func (s *Service) Place(id agent.ID) (name, page string) {
	if id == s.Identity.ID {
		return s.Identity.Name, s.Identity.URL
	}
	for _, o := range s.others.list() {
		if o.id == id {
			return o.status.GetName(), o.status.GetUrl()
		}
	}
	return "", ""
}
