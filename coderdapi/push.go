package coderdapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/contract"
	"github.com/coder/agentstatsd/internal/decoded"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	maxReplicaBytes = 256
	minPushInterval = time.Second
	maxPushInterval = time.Hour
	// maxPushRefusals of one snapshot are sent.
	maxPushRefusals = 64
	// pushFamilyBytes are what a family takes beside its own bytes.
	pushFamilyBytes = 24
)

var errSuperseded = status.Error(codes.Aborted, "superseded by a newer stream of the instance")

// PushMetrics implements agentstatsv1.CoderdServiceServer.
func (s *Service) PushMetrics(stream grpc.BidiStreamingServer[agentstatsv1.PushMetricsRequest, agentstatsv1.PushMetricsResponse]) error {
	if err := s.server.BeginStream(); err != nil {
		return err
	}
	defer s.server.EndStream()
	if grpcserver.CallerFrom(stream.Context()).IsPusher {
		if !s.pushersPushes.TryAcquire() {
			s.metrics.refused.WithLabelValues(refusedPush).Inc()
			return grpcserver.Exhausted(time.Second, fmt.Sprintf("want at most %d pushes at once of those who may only push, a share of %s", s.pushersPushes.Limit(), flagInstances))
		}
		defer s.pushersPushes.Release()
	}
	if !s.pushes.TryAcquire() {
		s.metrics.refused.WithLabelValues(refusedPush).Inc()
		return grpcserver.Exhausted(time.Second, fmt.Sprintf("want at most %d pushes at once (%s)", s.opts.Load().MaxPushes, flagInstances))
	}
	defer s.pushes.Release()
	s.metrics.pushes.Inc()
	defer s.metrics.pushes.Dec()

	ctx := stream.Context()
	requests := receive(ctx, s.server, stream.Recv)
	first, err := awaitFirst(ctx, s.server, requests, "hello")
	if err != nil {
		return err
	}
	reservationFrom(ctx).keepBytes(0)
	snapshot, err := checkPushHello(first.GetHello())
	if err != nil {
		return err
	}
	if snapshot.PassThrough && grpcserver.CallerFrom(ctx).IsPusher {
		return status.Error(codes.PermissionDenied, "hello.pass_through: is not for a token that may only push (--push-token-file), as it takes the place of agents")
	}
	p := &push{service: s, stream: stream, requests: requests, snapshot: snapshot}
	p.instance, p.superseded = s.instances.addStream(snapshot.Instance)
	defer s.instances.removeStream(snapshot.Instance, p.superseded)
	return p.run()
}

// checkPushHello returns a push without families.
func checkPushHello(hello *agentstatsv1.PushHello) (agent.Push, error) {
	if hello == nil {
		return agent.Push{}, grpcserver.Invalid("hello", "want it as the first message")
	}
	if problem := contract.TextProblem(hello.GetReplica(), 1, maxReplicaBytes); problem != "" {
		return agent.Push{}, grpcserver.Invalid("hello.replica", "%s", problem)
	}
	id := hello.GetInstanceId()
	if len(id) != len(agent.Instance{}) {
		return agent.Push{}, grpcserver.Invalid("hello.instance_id", "want %d bytes, got %d", len(agent.Instance{}), len(id))
	}
	if agent.Instance(id) == (agent.Instance{}) {
		return agent.Push{}, grpcserver.Invalid("hello.instance_id", "want random bytes, got zeros")
	}
	interval := hello.GetInterval().AsDuration()
	if hello.GetInterval().CheckValid() != nil || interval < minPushInterval || interval > maxPushInterval {
		return agent.Push{}, grpcserver.Invalid("hello.interval", "want %v to %v, got %v", minPushInterval, maxPushInterval, interval)
	}
	return agent.Push{Replica: hello.GetReplica(), Instance: agent.Instance(id), Interval: interval, PassThrough: hello.GetPassThrough()}, nil
}

// push is a stream of snapshots after its hello.
type push struct {
	service    *Service
	stream     grpc.BidiStreamingServer[agentstatsv1.PushMetricsRequest, agentstatsv1.PushMetricsResponse]
	requests   <-chan received[*agentstatsv1.PushMetricsRequest]
	instance   *pushInstance
	superseded chan struct{} // closed when a newer stream of the instance came

	// snapshot is the one that is being collected; its number is that of the
	// one before.
	snapshot agent.Push
	size     int
	decoded  int // what its families take in memory once decoded

	logged pushRefusals
}

// pushedFamilies estimates what a family takes.
var pushedFamilies = decoded.New(&dto.MetricFamily{})

// expandedFamily is how many times the limit of its message a family may take in memory
// once it is decoded. expandedPush is how many times its own limit a snapshot may. Series
// with three short labels take some eight times their size.
const (
	expandedFamily = 16
	expandedPush   = 4
)

func (p *push) run() error {
	ctx := p.stream.Context()
	for {
		select {
		case r := <-p.requests:
			if errors.Is(r.err, io.EOF) {
				return nil // what has no end is not a snapshot
			}
			if r.err != nil {
				return r.err
			}
			if err := p.handleRequest(ctx, r.message); err != nil {
				return err
			}
		case <-p.superseded:
			return errSuperseded
		case <-p.service.server.Draining():
			return grpcserver.ErrDraining
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// handleRequest takes in one request. An error is the status to end the stream
// with.
func (p *push) handleRequest(ctx context.Context, req *agentstatsv1.PushMetricsRequest) error {
	before := p.size
	defer func() { reservationFrom(ctx).keepBytes(max(0, p.size-before)) }()
	switch message := req.GetMessage().(type) {
	case *agentstatsv1.PushMetricsRequest_Families:
		return p.addFamilies(message.Families.GetFamilies())
	case *agentstatsv1.PushMetricsRequest_End:
		return p.finishSnapshot(ctx, message.End)
	case *agentstatsv1.PushMetricsRequest_Hello:
		return grpcserver.Invalid("hello", "want it as the first message only")
	}
	return grpcserver.Invalid("message", "want one of families and end, got none")
}

// addFamilies adds a part to the snapshot.
func (p *push) addFamilies(families [][]byte) error {
	for i, f := range families {
		p.size += len(f) + pushFamilyBytes
		// The families are decoded one after another, the series that they become
		// stay.
		most := expandedFamily * p.service.server.Options().MaxMessageBytes
		n, err := pushedFamilies.Bytes(f, most)
		if err != nil {
			continue // it is refused with those that are not what they should be
		}
		if n > most {
			p.service.metrics.oversizedPushes.Inc()
			return status.Errorf(codes.ResourceExhausted, "families.families[%d]: want at most %d bytes in memory once decoded (%d times %s), got %d encoded and more decoded: it has too many elements", i, most, expandedFamily, grpcserver.FlagMessageBytes, len(f))
		}
		p.decoded += n
	}
	if limit := expandedPush * p.service.opts.Load().MaxPushBytes; p.decoded > limit {
		p.service.metrics.oversizedPushes.Inc()
		return status.Errorf(codes.ResourceExhausted, "families: want at most %d bytes in memory once decoded (%d times %s), got %d so far: they have too many elements", limit, expandedPush, flagPushBytes, p.decoded)
	}
	if limit := p.service.opts.Load().MaxPushBytes; p.size > limit {
		p.service.metrics.oversizedPushes.Inc()
		return status.Errorf(codes.ResourceExhausted, "families: want at most %d bytes in a snapshot (%s), with %d for each family, got %d so far", limit, flagPushBytes, pushFamilyBytes, p.size)
	}
	p.snapshot.Families = append(p.snapshot.Families, families...)
	return nil
}

// finishSnapshot stores the snapshot and answers it.
func (p *push) finishSnapshot(ctx context.Context, end *agentstatsv1.PushEnd) error {
	if end.GetSnapshot() <= p.snapshot.Snapshot {
		return grpcserver.Invalid("end.snapshot", "want above %d, got %d", p.snapshot.Snapshot, end.GetSnapshot())
	}
	p.snapshot.Snapshot, p.snapshot.Final, p.snapshot.ScrapedAt = end.GetSnapshot(), end.GetFinal(), time.Time{}
	if end.GetAge() != nil {
		age := end.GetAge().AsDuration()
		if end.GetAge().CheckValid() != nil || age < 0 || age > maxPushInterval {
			return grpcserver.Invalid("end.age", "want 0 to %v, got %v", maxPushInterval, age)
		}
		p.snapshot.ScrapedAt = time.Now().Add(-age)
	}
	refused, err := p.storeSnapshot(ctx)
	superseded := errors.Is(err, agent.ErrNewerScrape)
	if superseded {
		err = nil
	}
	p.snapshot.Families, p.size, p.decoded = nil, 0, 0
	reservationFrom(ctx).releaseKept()
	if err != nil {
		return err
	}
	reservationFrom(ctx).markAnswered()
	p.logRefused(refused)
	resp := &agentstatsv1.PushMetricsResponse{Snapshot: end.GetSnapshot(), RefusedCount: int64(len(refused)), Superseded: superseded}
	for _, r := range refused[:min(len(refused), maxPushRefusals)] {
		resp.Refused = append(resp.Refused, &agentstatsv1.FamilyRefusal{
			Name:    agent.ShortenText(r.Name, contract.MaxNameBytes),
			Reason:  r.Reason,
			Message: agent.ShortenText(r.Message, contract.MaxRefusalText),
			Series:  int64(r.Series),
		})
	}
	return p.stream.Send(resp)
}

// storeSnapshot stores the snapshot and serves it. Snapshots of one instance come
// one after another, and none of an older stream after one of a newer.
func (p *push) storeSnapshot(ctx context.Context) ([]agent.PushRefusal, error) {
	select {
	case p.instance.storing <- struct{}{}:
		defer func() { <-p.instance.storing }()
	case <-p.superseded:
		return nil, errSuperseded
	case <-p.service.server.Stopping():
		return nil, grpcserver.ErrDraining
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-p.superseded:
		return nil, errSuperseded
	default:
	}
	refused, err := p.service.Pushes.Push(ctx, time.Now(), p.snapshot)
	if err != nil {
		switch {
		case errors.Is(err, agent.ErrNewerScrape):
			return nil, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		return nil, p.failure(ctx, err)
	}
	return refused, nil
}

// failure returns the status for coderd of a snapshot of which nothing is taken in.
func (p *push) failure(ctx context.Context, err error) error {
	s := p.service
	log := s.log.With("replica", p.snapshot.Replica, "error", err)
	switch {
	case errors.Is(err, agent.ErrNoRoom):
		s.pushesWithoutRoom.Log(ctx, log, slog.LevelWarn, "pushes", 1, "a push is refused, as there is no room for it")
		return grpcserver.Exhausted(p.snapshot.Interval, err.Error())
	case errors.Is(err, agent.ErrRejected):
		s.rejectedPushes.Log(ctx, log, slog.LevelError, "pushes", 1, "the database refuses a push")
		return status.Error(codes.InvalidArgument, "the database refuses the data")
	}
	s.failedPushes.Log(ctx, log, slog.LevelError, "pushes", 1, "a push could not be taken in")
	return grpcserver.ErrDatabaseDown
}

// pushInstances are the instances of coderd that have streams.
type pushInstances struct {
	mu sync.Mutex
	// Guarded by mu.
	byID map[agent.Instance]*pushInstance
}

// pushInstance is one of them.
type pushInstance struct {
	// storing is a semaphore of one: one snapshot of the instance is stored at a
	// time.
	storing chan struct{}

	// Guarded by pushInstances.mu.
	streams int
	newest  chan struct{} // superseded of the newest stream; nil: that has left
}

func newPushInstances() *pushInstances {
	return &pushInstances{byID: make(map[agent.Instance]*pushInstance)}
}

// addStream makes a stream the instance's only one: the channel of the one before
// is closed. It returns the stream's own channel.
func (p *pushInstances) addStream(id agent.Instance) (*pushInstance, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.byID[id]
	if i == nil {
		i = &pushInstance{storing: make(chan struct{}, 1)}
		p.byID[id] = i
	}
	if i.newest != nil {
		close(i.newest)
	}
	i.streams++
	i.newest = make(chan struct{})
	return i, i.newest
}

// removeStream removes a stream that ended, which may be superseded.
func (p *pushInstances) removeStream(id agent.Instance, superseded chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.byID[id]
	if i.newest == superseded {
		i.newest = nil
	}
	i.streams--
	if i.streams == 0 {
		delete(p.byID, id)
	}
}
