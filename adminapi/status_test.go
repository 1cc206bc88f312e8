package adminapi_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	"github.com/coder/agentstatsd/internal/readiness"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// A status has what the metrics have, and what only the process knows.
func TestStatus(t *testing.T) {
	self := adminapi.Self{
		Places: []adminapi.Place{{Name: "database", Value: "sqlite /data/agentstatsd.db"}},
		Readiness: readiness.Answer{
			Reasons:  map[string]string{"batcher": "metadata is not written", "database": "it is stopped"},
			Warnings: []string{"a certificate expires soon"},
		},
	}
	s := edgetest.Start(t, edgetest.Settings{ChangeAdmin: func(c *adminapi.Components) {
		c.Self = func() adminapi.Self { return self }
		c.Identity = adminapi.Identity{ID: agent.ID{7}, Name: "host-a", URL: "https://stats.example.com/a"}
	}})
	s.Registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	checks := []readiness.Check{{Name: "batcher", Err: func() error { return nil }}, {Name: "draining", Err: func() error { return nil }}}
	require.NoError(t, readiness.Register(s.Registry, checks))
	expiry := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, kind := range []string{"server", "client_ca"} {
		certificate := prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_tls_certificate_expiry_timestamp_seconds", ConstLabels: prometheus.Labels{"listener": "grpc", "certificate": kind},
		})
		certificate.Set(float64(expiry.Unix() + int64(i)))
		s.Registry.MustRegister(certificate)
	}
	s.Register(1, 2, 3)
	c := s.Connect(edgetest.Session{Agent: 1})
	c.SendNext(edgetest.Stats(edgetest.Gauge("0bad", 1)))
	part, err := c.Recv()
	require.NoError(t, err)
	require.NotNil(t, edgetest.RefusalOf(part))
	s.Request(2, edgetest.Metadata("a", "1", "b", "2"))

	before := time.Now()
	resp, err := s.Operators().GetStatus(s.AsOperator(), &pb.GetStatusRequest{})
	require.NoError(t, err)
	require.Len(t, resp.GetReplicas(), 1)
	r := resp.GetReplicas()[0]
	require.Equal(t, agent.ID{7}.String(), r.GetId())
	require.Equal(t, "host-a", r.GetName())
	require.Equal(t, "https://stats.example.com/a", r.GetUrl())
	require.True(t, r.GetAlive())
	require.True(t, r.GetLeads(), "one that is alone leads")
	require.False(t, r.GetReady())
	require.False(t, r.GetDraining())
	var components []string
	for _, c := range r.GetComponents() {
		components = append(components, c.GetName()+" "+strconv.FormatBool(c.GetReady())+" "+c.GetReason())
	}
	require.Equal(t, []string{"batcher false metadata is not written", "database false it is stopped", "draining true "}, components)
	require.Equal(t, []string{"a certificate expires soon"}, r.GetWarnings())
	require.Equal(t, "sqlite /data/agentstatsd.db", r.GetPlaces()[0].GetValue())
	require.Len(t, r.GetCertificates(), 2)
	require.Equal(t, []string{"grpc", "client_ca"}, []string{r.GetCertificates()[0].GetListener(), r.GetCertificates()[0].GetKind()})
	require.Equal(t, expiry, r.GetCertificates()[1].GetNotAfter().AsTime())

	require.Equal(t, []float64{3, 1, 0}, []float64{r.GetRegistered(), r.GetConnected(), r.GetRelayed()})
	require.Positive(t, r.GetSeries())
	require.Greater(t, r.GetResidentBytes(), 1e6)
	require.WithinDuration(t, before, r.GetStartedAt().AsTime(), time.Hour)
	require.Nil(t, r.GetScrapedAt(), "nothing is scraped here")
	require.Len(t, r.GetRefused(), 1)
	require.Equal(t, "invalid_name", r.GetRefused()[0].GetName())
	require.Equal(t, 1.0, r.GetRefused()[0].GetCount())
	limits := make(map[string]*pb.Limit)
	for _, l := range r.GetLimits() {
		limits[l.GetName()] = l
	}
	require.Equal(t, []float64{10_000, 2}, []float64{limits["metadata_pending"].GetLimit(), limits["metadata_pending"].GetUsed()})
	require.Nil(t, limits["message_bytes"].Used, "a limit of one message")
	require.Equal(t, 2.0, r.GetDurability().GetReceived())
	require.Equal(t, 2.0, r.GetDurability().GetPending())
	require.Positive(t, r.GetDurability().GetOldestPendingSeconds())
}

// A status has the largest names of the last minute, without counting anything itself.
func TestStatusCardinality(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1, 2)
		for n := 1; n <= 2; n++ {
			c := s.Connect(edgetest.Session{Agent: n})
			c.RequireDurable(c.SendNext(edgetest.Stats(edgetest.Gauge("load", 1))))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		resp, err := s.Operators().GetStatus(s.AsOperator(), &pb.GetStatusRequest{})
		require.NoError(t, err)
		rows := make(map[string]float64)
		for _, g := range resp.GetReplicas()[0].GetCardinality() {
			require.Len(t, g.GetRows(), int(g.GetTotal()))
			for _, row := range g.GetRows() {
				rows[g.GetBy()+" "+row.GetName()] = row.GetSeries()
			}
		}
		require.Equal(t, 2.0, rows["family load"])
		require.Equal(t, 16.0, rows["template docker"], "with what is computed of their stats")
		require.Equal(t, 16.0, rows["owner ada"])
	})
}

// Each method is for those who run the service. An operator's token changes nothing.
func TestMethodsAreForOperators(t *testing.T) {
	changes := []string{"SetDraining"}
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	call := func(method protoreflect.MethodDescriptor, token string) error {
		ctx, cancel := context.WithCancel(edgetest.As(t.Context(), token))
		defer cancel()
		name := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
		stream, err := s.Conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: method.IsStreamingServer()}, name)
		require.NoError(t, err)
		request, response := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
		for _, field := range []protoreflect.Name{"agent", "by"} {
			if text := method.Input().Fields().ByName(field); text != nil {
				request.Set(text, protoreflect.ValueOfString("none")) // is refused, and does not stream
			}
		}
		_ = stream.SendMsg(request) // what comes tells
		_ = stream.CloseSend()
		return stream.RecvMsg(response)
	}
	methods := pb.File_agentstats_v1_admin_proto.Services().ByName("AdminService").Methods()
	require.Positive(t, methods.Len())
	for i := range methods.Len() {
		method := methods.Get(i)
		for token, code := range map[string]codes.Code{edgetest.PushToken: codes.PermissionDenied, edgetest.Token(1): codes.PermissionDenied, "x": codes.Unauthenticated} {
			require.Equal(t, code, status.Code(call(method, token)), "%s by %s", method.Name(), token)
		}
		mayNot := slices.Contains(changes, string(method.Name()))
		require.Equal(t, mayNot, status.Code(call(method, edgetest.OperatorToken)) == codes.PermissionDenied, method.Name())
		require.NotEqual(t, codes.PermissionDenied, status.Code(call(method, edgetest.CoderdToken)), method.Name())
	}
}

// What came in is what became of it, in every answer, also while much comes in and is
// written.
func TestDurabilityAddsUp(t *testing.T) {
	const agents, answers = 4, 50
	const much = 1_000_000_000 // agents that send this much are not locked out
	s := edgetest.Start(t, edgetest.Settings{
		Batcher: batcher.Options{BatchSize: 8, FlushInterval: time.Millisecond, MaxPending: 16},
		Fleet: fleet.Options{
			MessagesPerSecond: much, MessagesBurst: much, BytesPerSecond: much, BytesBurst: much, RefusedPerSecond: much, RefusedBurst: much,
		},
	})
	s.Register(1, 2, 3, 4)
	var enough atomic.Bool
	var sending sync.WaitGroup
	for n := range agents {
		c := s.Connect(edgetest.Session{Agent: n + 1})
		sending.Go(func() {
			for value := 0; !enough.Load(); value++ {
				// Of 6 keys one keeps its value, and not all fit.
				v := strconv.Itoa(value)
				c.SendNext(edgetest.Metadata("a", v, "b", v, "c", v, "d", "same", "e", v, "f", v))
				for part := new(pb.ConnectResponse); part.GetAck() == nil; {
					var err error
					if part, err = c.Recv(); !assert.NoError(t, err) {
						return
					}
				}
			}
		})
	}
	seen := make(map[string]bool)
	for n := 0; n < answers || len(seen) < 5; n++ {
		resp, err := s.Operators().GetStatus(s.AsOperator(), &pb.GetStatusRequest{})
		require.NoError(t, err)
		d := resp.GetReplicas()[0].GetDurability()
		require.Equal(t, d.GetReceived(), d.GetCoalesced()+d.GetFlushed()+d.GetUnchanged()+d.GetDropped()+d.GetPending(), "%v", d)
		for what, n := range map[string]float64{
			"coalesced": d.GetCoalesced(), "flushed": d.GetFlushed(), "dropped": d.GetDropped(), "pending": d.GetPending(), "time": d.GetLastFlushSeconds(),
		} {
			if n > 0 {
				seen[what] = true
			}
		}
	}
	enough.Store(true)
	sending.Wait()
	require.Len(t, seen, 5, "each is a part of the sum: %v", seen)
}
