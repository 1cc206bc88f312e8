package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client/internal/gather"
	"github.com/coder/agentstatsd/client/internal/outage"
	"github.com/coder/agentstatsd/client/internal/outbox"
	"github.com/coder/agentstatsd/client/internal/parts"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// defaultPushInterval is how often Prometheus usually scrapes.
	defaultPushInterval = 15 * time.Second
	// defaultPushMessage is the service's own default limit of a message.
	defaultPushMessage = 4 << 20
	// pushOverhead is more than the tags and lengths around the only family of
	// a request.
	pushOverhead = 32
	// pushTimeout bounds the time in which a snapshot is sent and answered.
	pushTimeout = time.Minute
	// maxReplicaBytes is the longest name of an instance.
	maxReplicaBytes = 256
)

// PushOptions are the knobs of a Pusher.
//
// The functions are called one at a time. Run waits for them only so long.
type PushOptions struct {
	// Gatherer of the families to push: the registry that coderd's own endpoint
	// serves. Required. A prometheus.Gatherers is gathered element by element, each
	// bounded by itself. What does not return in time costs only its own families.
	// A Registry is one element: see BoundCollector for its collectors.
	Gatherer prometheus.Gatherer
	// GatherTimeout is how long a snapshot waits for a Gatherer, and Run for
	// OnRefused; 0: 10 s. A call that takes longer is logged and left to itself; no
	// other is begun before it returns. Its families are pushed then.
	GatherTimeout time.Duration
	// Interval between two snapshots, at least 1 s; 0: 15 s. The service serves
	// gauges for three times that after the last snapshot.
	Interval time.Duration
	// Replica is the name of this instance for people, at most 256 bytes; empty:
	// the host's name.
	Replica string
	// InstanceID identifies this process. It changes with a restart, when counters
	// begin anew; zero: random. No other Pusher may have it, as each numbers its
	// snapshots from 1.
	InstanceID uuid.UUID
	// MaxMessageBytes of one request, as the service is set up; 0: 4 MiB. A
	// family that is larger is not sent, and counts as refused.
	MaxMessageBytes int
	// Backoff bounds the waits before it connects again.
	Backoff Backoff
	// OnRefused is called with the families that are not served and why, when these
	// change. They are at most 64 and those that were not sent, which include those
	// that coderd forwards for its agents; count is how many there are.
	OnRefused func(refused []*agentstatsv1.FamilyRefusal, count int64)
	// Logger of streams that break, of a Gatherer that fails or does not return, and
	// of what is refused; nil: none. While no stream opens, that is logged when it begins
	// and each minute.
	Logger *slog.Logger
}

func (o *PushOptions) validate() error {
	switch {
	case o.Gatherer == nil:
		return errors.New("gatherer: is absent")
	case o.Interval < time.Second:
		return fmt.Errorf("interval: is %s, at least 1s is allowed", o.Interval)
	case o.GatherTimeout < 0:
		return errors.New("gather timeout: is negative")
	case len(o.Replica) > maxReplicaBytes:
		return fmt.Errorf("replica: has %d bytes, at most %d are allowed", len(o.Replica), maxReplicaBytes)
	case o.MaxMessageBytes <= pushOverhead:
		return fmt.Errorf("max message bytes: is %d, more than %d is needed", o.MaxMessageBytes, pushOverhead)
	}
	return o.Backoff.validate()
}

// Pusher pushes the families of a process to the service, where Prometheus
// scrapes them, merged with those of the other instances. It keeps the newest snapshot,
// encoded: one that the service did not take in is replaced by the next one.
type Pusher struct {
	service   agentstatsv1.CoderdServiceClient
	opts      PushOptions
	log       *slog.Logger
	gatherers *gather.Gatherers
	onRefused *callback

	// newest is the snapshot that was gathered last.
	newest snapshot
	// number is that of the snapshot that was sent last.
	number int64
	// lastRefused is the text of the last call of OnRefused. loggedRefused and
	// gatherError are what was logged last.
	lastRefused, loggedRefused, gatherError string
	// loggedForwarded are the forwarded families that were logged.
	loggedForwarded map[string]bool
}

// snapshot is what a Pusher gathered at once.
type snapshot struct {
	families [][]byte
	// refused are the families that are not sent, or not with all their series.
	refused   []*agentstatsv1.FamilyRefusal
	forwarded []*forwardedSeries
}

// NewPusher makes a Pusher that talks over conn, which carries coderd's
// credential and which it does not close. It does nothing before Run.
func NewPusher(conn grpc.ClientConnInterface, opts PushOptions) (*Pusher, error) {
	opts.Interval = cmp.Or(opts.Interval, defaultPushInterval)
	opts.GatherTimeout = cmp.Or(opts.GatherTimeout, defaultCallbackTimeout)
	opts.MaxMessageBytes = cmp.Or(opts.MaxMessageBytes, defaultPushMessage)
	if opts.Replica == "" {
		host, err := os.Hostname()
		if err != nil || host == "" {
			host = "unknown"
		}
		opts.Replica = strings.ToValidUTF8(host[:min(len(host), maxReplicaBytes)], "")
	}
	opts.Replica = strings.ToValidUTF8(opts.Replica, "?")
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("push options: %w", err)
	}
	opts.Backoff = opts.Backoff.withDefaults()
	if opts.InstanceID == uuid.Nil {
		// Read never fails.
		_, _ = rand.Read(opts.InstanceID[:])
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	callbacks := &callbacks{timeout: opts.GatherTimeout, log: opts.Logger}
	return &Pusher{
		service: agentstatsv1.NewCoderdServiceClient(conn), opts: opts, log: opts.Logger,
		gatherers: gather.New(opts.Gatherer, opts.GatherTimeout, opts.Logger),
		onRefused: callbacks.named("OnRefused"), loggedForwarded: make(map[string]bool),
	}, nil
}

// PushGatherer pushes all families of g until ctx ends. It is NewPusher, with g as the
// Gatherer of opts, and Run, which says when it returns. Push once in a process: the
// counters of two pushes are summed.
func PushGatherer(ctx context.Context, conn grpc.ClientConnInterface, g prometheus.Gatherer, opts PushOptions) error {
	opts.Gatherer = g
	p, err := NewPusher(conn, opts)
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// Run pushes a snapshot at once and then one each interval, until ctx ends. Then it
// pushes a last one, so that the counters end exact and the gauges go at once, and
// returns nil. It returns at most 5 s after ctx has ended, whatever the Gatherer and
// the service do. If the Gatherer does not return within 2 s then, the newest
// snapshot is pushed again as the last one. The same holds if it has not returned since
// before.
//
// It connects again whenever the stream breaks. It returns an error that trying again
// cannot cure: a credential that is not coderd's, or a service that does not take in
// pushes. A token that is refused after the service took in snapshots is tried again,
// as it may be about to change. So is a service that speaks TLS where plaintext was
// expected, or the reverse, as a restart of the service can change that: the log says
// what to do. Run is called once.
func (p *Pusher) Run(ctx context.Context) error {
	// The last snapshot is sent when ctx has ended already.
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var limiting sync.WaitGroup
	defer limiting.Wait()
	defer cancel()
	limiting.Add(1)
	go func() {
		defer limiting.Done()
		select {
		case <-ctx.Done():
		case <-live.Done():
			return
		}
		timer := time.NewTimer(finalTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-live.Done():
		}
	}()

	var last error
	failures := outage.New(p.log, outage.Streams).Subject(p.log)
	pushes := streams{what: "push metrics", backoff: p.opts.Backoff, log: p.log, failures: failures}
	err := pushes.run(ctx, live, func(answered func()) error {
		last = p.session(ctx, live, answered)
		return last
	})
	if err == nil && last != nil {
		p.log.WarnContext(ctx, "last snapshot was not taken in", "error", last)
	}
	return err
}

// pushStream is one stream of snapshots.
type pushStream = duplex[agentstatsv1.PushMetricsRequest, agentstatsv1.PushMetricsResponse]

// session pushes over one stream until that breaks, or until ctx has ended and the
// last snapshot is taken in: then there is no error. It calls answered after each
// snapshot that was taken in. The stream lives as long as live.
func (p *Pusher) session(ctx, live context.Context, answered func()) error {
	live, cancel := context.WithCancelCause(live)
	stream, err := p.service.PushMetrics(live)
	if err != nil {
		cancel(nil)
		return err
	}
	s := newDuplex(live, func() { cancel(nil) }, stream)
	defer s.close()
	err = s.send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_Hello{Hello: &agentstatsv1.PushHello{
		Replica:    p.opts.Replica,
		InstanceId: p.opts.InstanceID[:],
		Interval:   durationpb.New(p.opts.Interval),
	}}})
	if err != nil {
		return err
	}
	for {
		began := time.Now()
		final := ctx.Err() != nil
		gathered := p.gather(ctx, final)
		if !gathered && !final {
			if err := p.waitForNext(ctx, s, began, gathered); err != nil {
				return err
			}
			continue
		}
		guard := time.AfterFunc(pushTimeout, func() {
			cancel(fmt.Errorf("push snapshot: no answer within %s", pushTimeout))
		})
		err := p.push(ctx, live, s, final)
		guard.Stop()
		if err != nil {
			if cause := context.Cause(live); cause != nil && !errors.Is(cause, context.Canceled) {
				err = cause
			}
			return err
		}
		answered()
		if final {
			s.closeStream()
			return nil
		}
		if err := p.waitForNext(ctx, s, began, gathered); err != nil {
			return err
		}
	}
}

// waitForNext waits until the next snapshot is due, one interval after began, or ctx
// ends. If nothing was gathered, it is due once a Gatherer has returned. An error says
// how the stream ended.
func (p *Pusher) waitForNext(ctx context.Context, s *pushStream, began time.Time, gathered bool) error {
	returned := p.gatherers.Returned()
	if gathered {
		returned = nil
	}
	timer := time.NewTimer(p.opts.Interval - time.Since(began))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-returned:
	case <-ctx.Done():
	case <-s.done:
		return s.err
	}
	return nil
}

// gather makes the newest snapshot of what the Gatherers return in time. It returns
// false if none does: then the one before stays.
func (p *Pusher) gather(ctx context.Context, final bool) bool {
	wait := p.opts.GatherTimeout
	if final {
		ctx, wait = context.WithoutCancel(ctx), min(wait, leaveTimeout)
	}
	families, answered, err := p.gatherers.Gather(ctx, wait)
	p.logGatherError(ctx, err)
	if answered == 0 {
		return false
	}
	p.newest = p.encodeAll(families)
	return true
}

// encodeAll encodes the families that are sent.
func (p *Pusher) encodeAll(families []*dto.MetricFamily) snapshot {
	var out snapshot
	for _, family := range families {
		own, forwarded := withoutForwarded(family)
		if forwarded != nil {
			forwarded.family = strings.ToValidUTF8(forwarded.family, "\uFFFD")
			out.forwarded = append(out.forwarded, forwarded)
			out.refused = append(out.refused, forwarded.refusal())
		}
		if own == nil {
			continue
		}
		encoded, refusal := p.encode(own)
		if refusal != nil {
			out.refused = append(out.refused, refusal)
			continue
		}
		out.families = append(out.families, encoded)
	}
	return out
}

// push sends the newest snapshot and takes in the answer.
func (p *Pusher) push(ctx, live context.Context, s *pushStream, final bool) error {
	part := &agentstatsv1.PushFamilies{}
	size := 0
	send := func() error {
		if len(part.GetFamilies()) == 0 {
			return nil
		}
		err := s.send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_Families{Families: part}})
		part, size = &agentstatsv1.PushFamilies{}, 0
		return err
	}
	target := min(parts.MaxBytes, p.opts.MaxMessageBytes-pushOverhead)
	for _, encoded := range p.newest.families {
		// 8 bytes are more than the tag and length of an element.
		if size+len(encoded)+8 > target {
			if err := send(); err != nil {
				return err
			}
		}
		part.Families = append(part.Families, encoded)
		size += len(encoded) + 8
	}
	if err := send(); err != nil {
		return err
	}
	p.number++
	err := s.send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_End{End: &agentstatsv1.PushEnd{
		Snapshot: p.number,
		Final:    final,
	}}})
	if err != nil {
		return err
	}
	var answer *agentstatsv1.PushMetricsResponse
	select {
	case answer = <-s.responses:
	case <-s.done:
		return s.err
	}
	if answer.GetSnapshot() != p.number {
		return fmt.Errorf("push snapshot: the answer is to snapshot %d, want %d", answer.GetSnapshot(), p.number)
	}
	ends, leave := ctx.Done(), leaveTimeout
	if final {
		ends, leave = live.Done(), 0
	}
	p.logForwarded(ctx)
	p.notifyRefused(ctx, append(slices.Clone(p.newest.refused), answer.GetRefused()...), int64(len(p.newest.refused))+answer.GetRefusedCount(),
		func(f func()) bool { return p.onRefused.run(ends, leave, f) })
	return nil
}

// encode returns the family as it is sent, or why it is not.
func (p *Pusher) encode(family *dto.MetricFamily) ([]byte, *agentstatsv1.FamilyRefusal) {
	name := strings.ToValidUTF8(family.GetName(), "\uFFFD")
	encoded, err := proto.Marshal(family)
	if err != nil {
		return nil, &agentstatsv1.FamilyRefusal{Name: name, Reason: reasonMalformed, Message: err.Error()}
	}
	if limit := p.opts.MaxMessageBytes - pushOverhead; len(encoded) > limit {
		return nil, &agentstatsv1.FamilyRefusal{
			Name:    name,
			Reason:  outbox.ReasonMessageSize,
			Message: fmt.Sprintf("family: has %d bytes, at most %d fit into a message", len(encoded), limit),
		}
	}
	return encoded, nil
}

// reasonMalformed is why a family that cannot be encoded is not sent.
const reasonMalformed = "malformed"
