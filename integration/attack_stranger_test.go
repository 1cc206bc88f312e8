package integration

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	grpcstatus "google.golang.org/grpc/status"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// megabytes4 is the largest message of coderd, with room for what stands around it.
const megabytes4 = 4<<20 - 64

// strangers have no token.
var strangers = []attack{
	{name: "decode registrations", run: func(ctx context.Context, at target) (int64, error) {
		return callUnary(ctx, at, pathRegister, repeated([]byte{0x0a, 0}, megabytes4), 24)
	}},
	{name: "decode maps", run: func(ctx context.Context, at target) (int64, error) {
		return callUnary(ctx, at, pathRegister, repeated(wrapped(1, wrapped(6, wrapped(5, nil))), megabytes4), 8)
	}},
	{name: "half-sent messages", run: halfSent},
	{name: "parked calls", run: func(ctx context.Context, at target) (int64, error) {
		return parkCalls(ctx, at, 4, 65536, pathRegister)
	}},
	{name: "parked streams", run: func(ctx context.Context, at target) (int64, error) {
		return parkCalls(ctx, at, 4, 65536, pathConnect, "authorization", "Bearer nobody-has-this-token")
	}},
	{name: "large headers", run: func(ctx context.Context, at target) (int64, error) {
		return parkCalls(ctx, at, 1, 30000, pathRegister, "x-a", strings.Repeat("z", 15000))
	}},
	{name: "health streams", run: func(ctx context.Context, at target) (int64, error) {
		return parkCalls(ctx, at, 2, 65536, pathHealthWatch)
	}},
	{name: "health calls", run: func(ctx context.Context, at target) (int64, error) {
		return parkCalls(ctx, at, 2, 65536, pathHealthCheck)
	}},
	{name: "reflection streams", run: func(ctx context.Context, at target) (int64, error) {
		return parkCalls(ctx, at, 1, 20000, pathReflection)
	}},
	{name: "rapid reset", run: func(ctx context.Context, at target) (int64, error) {
		return floodFrames(ctx, at, 4, true, func(c *rawHTTP2, i int) error {
			stream := uint32(2*i + 1)
			if err := c.call(stream, pathConnect, "authorization", "Bearer nobody-has-this-token"); err != nil {
				return err
			}
			return c.write(func() error { return c.framer.WriteRSTStream(stream, http2.ErrCodeCancel) })
		})
	}},
	{name: "CONTINUATION frames", run: func(ctx context.Context, at target) (int64, error) {
		return floodFrames(ctx, at, 4, true, continuation)
	}},
	{name: "pings without reading", run: func(ctx context.Context, at target) (int64, error) {
		return floodFrames(ctx, at, 8, false, func(c *rawHTTP2, _ int) error {
			return c.write(func() error { return c.framer.WritePing(false, [8]byte{1}) })
		})
	}},
	{name: "settings without reading", run: func(ctx context.Context, at target) (int64, error) {
		return floodFrames(ctx, at, 8, false, func(c *rawHTTP2, _ int) error {
			return c.write(func() error {
				return c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65535})
			})
		})
	}},
	{name: "silent connections", run: func(ctx context.Context, at target) (int64, error) {
		return openConnections(ctx, at.GRPC, 4000, nil)
	}},
	{name: "connections with a preface", run: func(ctx context.Context, at target) (int64, error) {
		return openConnections(ctx, at.GRPC, 4000, []byte(http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	}},
	{name: "garbage", run: func(ctx context.Context, at target) (int64, error) { return garbage(ctx, at.GRPC) }},
	{name: "guessed tokens", run: guessTokens},
	{name: "connections come and go", run: func(ctx context.Context, at target) (int64, error) {
		return repeat(ctx, 8, func() error {
			c, err := dialRaw(at.GRPC)
			if err != nil {
				return err
			}
			return c.Close()
		})
	}},
	{name: "checks of health", idle: true, run: func(ctx context.Context, at target) (int64, error) {
		conn, err := at.dial()
		if err != nil {
			return 0, err
		}
		defer func() { _ = conn.Close() }()
		return repeat(ctx, 8, func() error {
			_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
			return err
		})
	}},
}

// callUnary calls a method with a raw message, over and over, and wants to be
// answered that nobody knows the caller.
func callUnary(ctx context.Context, at target, method string, message []byte, callers int) (int64, error) {
	var calls atomic.Int64
	var running sync.WaitGroup
	errs := make(chan error, callers)
	for range callers {
		running.Go(func() {
			conn, err := at.dial()
			if err != nil {
				errs <- err
				return
			}
			defer func() { _ = conn.Close() }()
			for ctx.Err() == nil {
				var out []byte
				err := conn.Invoke(without(ctx), method, message, &out, grpc.ForceCodec(rawCodec{}))
				switch grpcstatus.Code(err) {
				case codes.Unauthenticated, codes.ResourceExhausted, codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
					calls.Add(1)
				default:
					errs <- fmt.Errorf("answer of %s: %w", method, err)
					return
				}
			}
		})
	}
	running.Wait()
	select {
	case err := <-errs:
		return calls.Load(), err
	default:
		return calls.Load(), nil
	}
}

// halfSent sends all of large messages but their end, over a connection each.
func halfSent(ctx context.Context, at target) (int64, error) {
	var all []*rawHTTP2
	defer func() { closeAll(all) }()
	var sent atomic.Int64
	var running sync.WaitGroup
	defer running.Wait()
	for range 200 {
		c, err := dialRaw(at.GRPC)
		if err != nil {
			break
		}
		all = append(all, c)
		go c.answer()
		running.Go(func() {
			if c.call(1, pathRegister) != nil {
				return
			}
			chunk := make([]byte, 16<<10)
			copy(chunk, prefix(megabytes4))
			for i := 0; i < megabytes4/len(chunk)-1 && ctx.Err() == nil && !c.gone.Load(); i++ {
				if c.write(func() error { return c.framer.WriteData(1, false, chunk) }) != nil {
					return
				}
				sent.Add(1)
				clear(chunk[:5])
				pause(ctx, time.Millisecond)
			}
		})
	}
	<-ctx.Done()
	return sent.Load(), nil
}

// continuation writes a header list that never ends.
func continuation(c *rawHTTP2, i int) error {
	return c.write(func() error {
		c.header.Reset()
		for j := range 10 {
			if err := c.hpack.WriteField(hpack.HeaderField{Name: fmt.Sprintf("x-%d-%d", i, j), Value: strings.Repeat("y", 500)}); err != nil {
				return err
			}
		}
		if i == 0 {
			return c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.header.Bytes()})
		}
		return c.framer.WriteContinuation(1, false, c.header.Bytes())
	})
}

// openConnections opens connections, says something on each, and keeps them.
func openConnections(ctx context.Context, address string, n int, say []byte) (int64, error) {
	var all []net.Conn
	defer func() { closeAll(all) }()
	for range n {
		c, err := attackerDialer.DialContext(ctx, "tcp", address)
		if err != nil {
			break
		}
		all = append(all, c)
		_, _ = c.Write(say)
	}
	<-ctx.Done()
	return int64(len(all)), nil
}

// garbage says what is no protocol, on one connection after another.
func garbage(ctx context.Context, address string) (int64, error) {
	return repeat(ctx, 4, func() error {
		c, err := attackerDialer.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := io.WriteString(c, "this is no handshake\r\n\r\n"); err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, c)
		return nil
	})
}

// guessTokens calls with tokens that nobody has.
func guessTokens(ctx context.Context, at target) (int64, error) {
	conn, err := at.dial()
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	return repeat(ctx, 8, func() error {
		s, err := pb.NewAgentServiceClient(conn).Connect(withToken(ctx, rand.Text()))
		if err == nil {
			_, err = s.Recv()
		}
		if c := grpcstatus.Code(err); c != codes.Unauthenticated && c != codes.Unavailable {
			return err
		}
		return nil
	})
}

// repeat calls f by several callers until ctx ends, and returns how often it
// returned nil.
func repeat(ctx context.Context, callers int, f func() error) (int64, error) {
	var done atomic.Int64
	var running sync.WaitGroup
	for range callers {
		running.Go(func() {
			for ctx.Err() == nil {
				if f() == nil {
					done.Add(1)
					continue
				}
				pause(ctx, 20*time.Millisecond)
			}
		})
	}
	running.Wait()
	return done.Load(), nil
}
