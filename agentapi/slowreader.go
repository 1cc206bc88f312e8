package agentapi

import (
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// responseStream is a stream of responses to coderd. It ends if coderd does not read
// them: whoever waits for that holds a response in memory.
type responseStream struct {
	grpc.ServerStream
	box     outbox
	timeout time.Duration
	timer   *time.Timer
}

// boundResponses returns the stream with a bound on the time that each response waits
// for the reader.
func (s *Server) boundResponses(stream grpc.ServerStream) (*responseStream, error) {
	ender, ok := grpc.ServerTransportStreamFromContext(stream.Context()).(streamEnder)
	if !ok {
		return nil, errInternal // sizeStream says so of all streams
	}
	r := &responseStream{ServerStream: stream, timeout: s.opts.SendTimeout}
	r.timer = time.AfterFunc(r.timeout, func() { _ = ender.WriteStatus(status.Convert(s.slowReader())) })
	r.timer.Stop()
	return r, nil
}

// slowReader counts a reader that is too slow, and returns the status that says so.
func (s *Server) slowReader() error {
	s.metrics.limited.WithLabelValues(limitedSlowReader).Inc()
	return exhausted(time.Second, fmt.Sprintf("responses: want them read within %v (%s), they were not", s.opts.SendTimeout, flagSendTimeout))
}

// SendMsg implements grpc.ServerStream.
func (r *responseStream) SendMsg(m any) error {
	r.timer.Reset(r.timeout)
	defer r.timer.Stop()
	return r.ServerStream.SendMsg(&outgoing{message: m, box: &r.box})
}
