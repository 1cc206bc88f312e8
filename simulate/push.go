package simulate

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/backoff"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	tickInterval = time.Second
	// ownedByService is why the service refuses a family that is its own.
	ownedByService = "owned_by_service"
)

// instances are the instances of coderd that push their metrics.
type instances struct {
	all        []*instance
	unexpected atomic.Int64
	log        *slog.Logger
}

// instance is one of them. Its counts are those of its stream.
type instance struct {
	grpc.ClientConnInterface
	registry *CoderdRegistry
	pusher   *client.Pusher

	sent, acked atomic.Int64
	// refused of the newest snapshot.
	refused atomic.Int64
	// final is true if the last snapshot was acked.
	final atomic.Bool
}

func newInstances(o Options, conn grpc.ClientConnInterface, log *slog.Logger) (*instances, error) {
	p := &instances{log: log}
	for i := range o.Coderds {
		in := &instance{ClientConnInterface: conn, registry: NewCoderdRegistry(o.Seed + uint64(i))}
		var err error
		in.pusher, err = client.NewPusher(in, client.PushOptions{
			Gatherer:  in.registry,
			Interval:  o.PushInterval,
			Replica:   fmt.Sprintf("%s-coderd-%d", o.Fleet, i),
			Backoff:   o.Backoff,
			OnRefused: p.onRefused,
		})
		if err != nil {
			return nil, err
		}
		p.all = append(p.all, in)
	}
	return p, nil
}

// run lets the instances live and push until ctx ends and each has pushed a last
// snapshot.
func (p *instances) run(ctx context.Context) {
	var running sync.WaitGroup
	for _, in := range p.all {
		in.registry.Tick(time.Now())
		running.Go(func() {
			err := in.pusher.Run(ctx)
			switch {
			case status.Code(err) == codes.Unimplemented:
				p.log.WarnContext(ctx, "the service takes in no metrics of coderd", "error", err)
			case err != nil:
				p.unexpected.Add(1)
				p.log.WarnContext(ctx, "coderd pushes no more", "error", err)
			case !in.final.Load():
				p.unexpected.Add(1)
			}
		})
	}
	for len(p.all) > 0 && backoff.Sleep(ctx, tickInterval) {
		now := time.Now()
		for _, in := range p.all {
			in.registry.Tick(now)
		}
	}
	running.Wait()
}

// onRefused counts what should not be refused.
func (p *instances) onRefused(refused []*agentstatsv1.FamilyRefusal, _ int64) {
	for _, r := range refused {
		if r.GetReason() != ownedByService {
			p.unexpected.Add(1)
			p.log.Warn("a family of coderd is refused", "family", r.GetName(), "reason", r.GetReason(), "message", r.GetMessage())
		}
	}
}

// addTo adds what was pushed to a summary, after run has returned.
func (p *instances) addTo(s *Summary) {
	for _, in := range p.all {
		s.PushesSent += in.sent.Load()
		s.PushesAcked += in.acked.Load()
		s.FamiliesRefused += in.refused.Load()
	}
	s.Errors += p.unexpected.Load()
}

// NewStream implements grpc.ClientConnInterface.
func (in *instance) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := in.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &pushStream{ClientStream: stream, instance: in}, nil
}

// pushStream counts the snapshots of one stream.
type pushStream struct {
	grpc.ClientStream
	instance *instance
	// final is true once the last snapshot was sent. The answer to it is the
	// last message.
	final atomic.Bool
}

// SendMsg implements grpc.ClientStream.
func (s *pushStream) SendMsg(m any) error {
	req, _ := m.(*agentstatsv1.PushMetricsRequest)
	end := req.GetEnd()
	// Before it is sent, as the answer may come first.
	s.final.Store(end.GetFinal())
	err := s.ClientStream.SendMsg(m)
	if err == nil && end != nil {
		s.instance.sent.Add(1)
	}
	return err
}

// RecvMsg implements grpc.ClientStream.
func (s *pushStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	if answer, ok := m.(*agentstatsv1.PushMetricsResponse); ok {
		s.instance.acked.Add(1)
		s.instance.refused.Store(answer.GetRefusedCount())
		s.instance.final.Store(s.final.Load())
	}
	return nil
}
