package grpcserver

import (
	"encoding/binary"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// Limits of messages that no operator needs another one of.
const (
	// maxOpenMessage bounds a message of a method that is open to strangers: the
	// name of a service, or of a file.
	maxOpenMessage = 4 << 10
	// maxHelloBytes bounds the first message of an agent's stream, which takes
	// some 60 bytes: eight streams of an agent may wait for theirs.
	maxHelloBytes = 4 << 10
)

var (
	errCompressed = status.Error(codes.Unimplemented, "message: want it uncompressed")
	errCutOff     = status.Error(codes.InvalidArgument, "message: want all of it, the stream ended within it")
	errNoMessage  = Invalid("message", "want one, got none")
)

// messageReader is what gRPC's transport reads the parts of a message by.
type messageReader interface {
	StreamEnder
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
}

// sizedStream reads messages of a limited size. gRPC has one limit for all methods,
// coderd's, and buffers messages up to that. Here the header of a message, which
// has its size, is read first. One that is too large is not buffered at all.
type sizedStream struct {
	grpc.ServerStream
	server *Server
	reader messageReader
	limit  int
	flag   string // that sets the limit; empty: none does
	hello  bool   // the first message, of an agent's stream, is still to come
	// receiving is what large messages take room of; nil: there are none.
	receiving *receiving
	header    [5]byte
}

// sizeStream limits the messages of a call by its method. It is the outermost
// interceptor, as it does not call the RecvMsg of those before it.
func (s *Server) sizeStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	sized, err := s.newSizedStream(stream, info.FullMethod)
	if err != nil {
		return err
	}
	return handler(srv, sized)
}

func (s *Server) newSizedStream(stream grpc.ServerStream, fullMethod string) (*sizedStream, error) {
	reader, ok := grpc.ServerTransportStreamFromContext(stream.Context()).(messageReader)
	if !ok {
		s.log.Error("the transport of gRPC does not let messages be read in parts", "method", fullMethod)
		return nil, errInternal
	}
	sized := &sizedStream{ServerStream: stream, server: s, reader: reader, limit: maxOpenMessage}
	if service := s.services[serviceOf(fullMethod)]; service != nil {
		role := s.roleOf(fullMethod)
		sized.receiving = s.receiving[role]
		if s.receiving[rolePusher] != nil && s.isFor(rolePusher, fullMethod) {
			sized.receiving = s.receiving[rolePusher]
		}
		sized.limit, sized.flag = s.opts.Load().MaxMessageBytes, FlagMessageBytes
		if role == RoleAgent {
			sized.limit, sized.flag, sized.hello = s.opts.Load().MaxAgentMessageBytes, FlagAgentMessageBytes, true
		}
		if limit, ok := service.MessageBytes[fullMethod]; ok && limit < sized.limit {
			sized.limit, sized.flag = limit, ""
		}
	}
	return sized, nil
}

// RecvMsg implements grpc.ServerStream.
func (s *sizedStream) RecvMsg(m any) error {
	if err := s.reader.ReadMessageHeader(s.header[:]); err != nil {
		return readError(err)
	}
	if s.header[0] != 0 {
		return errCompressed
	}
	size := int(binary.BigEndian.Uint32(s.header[1:]))
	if err := s.check(size); err != nil {
		if message, ok := m.(AgentMessage); ok {
			message.Refuse(size, err)
			return nil
		}
		return err
	}
	if size <= largeMessage {
		return s.receive(size, m)
	}
	done, err := s.reserve(size, m)
	if err != nil {
		return err
	}
	defer done()
	return s.receive(size, m)
}

// receive reads the message behind a header, of size bytes, into m.
func (s *sizedStream) receive(size int, m any) error {
	data, err := s.reader.Read(size)
	if errors.Is(err, io.EOF) && size > 0 {
		return errCutOff
	}
	if err != nil {
		return readError(err)
	}
	defer data.Free()
	if err := s.server.codec.Unmarshal(data, m); err != nil {
		return Malformed(m, data.Materialize())
	}
	return nil
}

// check returns the status that refuses a message of so many bytes.
func (s *sizedStream) check(size int) error {
	err := s.server.checkSize(size, s.limit, s.flag, s.hello)
	if err == nil {
		s.hello = false
	}
	return err
}

// CheckAgentMessage returns the status that refuses a message of an agent of so many
// bytes, nil: it is not too large. hello: it is the first.
func (s *Server) CheckAgentMessage(size int, hello bool) error {
	return s.checkSize(size, s.opts.Load().MaxAgentMessageBytes, FlagAgentMessageBytes, hello)
}

func (s *Server) checkSize(size, limit int, flag string, hello bool) error {
	field := "message"
	if hello {
		field = "hello"
		if maxHelloBytes < limit {
			limit, flag = maxHelloBytes, ""
		}
	}
	if size <= limit {
		return nil
	}
	s.metrics.limited.WithLabelValues(limitedMessageBytes).Inc()
	return tooLarge(field, size, limit, flag)
}

// readError returns the error of a stream that a message could not be read from.
func readError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errCutOff
	}
	return err
}

// singleStream is a stream that its caller sends one message on: its end is none.
type singleStream struct{ grpc.ServerStream }

// RecvMsg implements grpc.ServerStream.
func (s singleStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if errors.Is(err, io.EOF) {
		return errNoMessage
	}
	return err
}
