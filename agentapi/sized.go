package agentapi

import (
	"encoding/binary"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Limits of messages that no operator needs another one of.
const (
	// maxOpenMessage bounds a message of a method that is open to strangers: the
	// name of a service, or of a file.
	maxOpenMessage = 4 << 10
	// maxHelloBytes bounds the first message of an agent's stream, which takes
	// some 60 bytes: eight streams of an agent may wait for theirs.
	maxHelloBytes = 4 << 10
	// maxIDsBytes bounds a message that names maxReadAtOnce agents at most, of 18 bytes
	// each, and some more, so that it is said which of them are too many.
	maxIDsBytes = 32 << 10
	// maxDeregisterBytes is the same of a message that names maxRegisteredAtOnce agents
	// and as many workspaces.
	maxDeregisterBytes = 512 << 10
	// maxSmallRequest bounds a message of a page, or of a name and a position.
	maxSmallRequest = 4 << 10
)

// coderdLimits are the limits of those methods of coderd whose messages never need
// Options.MaxMessageBytes.
var coderdLimits = map[string]int{
	agentstatsv1.CoderdService_GetMetadata_FullMethodName:      maxIDsBytes,
	agentstatsv1.CoderdService_WatchMetadata_FullMethodName:    maxIDsBytes,
	agentstatsv1.CoderdService_WatchAgents_FullMethodName:      maxIDsBytes,
	agentstatsv1.CoderdService_DeregisterAgents_FullMethodName: maxDeregisterBytes,
	agentstatsv1.CoderdService_ListAgents_FullMethodName:       maxSmallRequest,
	agentstatsv1.CoderdService_WatchStats_FullMethodName:       maxSmallRequest,
}

var (
	errCompressed = status.Error(codes.Unimplemented, "message: want it uncompressed")
	errCutOff     = status.Error(codes.InvalidArgument, "message: want all of it, the stream ended within it")
	errNoMessage  = invalid("message", "want one, got none")
)

// messageReader is what gRPC's transport reads the parts of a message by.
type messageReader interface {
	streamEnder
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
}

// sizedStream reads messages of a limited size. gRPC has one limit for all methods,
// coderd's, and buffers messages up to that; here the header of a message, which
// tells its size, is read first, and one that is too large is not buffered at all.
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
	reader, ok := grpc.ServerTransportStreamFromContext(stream.Context()).(messageReader)
	if !ok {
		s.log.Error("the transport of gRPC does not let messages be read in parts", "method", info.FullMethod)
		return errInternal
	}
	sized := &sizedStream{ServerStream: stream, server: s, reader: reader, limit: maxOpenMessage}
	switch serviceOf(info.FullMethod) {
	case agentstatsv1.AgentService_ServiceDesc.ServiceName:
		sized.limit, sized.flag, sized.hello = s.opts.MaxAgentMessageBytes, flagAgentMessageBytes, true
		sized.receiving = s.receivingAgents
	case agentstatsv1.CoderdService_ServiceDesc.ServiceName:
		sized.limit, sized.flag = s.opts.MaxMessageBytes, flagMessageBytes
		sized.receiving = s.receivingCoderd
		if limit, ok := coderdLimits[info.FullMethod]; ok && limit < sized.limit {
			sized.limit, sized.flag = limit, ""
		}
	}
	return handler(srv, sized)
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
		if f, ok := m.(*frame); ok { // which is charged for it
			f.size, f.refused = size, err
			return nil
		}
		return err
	}
	if size > largeMessage {
		done, err := s.receive(size, m)
		if err != nil {
			return err
		}
		defer done()
	}
	data, err := s.reader.Read(size)
	if errors.Is(err, io.EOF) && size > 0 {
		return errCutOff
	}
	if err != nil {
		return readError(err)
	}
	defer data.Free()
	if err := s.server.codec.Unmarshal(data, m); err != nil {
		return malformed(m, data.Materialize())
	}
	return nil
}

// check returns the status that refuses a message of so many bytes.
func (s *sizedStream) check(size int) error {
	field, limit, flag := "message", s.limit, s.flag
	if s.hello {
		field = "hello"
		if maxHelloBytes < limit {
			limit, flag = maxHelloBytes, ""
		}
	}
	if size > limit {
		s.server.metrics.limited.WithLabelValues(limitedMessageBytes).Inc()
		return tooLarge(field, size, limit, flag)
	}
	s.hello = false
	return nil
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
