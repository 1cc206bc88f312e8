package grpcserver

import (
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// responseStream is a stream of responses to coderd. It ends if coderd does not
// read them: a writer that waits for that has a response in memory.
type responseStream struct {
	grpc.ServerStream
	callSlot // until its first message is there
	box      Outbox
	timeout  time.Duration
	timer    *time.Timer
}

// boundResponses returns the stream with a bound on the time that each response waits
// for the reader. The stream has a slot of calls.
func (s *Server) boundResponses(stream grpc.ServerStream, calls *Slots) (*responseStream, error) {
	ender, err := EnderOf(stream.Context())
	if err != nil {
		return nil, err
	}
	r := &responseStream{ServerStream: stream, callSlot: callSlot{calls: calls}, timeout: s.opts.Load().SendTimeout}
	r.timer = time.AfterFunc(r.timeout, func() { _ = ender.WriteStatus(status.Convert(s.SlowReader())) })
	r.timer.Stop()
	return r, nil
}

// SlowReader counts a reader of responses that does not read them within
// Options.SendTimeout, and returns the status that says so.
func (s *Server) SlowReader() error {
	s.metrics.limited.WithLabelValues(limitedSlowReader).Inc()
	return Exhausted(time.Second, fmt.Sprintf("responses: want them read within %v (%s), they were not", s.opts.Load().SendTimeout, flagSendTimeout))
}

// RecvMsg implements grpc.ServerStream.
func (r *responseStream) RecvMsg(m any) error {
	err := r.ServerStream.RecvMsg(m)
	r.ReleaseSlot()
	return err
}

// SendMsg implements grpc.ServerStream.
func (r *responseStream) SendMsg(m any) error {
	r.timer.Reset(r.timeout)
	defer r.timer.Stop()
	return r.ServerStream.SendMsg(&CountedResponse{Message: m, Box: &r.box})
}
