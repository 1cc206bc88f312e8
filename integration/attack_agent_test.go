package integration

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// megabyte is the largest message of an agent, with room for what stands around it.
const megabyte = 1<<20 - 64

// Fields of ConnectRequest.
const (
	fieldStats     = 3
	fieldMetadata  = 4
	fieldLifecycle = 5
	fieldAppHealth = 6
	fieldNetwork   = 7
)

// agents have tokens.
var agents = []attack{
	{name: "empty samples", idle: true, run: bomb(fieldStats, repeated([]byte{0x62, 0}, megabyte))},
	{name: "empty labels", idle: true, run: bomb(fieldStats, repeated(wrapped(12, []byte{0x22, 0, 0x22, 0, 0x22, 0, 0x22, 0}), megabyte))},
	{name: "session names", idle: true, run: bomb(fieldStats, mapNames(13))},
	{name: "protocol names", idle: true, run: bomb(fieldStats, mapNames(1))},
	{name: "empty metadata", idle: true, run: bomb(fieldMetadata, repeated([]byte{0x0a, 0}, megabyte))},
	{name: "empty app health", idle: true, run: bomb(fieldAppHealth, repeated([]byte{0x0a, 0}, megabyte))},
	{name: "empty regions", idle: true, run: bomb(fieldNetwork, repeated([]byte{0x1a, 0}, megabyte))},
	{name: "unknown fields", idle: true, run: bomb(fieldStats, repeated([]byte{0xf8, 0x07, 0x01}, megabyte))},
	{name: "nested groups", idle: true, run: bomb(fieldStats, repeated([]byte{0xa3, 0x06}, megabyte))},
	{name: "flood of reports", idle: true, run: func(ctx context.Context, at target) (int64, error) {
		return flood(ctx, at, 8, func(int, int64) proto.Message { return goodReport() }, fieldStats)
	}},
	{name: "flood of lifecycle states", idle: true, run: func(ctx context.Context, at target) (int64, error) {
		return flood(ctx, at, 8, func(_ int, seq int64) proto.Message {
			return &pb.Lifecycle{State: pb.Lifecycle_State(1 + seq%4)}
		}, fieldLifecycle)
	}},
	{name: "flood of metadata", idle: true, run: func(ctx context.Context, at target) (int64, error) {
		return flood(ctx, at, 8, func(_ int, seq int64) proto.Message {
			report := &pb.MetadataReport{}
			for k := range 120 {
				value := fmt.Sprint(seq, k, strings.Repeat("v", 2000))
				report.Metadata = append(report.Metadata, &pb.Metadata{Key: fmt.Sprintf("key-%d", k), Result: &pb.Metadata_Result{Value: value}})
			}
			return report
		}, fieldMetadata)
	}},
	{name: "flood of keys", idle: true, run: func(ctx context.Context, at target) (int64, error) {
		return flood(ctx, at, 8, func(agent int, seq int64) proto.Message {
			key := fmt.Sprintf("%d-%d-%s", agent, seq, strings.Repeat("k", 3000))
			return &pb.MetadataReport{Metadata: []*pb.Metadata{{Key: key, Result: &pb.Metadata_Result{Value: "v"}}}}
		}, fieldMetadata)
	}},
	{name: "flood of names", idle: true, run: func(ctx context.Context, at target) (int64, error) {
		return flood(ctx, at, 8, func(agent int, seq int64) proto.Message {
			report := &pb.Stats{}
			for i := range 200 {
				report.Metrics = append(report.Metrics, gauge(fmt.Sprintf("name_%d_%d_%d", agent, seq, i)))
			}
			return report
		}, fieldStats)
	}},
	{name: "wide series", run: func(ctx context.Context, at target) (int64, error) {
		return flood(ctx, at, at.Agents, func(agent int, seq int64) proto.Message {
			report := &pb.Stats{}
			for i := range 200 {
				value := fmt.Sprintf("%d-%d-%s", agent, i, strings.Repeat("x", 1000))
				report.Metrics = append(report.Metrics, gauge("wide", "a", value, "b", value, "c", value, "d", value))
			}
			return report
		}, fieldStats)
	}},
	{name: "sessions come and go", run: func(ctx context.Context, at target) (int64, error) {
		var next atomic.Int64
		conn, err := at.dial()
		if err != nil {
			return 0, err
		}
		defer func() { _ = conn.Close() }()
		return repeat(ctx, 8, func() error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			_, err := openSession(ctx, conn, at.First+int(next.Add(1))%8)
			return err
		})
	}},
	{name: "streams without a hello", run: func(ctx context.Context, at target) (int64, error) {
		return parkCalls(ctx, at, 1, 60000, pathConnect, "authorization", "Bearer "+tokenOf(at.First))
	}},
	{name: "sessions that read nothing", run: unread},
	{name: "rapid reset by agents", run: func(ctx context.Context, at target) (int64, error) {
		return floodFrames(ctx, at, 4, true, func(c *rawHTTP2, i int) error {
			stream := uint32(2*i + 1)
			if err := c.call(stream, pathConnect, "authorization", "Bearer "+tokenOf(at.First+i%8)); err != nil {
				return err
			}
			return c.write(func() error { return c.framer.WriteRSTStream(stream, http2.ErrCodeCancel) })
		})
	}},
	{name: "half-sent large messages of agents", run: func(ctx context.Context, at target) (int64, error) {
		return halfSentByAgents(ctx, at, megabyte)
	}},
	{name: "half-sent small messages of agents", run: func(ctx context.Context, at target) (int64, error) {
		return halfSentByAgents(ctx, at, 64<<10)
	}},
}

// owners have many agents and want all the room that there is.
var owners = []attack{
	{name: "series of one owner", run: func(ctx context.Context, at target) (int64, error) {
		return flood(ctx, at, at.Agents, func(agent int, seq int64) proto.Message {
			report := &pb.Stats{}
			for i := range 400 {
				report.Metrics = append(report.Metrics, gauge("one_of_many", "number", fmt.Sprint(agent, i)))
			}
			return report
		}, fieldStats)
	}},
	{name: "families of one owner", run: func(ctx context.Context, at target) (int64, error) {
		return flood(ctx, at, at.Agents, func(agent int, _ int64) proto.Message {
			report := &pb.Stats{}
			for i := range 100 {
				report.Metrics = append(report.Metrics, gauge(fmt.Sprintf("family_%d_%d", agent, i)))
			}
			return report
		}, fieldStats)
	}},
}

// mapNames is a map of a report with more names than a service would look at.
func mapNames(field byte) (out []byte) {
	for i := 0; len(out) < megabyte-32; i++ {
		name := fmt.Sprintf("%x", i)
		out = append(out, wrapped(field, append(wrapped(1, []byte(name)), 0x10, 1))...)
	}
	return out
}

// bomb is an attack by eight agents that send one encoded message over and over.
func bomb(field byte, body []byte) func(ctx context.Context, at target) (int64, error) {
	return func(ctx context.Context, at target) (int64, error) {
		return stream(ctx, at, 8, func(_ int, seq int64) []byte { return numbered(seq, field, body) })
	}
}

// flood is an attack by agents that send messages as fast as they can.
func flood(ctx context.Context, at target, senders int, message func(agent int, seq int64) proto.Message, field byte) (int64, error) {
	return stream(ctx, at, senders, func(agent int, seq int64) []byte {
		body, err := proto.Marshal(message(agent, seq))
		if err != nil {
			panic(err) // of the attacker
		}
		return numbered(seq, field, body)
	})
}

// stream sends what message returns, over one session after another. A session
// that the service ends is opened again at once, whatever it said.
func stream(ctx context.Context, at target, senders int, message func(agent int, seq int64) []byte) (int64, error) {
	var sent atomic.Int64
	var running sync.WaitGroup
	for i := range senders {
		running.Go(func() {
			conn, err := at.dial()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			seq := int64(0)
			for ctx.Err() == nil {
				n := sendAll(ctx, conn, at.First+i, func() []byte { seq++; return message(at.First+i, seq) })
				sent.Add(n)
				if n == 0 {
					pause(ctx, 5*time.Millisecond)
				}
			}
		})
	}
	running.Wait()
	return sent.Load(), nil
}

// sendAll opens one session and sends until it ends.
func sendAll(ctx context.Context, conn *grpc.ClientConn, agent int, next func() []byte) (sent int64) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(withToken(ctx, tokenOf(agent)), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, pathConnect, grpc.ForceCodec(rawCodec{}))
	if err != nil || s.SendMsg(helloMessage()) != nil || s.RecvMsg(new(pb.ConnectResponse)) != nil {
		return 0
	}
	go func() {
		for s.RecvMsg(new(pb.ConnectResponse)) == nil {
		}
	}()
	for ctx.Err() == nil && s.SendMsg(next()) == nil {
		sent++
	}
	return sent
}

// unread opens session after session of one agent, each of which supersedes the
// one before, over a connection with no room for answers.
func unread(ctx context.Context, at target) (int64, error) {
	report := &pb.Stats{}
	for i := range 16 {
		report.Metrics = append(report.Metrics, gauge(fmt.Sprintf("coderd_%d_%s", i, strings.Repeat("q", 150))))
	}
	return floodFrames(ctx, at, 1, true, func(c *rawHTTP2, i int) error {
		if i == 0 {
			if err := c.write(func() error {
				return c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			}); err != nil {
				return err
			}
		}
		id := uint32(2*i + 1)
		if err := c.call(id, pathConnect, "authorization", "Bearer "+tokenOf(at.First)); err != nil {
			return err
		}
		if err := c.message(id, helloMessage()); err != nil {
			return err
		}
		for seq := int64(1); seq <= 10; seq++ {
			if err := c.message(id, &pb.ConnectRequest{Sequence: seq, Stats: report}); err != nil {
				return err
			}
		}
		return nil
	})
}

// halfSentByAgents opens as many sessions of every agent as it may have streams, one
// after another, on a connection without room for answers. On each it sends a message
// without its end. As many streams more send half a hello. A connection that the
// service ends is made again.
func halfSentByAgents(ctx context.Context, at target, size int) (int64, error) {
	var sent atomic.Int64
	var running sync.WaitGroup
	for i := range at.Agents {
		running.Go(func() {
			for ctx.Err() == nil {
				sent.Add(halfSend(ctx, at, tokenOf(at.First+i), size))
				pause(ctx, 50*time.Millisecond)
			}
		})
	}
	running.Wait()
	return sent.Load(), nil
}

// halfSend does so with one agent's connection, until that or ctx ends, and returns how
// many parts of messages it sent.
func halfSend(ctx context.Context, at target, token string, size int) (sent int64) {
	const (
		streams = 8
		part    = 8 << 10
	)
	c, err := dialRaw(at.GRPC, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	if err != nil {
		return 0
	}
	defer func() { _ = c.Close() }()
	go c.answer()
	data := func(stream uint32, data []byte) bool {
		if c.gone.Load() || ctx.Err() != nil || c.write(func() error { return c.framer.WriteData(stream, false, data) }) != nil {
			return false
		}
		sent++
		return true
	}
	stream := uint32(1)
	for range streams {
		if c.call(stream, pathConnect, "authorization", "Bearer "+token) != nil || c.message(stream, helloMessage()) != nil || !data(stream, prefix(size)) {
			return sent
		}
		pause(ctx, 5*time.Millisecond) // for its session to open
		for left := size - 1; left >= part; left -= part {
			if !data(stream, make([]byte, part)) {
				return sent
			}
			pause(ctx, time.Millisecond) // for what is read to make room
		}
		stream += 2
	}
	for range streams - 1 {
		if c.call(stream, pathConnect, "authorization", "Bearer "+token) != nil || !data(stream, append(prefix(4<<10), make([]byte, 4<<10-1)...)) {
			return sent
		}
		stream += 2
	}
	for ctx.Err() == nil && !c.gone.Load() {
		pause(ctx, 50*time.Millisecond)
	}
	return sent
}
