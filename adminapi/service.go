// Package adminapi answers the questions of the people who run the service. It serves
// agentstats.v1.AdminService, from which the page, the JSON of the status API and the
// operators' commands are made.
package adminapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/adminapi/internal/explain"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/outage"
	"github.com/coder/agentstatsd/internal/tap"
	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/refusals"
)

// Refusals knows who was refused what. refusals.Refusals is one.
type Refusals interface {
	Newest(limit int) []refusals.Last
	Of(id agent.ID) (refusals.Last, bool)
	Sums(by refusals.Group) (all []refusals.Sum, others int64)
}

// Pushes knows who pushes families. pushed.Families is one.
type Pushes interface {
	Instances() []agent.PushInstance
	explain.Pushed
}

// Components are what a Service asks. All but Replicas and Statuses are required.
type Components struct {
	Fleet    *fleet.Fleet
	Series   Series
	Costs    Costs
	Metadata MetadataReader
	Pending  Pending
	Taps     *tap.Taps // of what agents send
	Refusals Refusals
	Pushes   Pushes
	// Metrics are those of the service itself, without agents' series.
	Metrics prometheus.Gatherer
	// Identity of this replica.
	Identity Identity
	// Replicas and Statuses are nil of one that is alone.
	Replicas Replicas
	Statuses Statuses
	// Self returns what they do not say of this replica, at once.
	Self func() Self
	// Config returns the options in force, and their hash.
	Config func() (options []optiontable.Row, hash uint64)
	// LogTail returns the newest lines of the log.
	LogTail func() []byte
}

var _ agentstatsv1.AdminServiceServer = (*Service)(nil)

// Service answers operators. Its methods may be called concurrently, and by others than
// gRPC.
type Service struct {
	agentstatsv1.UnsafeAdminServiceServer // without methods: none may be missing
	Components
	server     *grpcserver.Server
	log        *slog.Logger
	metrics    *metrics
	explainer  explain.Explainer
	explaining chan struct{} // a semaphore of explanations
	outage     *outage.Log   // of the exchange of statuses
	others     others
	history    history
	shortages  shortages
	bundles    sync.Mutex    // held while one is collected
	costing    sync.Mutex    // held while costs are counted
	describing chan struct{} // a semaphore of those who describe an agent
	tops       atomic.Int32  // streams of TopAgents
}

// New returns a Service that the server serves: it is registered with it. Its metrics are
// registered with reg.
func New(server *grpcserver.Server, c Components, reg prometheus.Registerer, log *slog.Logger) (*Service, error) {
	switch {
	case c.Fleet == nil, c.Series == nil, c.Costs == nil, c.Metadata == nil, c.Pending == nil, c.Taps == nil, c.Refusals == nil, c.Pushes == nil, c.Metrics == nil,
		c.Self == nil, c.Config == nil, c.LogTail == nil:
		return nil, fmt.Errorf("adminapi components: one is absent: %+v", c)
	case (c.Replicas == nil) != (c.Statuses == nil):
		return nil, errors.New("adminapi components: want both of Replicas and Statuses, or none")
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("adminapi: %w", err)
	}
	s := &Service{
		Components: c, server: server, log: log, metrics: m, describing: make(chan struct{}, maxDescriptions), explaining: make(chan struct{}, maxExplanations),
		outage: outage.New(log, "the replicas do not tell each other how they are, trying again", "the replicas tell each other how they are again"),
	}
	s.explainer = explain.Explainer{Fleet: c.Fleet, Series: c.Series, Pushed: c.Pushes, Refusals: c.Refusals, Metrics: c.Metrics, Place: s.place}
	server.Register(grpcserver.Service{
		Desc: &agentstatsv1.AdminService_ServiceDesc,
		Impl: s,
		Role: grpcserver.RoleCoderd,
		ForOperators: []string{
			agentstatsv1.AdminService_GetStatus_FullMethodName,
			agentstatsv1.AdminService_GetConfig_FullMethodName,
			agentstatsv1.AdminService_GetHistory_FullMethodName,
			agentstatsv1.AdminService_SearchAgents_FullMethodName,
			agentstatsv1.AdminService_DescribeAgent_FullMethodName,
			agentstatsv1.AdminService_ListRefusals_FullMethodName,
			agentstatsv1.AdminService_GetCardinality_FullMethodName,
			agentstatsv1.AdminService_GetCost_FullMethodName,
			agentstatsv1.AdminService_ListPushes_FullMethodName,
			agentstatsv1.AdminService_ExplainSeries_FullMethodName,
			agentstatsv1.AdminService_WatchAgent_FullMethodName,
			agentstatsv1.AdminService_TopAgents_FullMethodName,
			agentstatsv1.AdminService_CollectBundle_FullMethodName,
		},
	})
	return s, nil
}

// Run remembers the last hour, and tells the other replicas how this one is, until ctx
// ends. It returns nil. To be called once.
func (s *Service) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { s.sample(ctx) })
	if s.Statuses != nil {
		s.exchangeStatuses(ctx)
	}
	return nil
}
