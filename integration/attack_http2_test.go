package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

const (
	pathConnect     = "/agentstats.v1.AgentService/Connect"
	pathRegister    = "/agentstats.v1.CoderdService/RegisterAgents"
	pathSync        = "/agentstats.v1.CoderdService/SyncAgents"
	pathPush        = "/agentstats.v1.CoderdService/PushMetrics"
	pathHealthWatch = "/grpc.health.v1.Health/Watch"
	pathHealthCheck = "/grpc.health.v1.Health/Check"
	pathReflection  = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
)

// rawHTTP2 is a connection on which frames can be sent that no client would.
type rawHTTP2 struct {
	net.Conn
	framer *http2.Framer

	mu     sync.Mutex // held to write
	header bytes.Buffer
	hpack  *hpack.Encoder

	gone atomic.Bool // the service ended it
}

func dialRaw(address string, settings ...http2.Setting) (*rawHTTP2, error) {
	conn, err := attackerDialer.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &rawHTTP2{Conn: conn, framer: http2.NewFramer(conn, conn)}
	c.hpack = hpack.NewEncoder(&c.header)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		_ = conn.Close()
		return nil, err
	}
	if err := c.write(func() error { return c.framer.WriteSettings(settings...) }); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// write writes within two seconds: a service that reads no more ends an attack on
// this connection.
func (c *rawHTTP2) write(f func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.SetWriteDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	return f()
}

// answer reads, and answers what keeps a connection alive, until it ends.
func (c *rawHTTP2) answer() {
	defer c.gone.Store(true)
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = c.write(c.framer.WriteSettingsAck)
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				data := f.Data
				err = c.write(func() error { return c.framer.WritePing(true, data) })
			}
		case *http2.GoAwayFrame:
			c.gone.Store(true)
		}
		if err != nil {
			return
		}
	}
}

// call begins a call on a stream, and does not end it.
func (c *rawHTTP2) call(stream uint32, path string, headers ...string) error {
	return c.write(func() error {
		c.header.Reset()
		list := append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "x", "content-type", "application/grpc", "te", "trailers"}, headers...)
		for i := 0; i < len(list); i += 2 {
			if err := c.hpack.WriteField(hpack.HeaderField{Name: list[i], Value: list[i+1]}); err != nil {
				return err
			}
		}
		return c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.header.Bytes(), EndHeaders: true})
	})
}

// message sends one gRPC message that fits into a frame.
func (c *rawHTTP2) message(stream uint32, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return c.write(func() error { return c.framer.WriteData(stream, false, append(prefix(len(body)), body...)) })
}

// prefix is what stands before a gRPC message of n bytes.
func prefix(n int) []byte { return []byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }

// parkCalls opens calls on connections and leaves them as they are until ctx
// ends.
func parkCalls(ctx context.Context, at target, connections, calls int, path string, headers ...string) (int64, error) {
	var opened int64
	var all []*rawHTTP2
	defer func() { closeAll(all) }()
	for range connections {
		c, err := dialRaw(at.GRPC)
		if err != nil {
			return opened, err
		}
		all = append(all, c)
		go c.answer()
		for i := 0; i < calls && ctx.Err() == nil && !c.gone.Load(); i++ {
			if c.call(uint32(2*i+1), path, headers...) != nil {
				break
			}
			opened++
		}
	}
	<-ctx.Done()
	return opened, nil
}

// floodFrames writes frames on connections, one after another, as fast as can be.
// Answers are read if read is true.
func floodFrames(ctx context.Context, at target, connections int, read bool, write func(c *rawHTTP2, i int) error) (int64, error) {
	var written atomic.Int64
	var running sync.WaitGroup
	for range connections {
		running.Go(func() {
			for ctx.Err() == nil {
				c, err := dialRaw(at.GRPC)
				if err != nil {
					pause(ctx, 50*time.Millisecond)
					continue
				}
				if read {
					go c.answer()
				}
				for i := 0; ctx.Err() == nil && write(c, i) == nil; i++ {
					written.Add(1)
				}
				_ = c.Close()
			}
		})
	}
	running.Wait()
	return written.Load(), nil
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

var _ encoding.Codec = rawCodec{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case []byte:
		return v, nil
	case proto.Message:
		return proto.Marshal(v)
	}
	return nil, fmt.Errorf("cannot send a %T", v)
}

func (rawCodec) Unmarshal(b []byte, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = b
		return nil
	case proto.Message:
		return proto.Unmarshal(b, v)
	}
	return fmt.Errorf("cannot receive a %T", v)
}

// repeated is an encoded field over and over, up to size bytes.
func repeated(field []byte, size int) []byte { return bytes.Repeat(field, size/len(field)) }

// wrapped is a field of bytes.
func wrapped(field byte, body []byte) []byte {
	out := []byte{field<<3 | 2}
	n := uint64(len(body))
	for n >= 0x80 {
		out = append(out, byte(n)|0x80)
		n >>= 7
	}
	return append(append(out, byte(n)), body...)
}

// numbered is a ConnectRequest with a sequence and one field of bytes.
func numbered(sequence int64, field byte, body []byte) []byte {
	out := []byte{0x08}
	n := uint64(sequence)
	for n >= 0x80 {
		out = append(out, byte(n)|0x80)
		n >>= 7
	}
	return append(append(out, byte(n)), wrapped(field, body)...)
}

func without(ctx context.Context) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.MD{})
}
