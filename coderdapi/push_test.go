package coderdapi_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

type pushing struct {
	pb.CoderdService_PushMetricsClient
	t testing.TB
}

func pushHello(instance byte, replica string) *pb.PushHello {
	id := make([]byte, 16)
	id[15] = instance
	return &pb.PushHello{Replica: replica, InstanceId: id, Interval: durationpb.New(15 * time.Second)}
}

func openPush(s *edgetest.Service, hello *pb.PushHello) pushing {
	s.T.Helper()
	c, err := s.Coderd().PushMetrics(s.AsCoderd())
	require.NoError(s.T, err)
	p := pushing{c, s.T}
	p.send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_Hello{Hello: hello}})
	return p
}

// send sends a request. Recv returns why a stream has ended.
func (p pushing) send(req *pb.PushMetricsRequest) {
	p.t.Helper()
	if err := p.Send(req); !errors.Is(err, io.EOF) {
		require.NoError(p.t, err)
	}
}

func (p pushing) part(families ...string) {
	p.t.Helper()
	part := &pb.PushFamilies{}
	for _, f := range families {
		part.Families = append(part.Families, []byte(f))
	}
	p.send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_Families{Families: part}})
}

func (p pushing) end(end *pb.PushEnd) {
	p.t.Helper()
	p.send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_End{End: end}})
}

func (p pushing) answer() *pb.PushMetricsResponse {
	p.t.Helper()
	m, err := p.Recv()
	require.NoError(p.t, err)
	return m
}

func (p pushing) requireEnd(code codes.Code, text string) {
	p.t.Helper()
	_, err := p.Recv()
	require.Equal(p.t, code, status.Code(err), "%v", err)
	require.Contains(p.t, err.Error(), text)
}

func TestPush(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		p := openPush(s, pushHello(7, "coderd-0"))
		p.part("a", "bb")
		p.part("ccc")
		p.end(&pb.PushEnd{Snapshot: 3})
		require.Equal(t, int64(3), p.answer().GetSnapshot())
		require.Equal(t, 1.0, s.Counter("agentstatsd_push_streams", ""))
		began := time.Now()
		time.Sleep(time.Second)
		p.end(&pb.PushEnd{Snapshot: 4, Final: true})
		require.Equal(t, int64(4), p.answer().GetSnapshot())
		want := agent.Push{
			Replica: "coderd-0", Instance: agent.Instance{15: 7}, Interval: 15 * time.Second, Snapshot: 3,
			Families: [][]byte{[]byte("a"), []byte("bb"), []byte("ccc")},
		}
		require.Equal(t, want, s.Pushes.Taken[0])
		want.Snapshot, want.Final, want.Families = 4, true, nil
		require.Equal(t, want, s.Pushes.Taken[1])
		require.Equal(t, []time.Time{began, began.Add(time.Second)}, s.Pushes.At)

		// A part without an end is nothing.
		p.part("x")
		require.NoError(t, p.CloseSend())
		p.requireEnd(codes.Unknown, "EOF")
		require.Len(t, s.Pushes.Names(), 2)
		synctest.Wait()
		require.Equal(t, 0.0, s.Counter("agentstatsd_push_streams", ""))
	})
}

// A scrape is ordered by when it began, and says if it came to nothing.
func TestPushOfAScrape(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		p := openPush(s, pushHello(7, "coderd-0"))
		p.end(&pb.PushEnd{Snapshot: 1, Age: durationpb.New(2 * time.Second)})
		require.False(t, p.answer().GetSuperseded())
		require.Equal(t, time.Now().Add(-2*time.Second), s.Pushes.Taken[0].ScrapedAt)
		s.Pushes.Err = agent.ErrNewerScrape
		p.end(&pb.PushEnd{Snapshot: 2, Age: durationpb.New(0)})
		got := p.answer()
		require.True(t, got.GetSuperseded())
		require.Equal(t, int64(2), got.GetSnapshot())
		s.Pushes.Err = nil
		p.end(&pb.PushEnd{Snapshot: 3})
		require.False(t, p.answer().GetSuperseded())
		require.True(t, s.Pushes.Taken[1].ScrapedAt.IsZero())
	})
}

// Only coderd itself takes the place of agents.
func TestPassThrough(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	hello := pushHello(1, "a")
	hello.PassThrough = true
	p := openPush(s, hello)
	p.end(&pb.PushEnd{Snapshot: 1})
	p.answer()
	require.True(t, s.Pushes.Taken[0].PassThrough)
	c, err := s.Coderd().PushMetrics(edgetest.As(t.Context(), edgetest.PushToken))
	require.NoError(t, err)
	pushing{c, t}.send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_Hello{Hello: hello}})
	pushing{c, t}.requireEnd(codes.PermissionDenied, "hello.pass_through: is not for a token that may only push (--push-token-file)")
	require.Len(t, s.Pushes.Taken, 1)
}

func TestComponentsAreRequired(t *testing.T) {
	server, err := grpcserver.New(nil, grpcserver.Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	for want, c := range map[string]coderdapi.Components{
		"coderdapi components: pushes is absent":  {},
		"coderdapi components: reports is absent": {Pushes: &edgetest.Pushes{}},
	} {
		_, err = coderdapi.New(server, c, coderdapi.Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.EqualError(t, err, want)
	}
}

func TestPushReturnsRefusals(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	for i := range 100 {
		s.Pushes.Refuse = append(s.Pushes.Refuse, agent.PushRefusal{
			Name: fmt.Sprint(i, strings.Repeat("n", 300)), Reason: "owned_by_service", Message: "m\xff" + strings.Repeat("m", 2000),
		})
	}
	p := openPush(s, pushHello(1, "a"))
	p.end(&pb.PushEnd{Snapshot: 1})
	got := p.answer()
	require.Equal(t, int64(100), got.GetRefusedCount())
	require.Len(t, got.GetRefused(), 64)
	require.Equal(t, "63"+strings.Repeat("n", 198), got.GetRefused()[63].GetName())
	require.Equal(t, "owned_by_service", got.GetRefused()[0].GetReason())
	require.Equal(t, "m\uFFFD"+strings.Repeat("m", 1020), got.GetRefused()[0].GetMessage())
}

func TestPushHello(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		for want, change := range map[string]func(*pb.PushHello){
			"hello.replica: want 1 to 256 bytes, got 0":            func(h *pb.PushHello) { h.Replica = "" },
			"hello.replica: want 1 to 256 bytes, got 257":          func(h *pb.PushHello) { h.Replica = strings.Repeat("x", 257) },
			"hello.instance_id: want 16 bytes, got 15":             func(h *pb.PushHello) { h.InstanceId = h.GetInstanceId()[:15] },
			"hello.instance_id: want random bytes, got zeros":      func(h *pb.PushHello) { h.InstanceId[15] = 0 },
			"hello.interval: want 1s to 1h0m0s, got 0s":            func(h *pb.PushHello) { h.Interval = nil },
			"hello.interval: want 1s to 1h0m0s, got 999ms":         func(h *pb.PushHello) { h.Interval = durationpb.New(999 * time.Millisecond) },
			"hello.interval: want 1s to 1h0m0s, got 1h0m0.000001s": func(h *pb.PushHello) { h.Interval = durationpb.New(time.Hour + time.Microsecond) },
			"hello.interval: want 1s to 1h0m0s, got -1s":           func(h *pb.PushHello) { h.Interval = durationpb.New(-time.Second) },
		} {
			hello := pushHello(1, "a")
			change(hello)
			p := openPush(s, hello)
			p.requireEnd(codes.InvalidArgument, want)
		}
		p, err := s.Coderd().PushMetrics(s.AsCoderd())
		require.NoError(t, err)
		pushing{p, t}.send(&pb.PushMetricsRequest{})
		pushing{p, t}.requireEnd(codes.InvalidArgument, "hello: want it as the first message")
		p, err = s.Coderd().PushMetrics(s.AsCoderd())
		require.NoError(t, err)
		require.NoError(t, p.CloseSend())
		pushing{p, t}.requireEnd(codes.InvalidArgument, "hello: want it as the first message, got none")
		p, err = s.Coderd().PushMetrics(s.AsCoderd())
		require.NoError(t, err)
		pushing{p, t}.requireEnd(codes.InvalidArgument, "message: want the first one within 10s (--grpc-first-message-timeout)")
		s.Register(1)
		p, err = s.Coderd().PushMetrics(edgetest.As(t.Context(), edgetest.Token(1)))
		require.NoError(t, err)
		pushing{p, t}.requireEnd(codes.PermissionDenied, "for coderd")
		require.Empty(t, s.Pushes.Names())
	})
}

func TestPushBreaksTheContract(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	for want, send := range map[string]func(pushing){
		"hello: want it as the first message only": func(p pushing) {
			p.send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_Hello{Hello: pushHello(1, "a")}})
		},
		"message: want one of families and end, got none": func(p pushing) { p.send(&pb.PushMetricsRequest{}) },
		"end.age: want 0 to 1h0m0s, got -1ns":             func(p pushing) { p.end(&pb.PushEnd{Snapshot: 1, Age: durationpb.New(-1)}) },
		"end.age: want 0 to 1h0m0s, got 1h0m0.000000001s": func(p pushing) {
			p.end(&pb.PushEnd{Snapshot: 1, Age: durationpb.New(time.Hour + 1)})
		},
		"end.snapshot: want above 0, got 0": func(p pushing) { p.end(&pb.PushEnd{Snapshot: 0}) },
		"end.snapshot: want above 5, got 5": func(p pushing) {
			p.end(&pb.PushEnd{Snapshot: 5})
			p.answer()
			p.end(&pb.PushEnd{Snapshot: 5})
		},
	} {
		p := openPush(s, pushHello(1, "a"))
		send(p)
		p.requireEnd(codes.InvalidArgument, want)
	}
}

// Those who may only push leave some pushes to coderd.
func TestPushesOfThoseWhoOnlyPush(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{Coderd: coderdapi.Options{MaxPushes: 4}})
	as := func(token string, instance byte) pushing {
		c, err := s.Coderd().PushMetrics(edgetest.As(t.Context(), token))
		require.NoError(t, err)
		p := pushing{c, t}
		p.send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_Hello{Hello: pushHello(instance, "a")}})
		return p
	}
	served := func(p pushing) {
		p.end(&pb.PushEnd{Snapshot: 1})
		p.answer()
	}
	for n := range 3 {
		served(as(edgetest.PushToken, byte(1+n)))
	}
	as(edgetest.PushToken, 4).requireEnd(codes.ResourceExhausted, "want at most 3 pushes at once of those who may only push, a share of --max-coderd-instances")
	require.Equal(t, 1.0, s.Counter("agentstatsd_streams_refused_total", "push"))
	served(as(edgetest.CoderdToken, 5))
}

func TestPushLimits(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{Coderd: coderdapi.Options{MaxPushes: 1, MaxPushBytes: 1000}})
	p := openPush(s, pushHello(1, "a"))
	half := strings.Repeat("x", 500-24)
	for n := range int64(2) {
		p.part(half)
		p.part(half)
		p.end(&pb.PushEnd{Snapshot: n + 1})
		p.answer()
	}
	openPush(s, pushHello(2, "b")).requireEnd(codes.ResourceExhausted, "want at most 1 pushes at once (--max-coderd-instances)")
	require.Equal(t, 1.0, s.Counter("agentstatsd_streams_refused_total", "push"))
	p.part(half)
	p.part(half, "")
	p.requireEnd(codes.ResourceExhausted, "families: want at most 1000 bytes in a snapshot (--max-push-bytes), with 24 for each family, got 1024 so far")
	require.Equal(t, 1.0, s.Counter("agentstatsd_push_oversized_total", ""))
	require.Len(t, s.Pushes.Names(), 2)
}

func TestPushWhileTheStoreFails(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Pushes.Err = errors.New("disk I/O error at /var/lib/secret")
	p := openPush(s, pushHello(1, "a"))
	p.end(&pb.PushEnd{Snapshot: 1})
	p.requireEnd(codes.Unavailable, "the database cannot be used now; try again")
	require.Contains(t, s.Log.String(), "disk I/O error")
	s.Pushes.Err = nil
	p = openPush(s, pushHello(1, "a"))
	p.end(&pb.PushEnd{Snapshot: 1})
	p.answer()
}

// What pushing again does not cure is not reported as the database's being away.
func TestPushWithoutRoom(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{fmt.Errorf("push: %w: 2 instances are alive, which is the limit", agent.ErrNoRoom), codes.ResourceExhausted, "push: no room: 2 instances are alive, which is the limit"},
		{fmt.Errorf("save push of /var/lib/secret: %w", agent.ErrRejected), codes.InvalidArgument, "the database refuses the data"},
	} {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Pushes.Err = c.err
		p := openPush(s, pushHello(1, "a"))
		p.end(&pb.PushEnd{Snapshot: 1})
		p.requireEnd(c.code, c.text)
	}
}

// TestPushSupersedes shows that a newer stream of an instance ends the older one. No
// snapshot of the older is stored after one of the newer.
func TestPushSupersedes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		other := openPush(s, pushHello(2, "other"))
		first := openPush(s, pushHello(1, "a"))
		first.end(&pb.PushEnd{Snapshot: 1})
		first.answer()
		release := make(chan struct{})
		s.Pushes.Release = release
		first.end(&pb.PushEnd{Snapshot: 2})
		synctest.Wait()

		second := openPush(s, pushHello(1, "b"))
		second.end(&pb.PushEnd{Snapshot: 3})
		synctest.Wait()
		third := openPush(s, pushHello(1, "c"))
		third.end(&pb.PushEnd{Snapshot: 4})
		second.requireEnd(codes.Aborted, "superseded by a newer stream of the instance")
		synctest.Wait()
		require.Equal(t, []string{"a/1"}, s.Pushes.Names(), "the third waits for the first")
		close(release)
		third.answer()
		synctest.Wait()
		require.Equal(t, []string{"a/1", "a/2", "c/4"}, s.Pushes.Names())
		require.Equal(t, int64(2), first.answer().GetSnapshot(), "what is durable is answered")
		first.requireEnd(codes.Aborted, "superseded by a newer stream of the instance")

		other.end(&pb.PushEnd{Snapshot: 1})
		other.answer()
		require.NoError(t, third.CloseSend())
		third.requireEnd(codes.Unknown, "EOF")
		again := openPush(s, pushHello(1, "d"))
		again.end(&pb.PushEnd{Snapshot: 1, Final: true})
		again.answer()
	})
}

func TestPushDrains(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		idle, busy := openPush(s, pushHello(1, "idle")), openPush(s, pushHello(2, "busy"))
		s.Pushes.Release = make(chan struct{})
		busy.end(&pb.PushEnd{Snapshot: 1})
		silent, err := s.Coderd().PushMetrics(s.AsCoderd())
		require.NoError(t, err)
		synctest.Wait()
		began := time.Now()
		go s.Stop()
		idle.requireEnd(codes.Unavailable, "the service is stopping")
		pushing{silent, t}.requireEnd(codes.Unavailable, "the service is stopping")
		close(s.Pushes.Release)
		busy.answer()
		busy.requireEnd(codes.Unavailable, "the service is stopping")
		require.Zero(t, time.Since(began))
	})
}
