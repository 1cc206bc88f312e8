package grpcserver

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// registrar registers every method as a stream. gRPC reads and decodes the message
// of a unary method before it calls an interceptor: who has no credential would be
// read, too. A handler of a stream reads after the interceptors.
type registrar struct{ *grpc.Server }

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	r.Server.RegisterService(asStreams(desc), impl)
}

// asStreams returns the service with its unary methods as streams of one message
// each way. Callers see no difference.
func asStreams(desc *grpc.ServiceDesc) *grpc.ServiceDesc {
	served := *desc
	served.Methods = nil
	served.Streams = append([]grpc.StreamDesc(nil), desc.Streams...)
	for i := range served.Streams {
		if handler := served.Streams[i].Handler; !served.Streams[i].ClientStreams {
			served.Streams[i].Handler = func(srv any, stream grpc.ServerStream) error {
				return handler(srv, singleStream{stream})
			}
		}
	}
	for _, m := range desc.Methods {
		served.Streams = append(served.Streams, grpc.StreamDesc{
			StreamName: m.MethodName,
			// Without this gRPC takes the method for unary, and skips the
			// interceptors of streams.
			ClientStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error {
				response, err := m.Handler(srv, stream.Context(), singleStream{stream}.RecvMsg, nil)
				if err != nil {
					return err
				}
				return stream.SendMsg(response)
			},
		})
	}
	return &served
}

// StreamEnder ends a stream from another goroutine than that of its handler. It
// unblocks who reads or writes, and cancels the stream's context. gRPC's
// implementation of grpc.ServerTransportStream has this method, although the
// interface does not name it. Without it each stream would need a second goroutine,
// of 8 KB, to wait for messages and anything else.
type StreamEnder interface {
	WriteStatus(*status.Status) error
}

// EnderOf returns what ends the stream of a call. The error is a status.
func EnderOf(ctx context.Context) (StreamEnder, error) {
	ender, ok := grpc.ServerTransportStreamFromContext(ctx).(StreamEnder)
	if !ok {
		return nil, errInternal // sizeStream has logged that
	}
	return ender, nil
}

// promptStream ends its stream unless the first message is there in time.
type promptStream struct {
	grpc.ServerStream
	timer *time.Timer
}

// prompt returns the stream with a bound on the time to the end of its first
// message, which begins now. The caller calls stop when the stream is over.
func (s *Server) prompt(stream grpc.ServerStream, within time.Duration) *promptStream {
	p := &promptStream{ServerStream: stream}
	ender, err := EnderOf(stream.Context())
	if err != nil {
		return p // sizeStream has said so
	}
	p.timer = time.AfterFunc(within, func() {
		s.metrics.limited.WithLabelValues(limitedFirstMessage).Inc()
		_ = ender.WriteStatus(status.Convert(Invalid("message", "want the first one within %v (%s)", within, FlagFirstMessage)))
	})
	return p
}

// RecvMsg implements grpc.ServerStream.
func (p *promptStream) RecvMsg(m any) error {
	err := p.ServerStream.RecvMsg(m)
	p.stop()
	return err
}

func (p *promptStream) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

// openStream is a stream that needs no credential. It ends when its time is over.
type openStream struct {
	grpc.ServerStream
	timer *time.Timer
	life  time.Duration
	asked atomic.Bool
}

// RecvMsg implements grpc.ServerStream.
func (o *openStream) RecvMsg(m any) error {
	if err := o.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if o.asked.CompareAndSwap(false, true) {
		o.timer.Reset(o.life)
	}
	return nil
}
