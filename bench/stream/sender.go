package stream

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/coder/agentstatsd/bench/load"
)

// Acking is which reports a server acks.
type Acking int

// Of those that it acks at most maxFlying are in flight at once, of the rest as many as
// the flow control of HTTP/2 allows.
const (
	// Never: it acks none.
	Never Acking = iota
	// Some: the last ones of a stream may stay without an ack.
	Some
	// Always: in the end all, for which they ask.
	Always
	// Now: each at once, for which it asks.
	Now
)

// sender is an agent that sends encoded reports on its stream.
type sender struct {
	stream   grpc.ClientStream
	template *load.Template
	acking   Acking
	ended    chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	changed *sync.Cond
	sent    int64 // the last sequence
	acked   int64
	acks    int64
	err     error
	// flying are the times at which what is in flight was sent, from acked+1 on.
	flying    []time.Time
	latencies []float64 // in milliseconds
}

var connectDesc = &grpc.StreamDesc{StreamName: "Connect", ServerStreams: true, ClientStreams: true}

// open opens the stream of agent n and waits for the answer to its hello.
func open(ctx context.Context, conn *grpc.ClientConn, n int, template *load.Template, acking Acking) (*sender, error) {
	hello, err := load.Hello(n, 1)
	if err != nil {
		return nil, err
	}
	stream, err := conn.NewStream(ctx, connectDesc, connectMethod)
	if err != nil {
		return nil, fmt.Errorf("open the stream of agent %d: %w", n, err)
	}
	if err := stream.SendMsg(mem.BufferSlice{mem.SliceBuffer(hello)}); err != nil {
		return nil, fmt.Errorf("handshake of agent %d: %w", n, err)
	}
	var first response
	if err := stream.RecvMsg(&first); err != nil {
		return nil, fmt.Errorf("handshake of agent %d: %w", n, err)
	}
	if !first.settings {
		return nil, fmt.Errorf("handshake of agent %d: want settings first", n)
	}
	s := &sender{stream: stream, template: template, acking: acking, ended: make(chan struct{})}
	s.changed = sync.NewCond(&s.mu)
	go s.listen()
	return s, nil
}

// listen takes acks until the stream ends.
func (s *sender) listen() {
	defer close(s.ended)
	for {
		var r response
		err := s.stream.RecvMsg(&r)
		now := time.Now()
		s.mu.Lock()
		if err == nil && r.ack > s.sent {
			err = fmt.Errorf("%d is acked, and %d was sent last", r.ack, s.sent)
		}
		if err != nil {
			s.err = err
			s.changed.Broadcast()
			s.mu.Unlock()
			return
		}
		if r.ack > s.acked {
			s.acks++
			n := int(r.ack - s.acked)
			s.acked = r.ack
			for _, at := range s.flying[:n] {
				s.latencies = append(s.latencies, float64(now.Sub(at))/float64(time.Millisecond))
			}
			s.flying = slices.Delete(s.flying, 0, n)
			s.changed.Broadcast()
		}
		s.mu.Unlock()
	}
}

// maxFlying is how many reports of a stream are in flight at most.
const maxFlying = 64

// send sends one report. If as many as may be are in flight, it waits for acks,
// or, unless it may wait, returns false.
func (s *sender) send(wait bool) (bool, error) {
	s.mu.Lock()
	for s.acking != Never && s.sent-s.acked >= maxFlying && s.err == nil {
		if !wait {
			s.mu.Unlock()
			return false, nil
		}
		s.changed.Wait()
	}
	if s.err != nil {
		defer s.mu.Unlock()
		return false, fmt.Errorf("receive acks: %w", s.err)
	}
	s.sent++
	sequence := s.sent
	if s.acking != Never {
		s.flying = append(s.flying, time.Now())
	}
	s.mu.Unlock()

	pool := mem.DefaultBufferPool()
	buffer := pool.Get(s.template.Size() + len(askForAck))
	*buffer = s.template.Append((*buffer)[:0], sequence, int(sequence))
	if s.acking == Now {
		*buffer = append(*buffer, askForAck...)
	}
	// gRPC frees the message.
	if err := s.stream.SendMsg(mem.BufferSlice{mem.NewBuffer(buffer, pool)}); err != nil {
		return false, fmt.Errorf("send a report: %w", err)
	}
	return true, nil
}

// await waits until all that was sent is acked.
func (s *sender) await() error {
	if s.acking < Always {
		return nil
	}
	if s.acking == Always {
		s.mu.Lock()
		s.sent++
		s.flying = append(s.flying, time.Now())
		ask := append(encodeSequence(s.sent), askForAck...)
		s.mu.Unlock()
		if err := s.stream.SendMsg(mem.BufferSlice{mem.SliceBuffer(ask)}); err != nil {
			return fmt.Errorf("ask for an ack: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.acked < s.sent && s.err == nil {
		s.changed.Wait()
	}
	return s.err
}

// take adds what the sender has seen since the last call to t.
func (s *sender) take(t *Tally) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Acks += s.acks
	t.latencies = append(t.latencies, s.latencies...)
	s.acks, s.latencies = 0, s.latencies[:0]
}
