package coderdapi_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// memory is what calls of coderd have, as metrics say.
func callsMemory(s *edgetest.Service, kind string) float64 {
	return s.Counter("agentstatsd_coderd_memory_bytes", kind)
}

// millionRegistrations are empty, and are encoded already.
func millionRegistrations() *pb.SyncAgentsRequest {
	req := &pb.SyncAgentsRequest{}
	req.ProtoReflect().SetUnknown(bytes.Repeat([]byte{1<<3 | 2, 0}, 1_000_000))
	return req
}

// All syncs that are under way have a budget together, and each message is counted
// by its elements.
func TestSyncsAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Coderd: coderdapi.Options{MaxSyncBytes: 1 << 20}})
		sync := func() pb.CoderdService_SyncAgentsClient {
			c, err := s.Coderd().SyncAgents(s.AsCoderd())
			require.NoError(t, err)
			return c
		}
		part := &pb.SyncAgentsRequest{}
		for n := range 100 {
			reg := edgetest.Registration(n + 1)
			for i := range 50 {
				reg.MetadataKeys = append(reg.MetadataKeys, fmt.Sprint(strings.Repeat("k", 100), i))
			}
			part.Agents = append(part.Agents, reg)
		}
		first := sync()
		require.NoError(t, first.Send(part))
		synctest.Wait()
		taken := callsMemory(s, "registrations")
		require.Greater(t, taken, 500_000.0)
		second := sync()
		require.NoError(t, second.Send(part))
		_, err := second.CloseAndRecv()
		edgetest.RequireCodeContains(t, err, codes.ResourceExhausted, "message: want at most 1048576 bytes in memory of all registrations under way (--max-sync-bytes), got ")
		require.NotZero(t, edgetest.RetryDelay(t, err))
		require.Equal(t, 1.0, s.Counter("agentstatsd_coderd_memory_refused_total", "registrations"))
		synctest.Wait()
		require.Equal(t, taken, callsMemory(s, "registrations"), "what was refused takes nothing")
		require.NoError(t, first.Send(&pb.SyncAgentsRequest{Complete: true}))
		_, err = first.CloseAndRecv()
		require.NoError(t, err)
		synctest.Wait()
		require.Zero(t, callsMemory(s, "registrations"))

		bomb := sync()
		require.NoError(t, bomb.Send(millionRegistrations()))
		_, err = bomb.CloseAndRecv()
		edgetest.RequireCodeContains(t, err, codes.ResourceExhausted, "message: want at most 33554432 bytes in memory once decoded (8 times --max-message-bytes), got 2000000 encoded")
	})
}

// So have all pushes, and each family is counted by its elements before it is
// decoded.
func TestPushesAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxMessageBytes: 100_000, MaxAgentMessageBytes: 100_000}, Coderd: coderdapi.Options{MaxPushBytes: 100_000, MaxPushesBytes: 150_000}})
		first, second := openPush(s, pushHello(1, "a")), openPush(s, pushHello(2, "b"))
		family := "\x12\xc0\xb8\x02" + strings.Repeat("h", 40_000) // of help
		for n := range int64(5) {
			first.part(family)
			synctest.Wait()
			require.InDelta(t, 40_000, callsMemory(s, "pushes"), 1000)
			first.part(family)
			first.end(&pb.PushEnd{Snapshot: n + 1})
			first.answer()
			synctest.Wait()
			require.Less(t, callsMemory(s, "pushes"), 1000.0, "what is taken in is given back")
		}
		first.part(family)
		first.part(family)
		synctest.Wait()
		second.part(family)
		second.part(family)
		second.requireEnd(codes.ResourceExhausted, "message: want at most 150000 bytes in memory of all pushes under way (--max-pushes-bytes)")
		first.end(&pb.PushEnd{Snapshot: 6})
		first.answer()

		first.part(string(bytes.Repeat([]byte{0x22, 0}, 20_000)))
		first.requireEnd(codes.ResourceExhausted, "families.families[0]: want at most 1600000 bytes in memory once decoded (16 times --max-message-bytes), got 40000 encoded and more decoded: it has too many elements")
		third := openPush(s, pushHello(3, "c"))
		for range 8 {
			third.part(string(bytes.Repeat([]byte{0x22, 0}, 600)))
		}
		third.requireEnd(codes.ResourceExhausted, "families: want at most 400000 bytes in memory once decoded (4 times --max-push-bytes), got ")
		require.Equal(t, 2.0, s.Counter("agentstatsd_push_oversized_total", ""))
		synctest.Wait()
		require.Zero(t, callsMemory(s, "pushes"))
	})
}

// Calls of coderd that come to nothing are paced; others do not wait.
func TestFutileCallsArePaced(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		took := func(f func()) time.Duration {
			before := time.Now()
			f()
			return time.Since(before)
		}
		bomb := millionRegistrations()
		refused := func() {
			c, err := s.Coderd().SyncAgents(s.AsCoderd())
			require.NoError(t, err)
			require.NoError(t, c.Send(bomb))
			_, err = c.CloseAndRecv()
			edgetest.RequireCodeContains(t, err, codes.ResourceExhausted, "it has too many elements")
		}
		left := func(part string, end func(pushing)) {
			ctx, cancel := context.WithCancel(s.AsCoderd())
			c, err := s.Coderd().PushMetrics(ctx)
			require.NoError(t, err)
			p := pushing{c, t}
			p.send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_Hello{Hello: pushHello(1, "a")}})
			p.part(part)
			end(p)
			synctest.Wait()
			cancel()
			synctest.Wait()
		}
		family := "\x12\x80\x89\x7a" + strings.Repeat("h", 2_000_000) // of help

		require.Zero(t, took(func() {
			for range 3 {
				refused()
			}
		}), "8 MiB cost nothing")
		require.Zero(t, took(func() {
			for n := range 20 {
				left(family, func(p pushing) { p.end(&pb.PushEnd{Snapshot: int64(n + 1)}); p.answer() })
			}
		}), "what is answered costs nothing, and each call that is left 64 KiB")
		require.InDelta(t, 0.25, took(refused).Seconds(), 0.05)
		for range 4 {
			left(family, func(pushing) {})
		}
		require.InDelta(t, 2.46, took(refused).Seconds(), 0.05)
		require.Zero(t, took(func() { s.Register(1) }))
		require.NotZero(t, s.Counter("agentstatsd_coderd_calls_slowed_total", ""))
	})
}

// A call comes to nothing also if its end has no error, or if it is not what was sent
// that is wrong.
func TestFutileCalls(t *testing.T) {
	filler := bytes.Repeat([]byte{15<<3 | 2, 0}, 1_000_000) // of a field that is unknown
	family := "\x12\x80\x89\x7a" + strings.Repeat("h", 2_000_000)
	sync := func(s *edgetest.Service, req *pb.SyncAgentsRequest) error {
		req.ProtoReflect().SetUnknown(filler)
		c, err := s.Coderd().SyncAgents(s.AsCoderd())
		require.NoError(s.T, err)
		require.NoError(s.T, c.Send(req))
		_, err = c.CloseAndRecv()
		return err
	}
	for name, c := range map[string]struct {
		futile bool
		call   func(s *edgetest.Service)
	}{
		"a push without its end": {true, func(s *edgetest.Service) {
			p := openPush(s, pushHello(1, "a"))
			p.part(family)
			require.NoError(s.T, p.CloseSend())
			_, err := p.Recv()
			require.ErrorIs(s.T, err, io.EOF)
		}},
		"a push that is superseded": {true, func(s *edgetest.Service) {
			p := openPush(s, pushHello(1, "a"))
			p.part(family)
			synctest.Wait()
			newer := openPush(s, pushHello(1, "a"))
			p.requireEnd(codes.Aborted, "superseded")
			require.NoError(s.T, newer.CloseSend())
		}},
		"a sync that needs force": {true, func(s *edgetest.Service) {
			edgetest.RequireCodeContains(s.T, sync(s, &pb.SyncAgentsRequest{Complete: true}), codes.FailedPrecondition, "force")
		}},
		"a sync": {false, func(s *edgetest.Service) {
			require.NoError(s.T, sync(s, &pb.SyncAgentsRequest{Complete: true, Force: true}))
		}},
		"a registration": {false, func(s *edgetest.Service) {
			req := &pb.RegisterAgentsRequest{}
			req.ProtoReflect().SetUnknown(filler)
			_, err := s.Coderd().RegisterAgents(s.AsCoderd(), req)
			require.NoError(s.T, err)
		}},
		"a push": {false, func(s *edgetest.Service) {
			p := openPush(s, pushHello(1, "a"))
			p.part(family)
			p.end(&pb.PushEnd{Snapshot: 1})
			p.answer()
			require.NoError(s.T, p.CloseSend())
			_, err := p.Recv()
			require.ErrorIs(s.T, err, io.EOF)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := edgetest.Start(t, edgetest.Settings{})
				s.Register(1, 2, 3)
				for range 6 {
					c.call(s)
				}
				require.Equal(t, c.futile, s.Counter("agentstatsd_coderd_calls_slowed_total", "") > 0)
			})
		})
	}
}

// A call that is paced keeps no other one out.
func TestFutileCallsHaveNoSlots(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxCoderdCalls: 2}})
		bomb := millionRegistrations()
		var refused sync.WaitGroup
		for range 8 {
			refused.Go(func() {
				c, err := s.Coderd().SyncAgents(s.AsCoderd())
				if err == nil {
					err = c.Send(bomb)
				}
				if err == nil {
					_, err = c.CloseAndRecv()
				}
				assert.Equal(t, codes.ResourceExhausted, status.Code(err), "%v", err)
			})
		}
		synctest.Wait()
		require.Equal(t, 4.0, s.Counter("agentstatsd_coderd_calls_slowed_total", ""))
		began := time.Now()
		s.Register(1)
		require.Zero(t, time.Since(began))
		refused.Wait()
		require.NotZero(t, time.Since(began))
	})
}
