package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client/internal/outage"
)

// finalTimeout bounds how long a stream goes on after the context of its user has
// ended.
const finalTimeout = 5 * time.Second

// streams opens one stream of coderd after another: of a watch, or of pushes.
//
//	serving --stream breaks--> waiting --backoff--> serving
//	serving --error that trying again cannot cure--> ended
//	serving, waiting --live ends--> ended
type streams struct {
	what     string // the streams are for, like "watch agents"
	backoff  Backoff
	log      *slog.Logger
	failures *outage.Subject
}

// run calls serve for each stream until live ends or serve returns no error: then it
// returns nil. It returns an error that trying again cannot cure, see isFutile. serve
// returns how the stream ended. It calls opened once the stream is of use, and may repeat
// it: then the backoff begins anew. The end of ctx, which is at the latest that of live,
// cuts one wait short.
func (s *streams) run(ctx, live context.Context, serve func(opened func()) error) error {
	defer func() { s.failures.Unneeded(ctx, time.Now()) }()
	accepted, takenOver := false, false
	for attempt := 0; ; attempt++ {
		began, useful := time.Now(), false
		err := serve(func() {
			accepted, useful, takenOver = true, true, false
			s.failures.Opened(ctx, time.Now())
		})
		if err == nil || live.Err() != nil {
			return nil
		}
		if isFutile(err, accepted) {
			s.log.ErrorContext(ctx, "stream refused", "stream", s.what, "error", err)
			return fmt.Errorf("%s: %w", s.what, err)
		}
		if useful && status.Code(err) != codes.Aborted || time.Since(began) >= s.backoff.Max {
			attempt = 0
		}
		wait := s.backoff.wait(attempt) + retryDelay(err)
		attrs := append([]any{"stream", s.what, "error", err, "retry_in", wait}, hint(err)...)
		if code := status.Code(err); code != codes.Aborted {
			s.failures.Failed(ctx, time.Now(), code, attrs...)
		} else if s.failures.Unneeded(ctx, time.Now()); !takenOver {
			takenOver = true
			s.log.InfoContext(ctx, "another one has the stream, trying again until that has ended", attrs...)
		}
		ended := ctx.Done()
		if ctx.Err() != nil {
			ended = nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ended:
			timer.Stop()
			attempt = -1
		case <-live.Done():
			timer.Stop()
		}
		if live.Err() != nil {
			return nil
		}
	}
}

// duplex is a stream in both directions. A goroutine receives, so that the user can
// wait for a response and for something else at once. Its methods are for one
// goroutine.
type duplex[Req, Resp any] struct {
	stream    grpc.BidiStreamingClient[Req, Resp]
	cancel    func()
	responses chan *Resp
	// done is closed when receive has ended. Then err may be read.
	done chan struct{}
	err  error
}

// newDuplex begins to receive. The stream lives as long as ctx, which cancel ends.
func newDuplex[Req, Resp any](ctx context.Context, cancel func(), stream grpc.BidiStreamingClient[Req, Resp]) *duplex[Req, Resp] {
	d := &duplex[Req, Resp]{stream: stream, cancel: cancel, responses: make(chan *Resp), done: make(chan struct{})}
	go d.receive(ctx)
	return d
}

// receive hands on responses until the stream ends.
func (d *duplex[Req, Resp]) receive(ctx context.Context) {
	defer close(d.done)
	for {
		resp, err := d.stream.Recv()
		if errors.Is(err, io.EOF) {
			err = errors.New("the service ended the stream")
		}
		if err != nil {
			d.err = err
			return
		}
		select {
		case d.responses <- resp:
		case <-ctx.Done():
			d.err = ctx.Err()
			return
		}
	}
}

// send sends a request. If the stream has ended, it returns how.
func (d *duplex[Req, Resp]) send(req *Req) error {
	err := d.stream.Send(req)
	if errors.Is(err, io.EOF) {
		d.drain()
		return d.err
	}
	return err
}

// drain waits for the end of the stream. A response that comes meanwhile is dropped.
func (d *duplex[Req, Resp]) drain() {
	for {
		select {
		case <-d.responses:
		case <-d.done:
			return
		}
	}
}

// closeStream half-closes the stream and waits for its end. It cancels the stream after
// finalTimeout.
func (d *duplex[Req, Resp]) closeStream() {
	guard := time.AfterFunc(finalTimeout, d.cancel)
	defer guard.Stop()
	if err := d.stream.CloseSend(); err == nil {
		d.drain()
	}
}

// close cancels the stream and waits until receive has ended.
func (d *duplex[Req, Resp]) close() {
	d.cancel()
	<-d.done
}
