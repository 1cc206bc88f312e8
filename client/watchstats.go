package client

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxWatchName is the longest name of a watch, in bytes.
const maxWatchName = 64

// StatsPosition is how far a watcher of stats has processed a subscription. The zero
// value is the start. Incarnation and Nonce are random over all 64 bits. So a database
// without unsigned numbers stores them converted to int64.
type StatsPosition struct {
	// Incarnation of the subscription. Numbers are compared within one only.
	Incarnation uint64
	// Number and nonce of the last batch that was processed. After an older database
	// was restored a number can come again, but not a nonce.
	Number int64
	Nonce  uint64
}

// StatsBatch is a numbered batch of a subscription.
type StatsBatch struct {
	// Position of the batch is to be stored with the effects of the batch. It replaces
	// Previous: that of the batch before, or what Load returned.
	Position, Previous StatsPosition
	// Agents has an entry for each agent that reported since its last entry. Counts are
	// added up, the rest is that of the newest report.
	Agents []*agentstatsv1.AgentStats
}

// StatsWatch is a watch of what all agents report.
type StatsWatch struct {
	// Name of the subscription, 1 to 64 bytes. The service keeps a subscription for a
	// day after its last stream by default. One watcher has it at a time.
	Name string
	// Load returns the position that was stored last; nil: that of the last call of
	// Handle. It is called before each stream. After an error it is called again.
	Load func(ctx context.Context) (StatsPosition, error)
	// Handle processes a batch, which is acked when it returns nil. After an error it
	// is called with the batch again. If it is slow, more reports are in one entry. The
	// first batch of a stream may have no agents but another position. Then the
	// incarnation is new, or another watcher has processed the batches before.
	Handle func(batch StatsBatch) error
	// Started is called when a stream is open. All that agents report from since on
	// is in the subscription; nil: it is not called.
	Started func(since time.Time)
}

// WatchStats watches what agents report.
//
// Each report is in one batch, whichever replica of the service serves the stream, and
// whichever are killed or restarted. Each report counts exactly once, over any crash of
// this process, under two conditions. Handle stores the position with the effects of a
// batch, in one transaction that fails if the stored position is not Previous. Load
// returns the stored position. That transaction fails if another process had the name
// meanwhile. Then the watch begins anew, with what Load returns. Without these
// conditions Handle gets a batch again if the service did not get its ack.
//
// A newer watcher takes a name from an older one, whose stream breaks. The older
// one stands by until the newer one has gone. So they do not take the name from each
// other again and again.
//
// It blocks and returns as WatchMetadata does, but for the last ack. If Handle returns
// within 2 s after ctx has ended, it waits at most 5 s for the service to get the ack. A
// Handle that takes longer is left to itself: its batch is not acked.
func (c *Coderd) WatchStats(ctx context.Context, watch StatsWatch) error {
	if n := len(watch.Name); n < 1 || n > maxWatchName {
		return fmt.Errorf("watch stats: the name has %d bytes, 1 to %d are allowed", n, maxWatchName)
	}
	w := &statsWatch{StatsWatch: watch, service: c.service, load: c.callback("Load"), handler: c.callback("Handle"), started: c.callback("Started")}
	return c.streams("stats").run(ctx, ctx, func(received func()) error { return w.serveStream(ctx, received) })
}

// statsWatch is a watch of stats over all its streams.
type statsWatch struct {
	StatsWatch
	service agentstatsv1.CoderdServiceClient
	// load, handler and started call the functions of StatsWatch.
	load, handler, started *callback
	// position is the last one that was processed.
	position StatsPosition
	// standBy is true after another watcher took the name.
	standBy bool
}

// callbackError is an error of the user's function. It hides a gRPC code of that error,
// which is not the stream's.
type callbackError struct{ error }

// firstRequest returns the first request of a stream.
func (w *statsWatch) firstRequest(ctx context.Context) (*agentstatsv1.WatchStatsRequest, error) {
	if w.Load != nil {
		var stored StatsPosition
		var err error
		if !w.load.finish(ctx, func() { stored, err = w.Load(ctx) }) {
			return nil, errCallbackLeft
		}
		if err != nil {
			return nil, callbackError{fmt.Errorf("load the position: %w", err)}
		}
		w.position = stored
	}
	return &agentstatsv1.WatchStatsRequest{
		Name: w.Name, StandBy: w.standBy,
		Incarnation: w.position.Incarnation, Number: w.position.Number, Nonce: w.position.Nonce,
	}, nil
}

// serveStream serves one stream until it ends. It calls received for each response, and
// if it stands by.
func (w *statsWatch) serveStream(ctx context.Context, received func()) error {
	err := w.receiveBatches(ctx, received)
	if status.Code(err) == codes.Aborted {
		w.standBy = true
	}
	return err
}

// standByTime is how long a stream that stands by is open until it counts as accepted: it
// has no response.
const standByTime = 10 * time.Second

// receiveBatches serves one stream. When ctx ends, it waits until the service has
// received the last ack.
func (w *statsWatch) receiveBatches(ctx context.Context, received func()) error {
	first, err := w.firstRequest(ctx)
	if err != nil {
		return err
	}
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	// Until the stream is open, the end of ctx cancels it.
	stop := context.AfterFunc(ctx, cancel)
	stream, err := w.service.WatchStats(live, grpc.MaxCallRecvMsgSize(maxReadBytes))
	if err != nil {
		stop()
		return err
	}
	s := newDuplex(live, cancel, stream)
	defer s.close()
	err = s.send(first)
	stop()
	if err != nil {
		return err
	}
	var waiting <-chan time.Time
	if first.GetStandBy() {
		waiting = time.After(standByTime)
	}
	for began := true; ; {
		select {
		case <-waiting:
			received()
		case resp := <-s.responses:
			if ctx.Err() != nil {
				s.closeStream()
				return ctx.Err()
			}
			received()
			if err := w.handle(ctx, s, resp, began); err != nil {
				return err
			}
			began = false
		case <-s.done:
			return s.err
		case <-ctx.Done():
			s.closeStream()
			return ctx.Err()
		}
	}
}

// statsStream is one stream of a watch of stats.
type statsStream = duplex[agentstatsv1.WatchStatsRequest, agentstatsv1.WatchStatsResponse]

// handle processes a response and acks it. began is true for the first of a stream,
// which is not acked.
func (w *statsWatch) handle(ctx context.Context, s *statsStream, resp *agentstatsv1.WatchStatsResponse, began bool) error {
	batch := StatsBatch{
		Position: StatsPosition{resp.GetIncarnation(), resp.GetNumber(), resp.GetNonce()},
		Previous: w.position, Agents: resp.GetAgents(),
	}
	if began {
		w.standBy = false
		if w.Started != nil && !w.started.finish(ctx, func() { w.Started(resp.GetSince().AsTime()) }) {
			return errCallbackLeft
		}
	}
	same := batch.Position.Incarnation == w.position.Incarnation
	if !same || batch.Position.Number > w.position.Number {
		var err error
		if !w.handler.finish(ctx, func() { err = w.Handle(batch) }) {
			return errCallbackLeft
		}
		if err != nil {
			return callbackError{fmt.Errorf("handle a batch of stats: %w", err)}
		}
		w.position = batch.Position
	}
	if began {
		return nil
	}
	return s.send(&agentstatsv1.WatchStatsRequest{Number: resp.GetNumber()})
}
