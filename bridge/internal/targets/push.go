package targets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxPartBytes bounds the families of one request, unless one alone is larger.
	maxPartBytes = 256 << 10
	// requestOverhead is more than the tags and lengths around the only family of a
	// request.
	requestOverhead = 32
	// minMessageBytes is what a request with a name and an id takes, and more.
	minMessageBytes = 4 << 10
	// maxReplicaBytes is the longest name of an instance.
	maxReplicaBytes = 256
)

// push is a snapshot on its way to the service.
type push struct {
	hello    *agentstatsv1.PushHello
	families [][]byte
	// scrapedAt is when the scrape began, by the monotonic clock of this process.
	scrapedAt time.Time
	final     bool
}

// send pushes over a stream of its own, and returns the answer. The client's Pusher
// pushes what its own process has, at its own pace, and a last snapshot at its end. Here
// a scrape decides when and for which instance, and the end of a bridge is none of coderd.
func (p *push) send(ctx context.Context, service agentstatsv1.CoderdServiceClient) (*agentstatsv1.PushMetricsResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := service.PushMetrics(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.sendAll(stream); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	// After EOF this has the reason.
	answer, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the stream ended without an answer")
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}

func (p *push) sendAll(stream agentstatsv1.CoderdService_PushMetricsClient) error {
	err := stream.Send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_Hello{Hello: p.hello}})
	if err != nil {
		return err
	}
	for rest := p.families; len(rest) > 0; {
		n, size := 0, 0
		for n < len(rest) && (n == 0 || size+len(rest[n]) <= maxPartBytes) {
			size += len(rest[n])
			n++
		}
		part := &agentstatsv1.PushFamilies{Families: rest[:n]}
		if err := stream.Send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_Families{Families: part}}); err != nil {
			return err
		}
		rest = rest[n:]
	}
	err = stream.Send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_End{End: &agentstatsv1.PushEnd{
		Snapshot: 1, // of this stream: the service orders by the age
		Final:    p.final,
		Age:      durationpb.New(time.Since(p.scrapedAt)),
	}}})
	if err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return fmt.Errorf("end the stream: %w", err)
	}
	return nil
}
