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
// The functions are called by the goroutine of Run. They must not block for
// long.
type PushOptions struct {
	// Gatherer of the families to push, like prometheus.DefaultGatherer.
	// Required.
	Gatherer prometheus.Gatherer
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
	// change. They are at most 64 and those that were not sent; count is how many
	// there are.
	OnRefused func(refused []*agentstatsv1.FamilyRefusal, count int64)
	// Logger of streams that break, of errors of the Gatherer and of what is
	// refused; nil: none.
	Logger *slog.Logger
}

func (o *PushOptions) validate() error {
	switch {
	case o.Gatherer == nil:
		return errors.New("gatherer: is absent")
	case o.Interval < time.Second:
		return fmt.Errorf("interval: is %s, at least 1s is allowed", o.Interval)
	case len(o.Replica) > maxReplicaBytes:
		return fmt.Errorf("replica: has %d bytes, at most %d are allowed", len(o.Replica), maxReplicaBytes)
	case o.MaxMessageBytes <= pushOverhead:
		return fmt.Errorf("max message bytes: is %d, more than %d is needed", o.MaxMessageBytes, pushOverhead)
	}
	return o.Backoff.validate()
}

// Pusher pushes the families of a process to the service, where Prometheus
// scrapes them, merged with those of the other instances. It keeps nothing: a
// snapshot that the service did not take in is replaced by the next one.
type Pusher struct {
	service agentstatsv1.CoderdServiceClient
	opts    PushOptions
	log     *slog.Logger

	// snapshot is the number of the newest one.
	snapshot int64
	// lastRefused is the text of the last call of OnRefused, gatherError what was
	// logged last.
	lastRefused string
	gatherError string
}

// NewPusher makes a Pusher that talks over conn, which carries coderd's
// credential and which it does not close. It does nothing before Run.
func NewPusher(conn grpc.ClientConnInterface, opts PushOptions) (*Pusher, error) {
	opts.Interval = cmp.Or(opts.Interval, defaultPushInterval)
	opts.MaxMessageBytes = cmp.Or(opts.MaxMessageBytes, defaultPushMessage)
	if opts.Replica == "" {
		host, err := os.Hostname()
		if err != nil || host == "" {
			host = "unknown"
		}
		opts.Replica = shortenText(host, maxReplicaBytes)
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
	p := &Pusher{service: agentstatsv1.NewCoderdServiceClient(conn), opts: opts, log: opts.Logger}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	return p, nil
}

// PushGatherer pushes all families of g each interval, at least 1 s, until ctx
// ends. It is NewPusher and Run with no other options.
func PushGatherer(ctx context.Context, conn grpc.ClientConnInterface, g prometheus.Gatherer, interval time.Duration) error {
	p, err := NewPusher(conn, PushOptions{Gatherer: g, Interval: interval})
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// Run pushes a snapshot at once and then one each interval, until ctx ends. Then it
// pushes a last one, so that the counters end exact and the gauges go at once. It
// waits for the answer at most 5 s, and returns nil. It connects again whenever the
// stream breaks. It returns an error that trying again cannot cure: a credential
// that is not coderd's, or a service that does not take in pushes. It is called
// once.
func (p *Pusher) Run(ctx context.Context) error {
	// The last snapshot is sent when ctx has ended already.
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var limiting sync.WaitGroup
	defer limiting.Wait()
	defer cancel()
	limiting.Go(func() {
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
	})

	var last error
	pushes := streams{what: "push metrics", backoff: p.opts.Backoff, log: p.log}
	err := pushes.run(ctx, live, func() (answered bool, err error) {
		answered, last = p.session(ctx, live)
		return answered, last
	})
	if err == nil && last != nil {
		p.log.WarnContext(ctx, "last snapshot was not taken in", "error", last)
	}
	return err
}

// pushStream is one stream of snapshots.
type pushStream = duplex[agentstatsv1.PushMetricsRequest, agentstatsv1.PushMetricsResponse]

// session pushes over one stream until that breaks, or until ctx has ended and the
// last snapshot is taken in: then there is no error. answered is true if any
// snapshot was taken in. The stream lives as long as live.
func (p *Pusher) session(ctx, live context.Context) (answered bool, err error) {
	live, cancel := context.WithCancelCause(live)
	stream, err := p.service.PushMetrics(live)
	if err != nil {
		cancel(nil)
		return false, err
	}
	s := newDuplex(live, func() { cancel(nil) }, stream)
	defer s.close()
	err = s.send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_Hello{Hello: &agentstatsv1.PushHello{
		Replica:    p.opts.Replica,
		InstanceId: p.opts.InstanceID[:],
		Interval:   durationpb.New(p.opts.Interval),
	}}})
	if err != nil {
		return false, err
	}
	for {
		began := time.Now()
		final := ctx.Err() != nil
		guard := time.AfterFunc(pushTimeout, func() {
			cancel(fmt.Errorf("push snapshot: no answer within %s", pushTimeout))
		})
		err := p.push(ctx, s, final)
		guard.Stop()
		if err != nil {
			if cause := context.Cause(live); cause != nil && !errors.Is(cause, context.Canceled) {
				err = cause
			}
			return answered, err
		}
		answered = true
		if final {
			s.closeStream()
			return true, nil
		}
		timer := time.NewTimer(p.opts.Interval - time.Since(began))
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-s.done:
		}
		timer.Stop()
	}
}

// push sends one snapshot and takes in the answer.
func (p *Pusher) push(ctx context.Context, s *pushStream, final bool) error {
	families, gatherErr := p.opts.Gatherer.Gather()
	p.logGatherError(ctx, gatherErr)
	var refused []*agentstatsv1.FamilyRefusal
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
	target := min(maxPartBytes, p.opts.MaxMessageBytes-pushOverhead)
	for _, family := range families {
		encoded, refusal := p.encode(family)
		if refusal != nil {
			refused = append(refused, refusal)
			continue
		}
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
	p.snapshot++
	err := s.send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_End{End: &agentstatsv1.PushEnd{
		Snapshot: p.snapshot,
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
	if answer.GetSnapshot() != p.snapshot {
		return fmt.Errorf("push snapshot: the answer is to snapshot %d, want %d", answer.GetSnapshot(), p.snapshot)
	}
	p.notifyRefused(ctx, append(refused, answer.GetRefused()...), int64(len(refused))+answer.GetRefusedCount())
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
			Reason:  reasonMessageSize,
			Message: fmt.Sprintf("family: has %d bytes, at most %d fit into a message", len(encoded), limit),
		}
	}
	return encoded, nil
}

// reasonMalformed is why a family that cannot be encoded is not sent.
const reasonMalformed = "malformed"

// logGatherError logs an error of the Gatherer unless it was logged last time.
func (p *Pusher) logGatherError(ctx context.Context, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != p.gatherError {
		p.log.WarnContext(ctx, "some families were not gathered", "error", err)
	}
	p.gatherError = text
}

// notifyRefused calls OnRefused and logs what is not served, if that changed.
func (p *Pusher) notifyRefused(ctx context.Context, refused []*agentstatsv1.FamilyRefusal, count int64) {
	slices.SortStableFunc(refused, func(a, b *agentstatsv1.FamilyRefusal) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetReason(), b.GetReason()))
	})
	var all strings.Builder
	if count > 0 {
		fmt.Fprint(&all, count)
	}
	names := make([]string, len(refused))
	for i, r := range refused {
		fmt.Fprintf(&all, " %q %q", r.GetName(), r.GetReason())
		names[i] = r.GetName()
	}
	if all.String() == p.lastRefused {
		return
	}
	p.lastRefused = all.String()
	p.log.WarnContext(ctx, "families that are refused have changed", "count", count, "names", names)
	if p.opts.OnRefused != nil {
		p.opts.OnRefused(refused, count)
	}
}
