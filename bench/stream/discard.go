package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"

	"github.com/coder/agentstatsd/bench/process"
)

// discardArgs are what a discarding server is started with.
type discardArgs struct {
	// AckEvery so many requests of a stream; 0: never.
	AckEvery int
	// Cert and Key are files; empty: plaintext.
	Cert, Key string
}

// discard receives requests and forgets them: what gRPC itself takes. It frees
// each buffer at once, and has no interceptors.
type discard struct {
	ackEvery int

	mu sync.Mutex
	// Guarded by mu.
	counters []*counter
}

// counter is how many requests a stream had; each has its own line of the cache.
type counter struct {
	atomic.Int64
	_ [56]byte
}

// request is what the server looks at.
type request struct {
	// sequence is read if acks are sent. The hello has none.
	wanted, handshakeDone bool
	sequence              int64
}

func (r *request) receive(data mem.BufferSlice) error {
	if !r.wanted {
		return nil
	}
	// It stands first, and is not 0 in a report.
	if r.sequence = varint(data[0].ReadOnlyData(), 1); r.sequence == 0 && r.handshakeDone {
		return errors.New("a report without a sequence")
	}
	return nil
}

func (d *discard) connect(_ any, stream grpc.ServerStream) error {
	n := new(counter)
	d.mu.Lock()
	d.counters = append(d.counters, n)
	d.mu.Unlock()
	r := request{wanted: d.ackEvery > 0}
	if err := stream.RecvMsg(&r); err != nil {
		return err
	}
	if err := stream.SendMsg(mem.BufferSlice{mem.SliceBuffer(emptySettings)}); err != nil {
		return err
	}
	r.handshakeDone = true
	for unacked := 1; ; unacked++ {
		if err := stream.RecvMsg(&r); err != nil {
			return err
		}
		n.Add(1)
		if r.wanted && unacked >= d.ackEvery {
			unacked = 0
			if err := stream.SendMsg(mem.BufferSlice{mem.SliceBuffer(encodeAck(r.sequence))}); err != nil {
				return err
			}
		}
	}
}

func (d *discard) received() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	var n int64
	for _, c := range d.counters {
		n += c.Load()
	}
	return n
}

// agentBuffers are those of the service: agents' connections are many.
const agentBuffers = 8 << 10

// The windows are the service's, too: else gRPC measures the connection by pings.
const (
	streamWindow     = 256 << 10
	connectionWindow = 1 << 20
)

// serveDiscard is the role of the limit.
func serveDiscard(ctx context.Context, c *process.Console) error {
	var args discardArgs
	if err := c.Args(&args); err != nil {
		return err
	}
	d := &discard{ackEvery: args.AckEvery}
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxConcurrentStreams(1 << 16),
		grpc.ReadBufferSize(agentBuffers),
		grpc.WriteBufferSize(agentBuffers),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	}
	if args.Cert != "" {
		creds, err := serverTLS(args.Cert, args.Key)
		if err != nil {
			return err
		}
		opts = append(opts, grpc.Creds(creds))
	}
	server := grpc.NewServer(opts...)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "agentstats.v1.AgentService",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Connect", Handler: d.connect, ServerStreams: true, ClientStreams: true,
		}},
	}, d)
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(lis) }()
	err = c.Serve(lis.Addr().String(), map[string]process.Handler{
		"received": func(func(any) error) (any, error) { return d.received(), nil },
		"free":     freeMemory,
	})
	server.Stop()
	return errors.Join(err, <-ended)
}

// freeMemory collects, and returns to the system what is not in use: what is
// resident then is held.
func freeMemory(func(any) error) (any, error) {
	debug.FreeOSMemory()
	return nil, nil
}

func serverTLS(cert, key string) (credentials.TransportCredentials, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	config := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{pair},
	}
	return credentials.NewTLS(config), nil
}
