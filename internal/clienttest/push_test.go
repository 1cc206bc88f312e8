package clienttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// fakePushes takes in pushes by the comments of the contract.
type fakePushes struct {
	agentstatsv1.UnimplementedCoderdServiceServer

	mu        sync.Mutex
	hellos    []*agentstatsv1.PushHello
	snapshots []fakeSnapshot
	refuse    []*agentstatsv1.FamilyRefusal
	// fail ends the stream in the place of an answer.
	fail error
	// hang keeps answers back.
	hang bool
	// largest is the encoded size of the largest request.
	largest int
}

type fakeSnapshot struct {
	number   int64
	final    bool
	parts    int
	families []*dto.MetricFamily
	at       time.Time
}

func (f *fakePushes) PushMetrics(stream agentstatsv1.CoderdService_PushMetricsServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.hellos = append(f.hellos, first.GetHello())
	f.mu.Unlock()
	var snapshot fakeSnapshot
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.largest = max(f.largest, proto.Size(req))
		f.mu.Unlock()
		if req.GetEnd() == nil {
			snapshot.parts++
			for _, b := range req.GetFamilies().GetFamilies() {
				family := &dto.MetricFamily{}
				if err := proto.Unmarshal(b, family); err != nil {
					return err
				}
				snapshot.families = append(snapshot.families, family)
			}
			continue
		}
		snapshot.number, snapshot.final, snapshot.at = req.GetEnd().GetSnapshot(), req.GetEnd().GetFinal(), time.Now()
		f.mu.Lock()
		refused, fail, hang := f.refuse, f.fail, f.hang
		if fail == nil && !hang {
			f.snapshots = append(f.snapshots, snapshot)
		}
		f.mu.Unlock()
		if hang {
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		if fail != nil {
			return fail
		}
		resp := &agentstatsv1.PushMetricsResponse{Snapshot: snapshot.number, Refused: refused, RefusedCount: int64(len(refused))}
		if err := stream.Send(resp); err != nil {
			return err
		}
		snapshot = fakeSnapshot{}
	}
}

func (f *fakePushes) locked(read func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	read()
}

func (f *fakePushes) numbers() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var numbers []int64
	for _, s := range f.snapshots {
		numbers = append(numbers, s.number)
	}
	return numbers
}

func startPushes(t *testing.T) (*fakePushes, *network, *grpc.ClientConn) {
	t.Helper()
	fake := &fakePushes{}
	n := newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterCoderdServiceServer(s, fake) })
	conn, err := client.Dial("passthrough:///fake", client.DialOptions{Plaintext: true}, grpc.WithContextDialer(n.dial))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		n.stop()
	})
	return fake, n, conn
}

// everything is a registry with each kind of metric.
func everything(t testing.TB) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "requests_total", Help: "Requests."}, []string{"code"})
	requests.WithLabelValues("200").Add(5)
	counter, ok := requests.WithLabelValues("500").(prometheus.ExemplarAdder)
	require.True(t, ok)
	counter.AddWithExemplar(2, prometheus.Labels{"trace_id": "abc"})
	classic := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "latency_seconds", Help: "Latency.", Buckets: []float64{1, 2}})
	classic.Observe(1.5)
	native := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "size_bytes", Help: "Size.", Buckets: []float64{10}, NativeHistogramBucketFactor: 1.1,
	})
	native.Observe(7)
	summary := prometheus.NewSummary(prometheus.SummaryOpts{Name: "age_seconds", Help: "Age.", Objectives: map[float64]float64{0.5: 0.05}})
	summary.Observe(3)
	reg.MustRegister(requests, classic, native, summary)
	return reg
}

func TestPush(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startPushes(t)
		reg := everything(t)
		pusher, err := client.NewPusher(conn, client.PushOptions{Gatherer: reg, Replica: "coderd-0", InstanceID: uuid.UUID{9}})
		require.NoError(t, err)
		began := time.Now()
		stop := run(t.Context(), pusher.Run)
		time.Sleep(50 * time.Second)
		synctest.Wait()
		require.NoError(t, stop())

		want, err := reg.Gather()
		require.NoError(t, err)
		fake.locked(func() {
			require.Len(t, fake.hellos, 1)
			require.Equal(t, "coderd-0", fake.hellos[0].GetReplica())
			require.Equal(t, uuid.UUID{9}, uuid.UUID(fake.hellos[0].GetInstanceId()))
			require.Equal(t, 15*time.Second, fake.hellos[0].GetInterval().AsDuration())
			require.Len(t, fake.snapshots, 5)
			for i, s := range fake.snapshots {
				require.Equal(t, int64(i+1), s.number)
				require.Equal(t, i == 4, s.final)
				require.Equal(t, 1, s.parts)
				require.Empty(t, cmp.Diff(want, s.families, protocmp.Transform()), "native histograms, exemplars and created timestamps as they are")
				require.Equal(t, []float64{0, 15, 30, 45, 50}[i], s.at.Sub(began).Seconds())
			}
		})
	})
}

// family is a gauge with a help text of n bytes.
func family(name string, n int) *dto.MetricFamily {
	return &dto.MetricFamily{
		Name: proto.String(name), Help: proto.String(strings.Repeat("x", n)), Type: dto.MetricType_GAUGE.Enum(),
		Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: proto.Float64(1)}}},
	}
}

func TestPushSplits(t *testing.T) {
	fake, _, conn := startPushes(t)
	var families []*dto.MetricFamily
	for i := range 30 {
		families = append(families, family(fmt.Sprintf("small_%02d", i), 20_000))
	}
	families = append(families, family("large", 700_000), family("too_large", 1<<20), family("after", 1))
	type refusal struct {
		refused []*agentstatsv1.FamilyRefusal
		count   int64
	}
	refusals := make(chan refusal, 10)
	pusher, err := client.NewPusher(conn, client.PushOptions{
		Gatherer:        prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return families, nil }),
		MaxMessageBytes: 1 << 20,
		OnRefused:       func(r []*agentstatsv1.FamilyRefusal, n int64) { refusals <- refusal{r, n} },
	})
	require.NoError(t, err)
	stop := run(t.Context(), pusher.Run)
	got := <-refusals
	require.NoError(t, stop())
	require.Equal(t, int64(1), got.count)
	require.Empty(t, cmp.Diff([]*agentstatsv1.FamilyRefusal{{
		Name: "too_large", Reason: "message_size",
		Message: "family: has 1048606 bytes, at most 1048544 fit into a message",
	}}, got.refused, protocmp.Transform()))
	fake.locked(func() {
		require.Len(t, fake.snapshots[0].families, 32)
		// 12 and 12 and 6 small ones, the large one, the last one.
		require.Equal(t, 5, fake.snapshots[0].parts)
		require.Greater(t, fake.largest, 700_000)
		require.Less(t, fake.largest, 1<<20)
	})
}

// TestPushNotifiesOfChangedRefusals shows that OnRefused is called once for what is
// refused, not with each snapshot.
func TestPushNotifiesOfChangedRefusals(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startPushes(t)
		var texts []string
		pusher, err := client.NewPusher(conn, client.PushOptions{
			Gatherer: everything(t),
			OnRefused: func(refused []*agentstatsv1.FamilyRefusal, count int64) {
				text := fmt.Sprint(count)
				for _, r := range refused {
					text += " " + r.GetName() + "=" + r.GetReason()
				}
				texts = append(texts, text)
			},
		})
		require.NoError(t, err)
		stop := run(t.Context(), pusher.Run)
		phase := func(refused ...*agentstatsv1.FamilyRefusal) {
			fake.locked(func() { fake.refuse = refused })
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		b := &agentstatsv1.FamilyRefusal{Name: "b", Reason: "invalid_name"}
		phase()
		phase(b, &agentstatsv1.FamilyRefusal{Name: "a", Reason: "owned_by_service"})
		phase(b)
		phase()
		require.NoError(t, stop())
		require.Equal(t, []string{"2 a=owned_by_service b=invalid_name", "1 b=invalid_name", "0"}, texts)
	})
}

func TestPushGoesOnAfterErrors(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, network, conn := startPushes(t)
		counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "c_total"})
		reg := prometheus.NewRegistry()
		reg.MustRegister(counter)
		var log bytes.Buffer
		gatherError := errors.New("a collector failed")
		pusher, err := client.NewPusher(conn, client.PushOptions{
			Gatherer: prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
				counter.Inc()
				families, err := reg.Gather()
				return families, errors.Join(err, gatherError)
			}),
			Backoff: client.Backoff{Min: time.Second, Max: 4 * time.Second},
			Logger:  slog.New(slog.NewTextHandler(&log, nil)),
		})
		require.NoError(t, err)
		stop := run(t.Context(), pusher.Run)
		synctest.Wait()
		require.Equal(t, []int64{1}, fake.numbers())

		// The database is down: the next snapshots come after waits.
		fake.locked(func() { fake.fail = status.Error(codes.Unavailable, "down") })
		time.Sleep(2 * time.Minute)
		fake.locked(func() { fake.fail = nil })
		time.Sleep(4 * time.Second)
		synctest.Wait()
		numbers := fake.numbers()
		require.Len(t, numbers, 2)
		require.Greater(t, numbers[1], int64(20))

		// The service is away: only the newest snapshot is sent.
		network.stop()
		time.Sleep(2 * time.Minute)
		network.start()
		time.Sleep(14 * time.Second)
		synctest.Wait()
		numbers = fake.numbers()
		require.Len(t, numbers, 3, "no queue")
		require.True(t, slices.IsSorted(numbers))

		// A service that hangs is left after a minute.
		fake.locked(func() { fake.hang = true })
		time.Sleep(20 * time.Second)
		fake.locked(func() { fake.hang = false })
		time.Sleep(time.Minute)
		synctest.Wait()
		numbers = fake.numbers()
		require.GreaterOrEqual(t, len(numbers), 4)
		require.True(t, slices.IsSorted(numbers))

		require.NoError(t, stop())
		fake.locked(func() {
			last := fake.snapshots[len(fake.snapshots)-1]
			require.True(t, last.final)
			families, err := reg.Gather()
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(families, last.families, protocmp.Transform()), "what was gathered is pushed")
		})
		require.Equal(t, 1, strings.Count(log.String(), "a collector failed"))
		require.Contains(t, log.String(), "no answer within 1m0s")
	})
}

func TestPushEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, network, conn := startPushes(t)
		pusher := func() *client.Pusher {
			p, err := client.NewPusher(conn, client.PushOptions{Gatherer: everything(t), Backoff: client.Backoff{Min: time.Hour}})
			require.NoError(t, err)
			return p
		}

		// One that waits for a service that was away still says goodbye.
		network.stop()
		stop := run(t.Context(), pusher().Run)
		synctest.Wait()
		network.start()
		time.Sleep(10 * time.Second)
		began := time.Now()
		require.NoError(t, stop())
		require.Zero(t, time.Since(began))
		require.True(t, fake.snapshots[len(fake.snapshots)-1].final)

		// A service that is away, or hangs, is not waited for.
		stop = run(t.Context(), pusher().Run)
		synctest.Wait()
		fake.locked(func() { fake.hang = true })
		began = time.Now()
		require.NoError(t, stop())
		require.Equal(t, 5*time.Second, time.Since(began))
		network.stop()
		began = time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, pusher().Run(ctx))
		require.Equal(t, 5*time.Second, time.Since(began))

		network.start()
		for _, code := range []codes.Code{codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented} {
			fake.locked(func() { fake.hang, fake.fail = false, status.Error(code, "no") })
			require.Equal(t, code, status.Code(pusher().Run(t.Context())))
		}
	})
}

func TestPushOptions(t *testing.T) {
	_, _, conn := startPushes(t)
	for want, opts := range map[string]client.PushOptions{
		"push options: gatherer: is absent":                              {},
		"push options: interval: is 999ms, at least 1s is allowed":       {Gatherer: prometheus.NewRegistry(), Interval: 999 * time.Millisecond},
		"push options: replica: has 257 bytes, at most 256 are allowed":  {Gatherer: prometheus.NewRegistry(), Replica: strings.Repeat("x", 257)},
		"push options: max message bytes: is -1, more than 32 is needed": {Gatherer: prometheus.NewRegistry(), MaxMessageBytes: -1},
		"push options: gather timeout: is negative":                      {Gatherer: prometheus.NewRegistry(), GatherTimeout: -1},
		"push options: backoff: is negative":                             {Gatherer: prometheus.NewRegistry(), Backoff: client.Backoff{Min: -1}},
	} {
		_, err := client.NewPusher(conn, opts)
		require.EqualError(t, err, want)
	}
	require.EqualError(t, client.PushGatherer(t.Context(), conn, nil, client.PushOptions{}), "push options: gatherer: is absent")
}

// TestPushToTheService pushes to the real one: two instances are one, what the
// service owns is refused, and what was counted outlives restarts of both.
func TestPushToTheService(t *testing.T) {
	s := startService()
	defer s.close()
	conn := s.conn(coderdToken)
	defer closeConn(t, conn)

	scrape := func() string {
		t.Helper()
		return pushedText(t, s)
	}
	refused := make(chan string, 10)
	type coderd struct {
		instance byte
		counted  float64
	}
	start := func(c coderd) (counter prometheus.Counter, stop func() error) {
		t.Helper()
		reg := everything(t)
		counter = prometheus.NewCounter(prometheus.CounterOpts{Name: "pushed_total", Help: "Pushed."})
		inUse := prometheus.NewGauge(prometheus.GaugeOpts{Name: "coderd_api_concurrent_requests", Help: "Now."})
		inUse.Set(1)
		reg.MustRegister(counter, inUse, collectors.NewGoCollector(), prometheus.NewGauge(prometheus.GaugeOpts{Name: "coderd_agents_up"}))
		counter.Add(c.counted)
		pusher, err := client.NewPusher(conn, client.PushOptions{
			Gatherer: reg, Interval: time.Second, InstanceID: uuid.UUID{c.instance},
			Backoff: client.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond},
			OnRefused: func(all []*agentstatsv1.FamilyRefusal, _ int64) {
				for _, r := range all {
					if r.GetName() == "coderd_agents_up" || r.GetName() == "go_goroutines" {
						refused <- r.GetName() + " " + r.GetReason()
					}
				}
			},
		})
		require.NoError(t, err)
		return counter, run(t.Context(), pusher.Run)
	}
	a, stopA := start(coderd{instance: 1, counted: 5})
	require.Equal(t, "coderd_agents_up owned_by_service", <-refused)
	require.Equal(t, "go_goroutines owned_by_service", <-refused)
	_, stopB := start(coderd{instance: 2, counted: 7})
	<-refused
	text := scrape()
	for _, line := range []string{
		"\npushed_total 12\n", "\ncoderd_api_concurrent_requests 2\n", "\nrequests_total{code=\"200\"} 10\n",
		"\nlatency_seconds_bucket{le=\"2\"} 2\n", "\nsize_bytes_count 2\n", "\nage_seconds_sum 6\n",
	} {
		require.Contains(t, text, line)
	}
	require.NotContains(t, text, "go_goroutines")
	require.NotContains(t, text, "coderd_agents_up")

	a.Add(100)
	s.stopped()
	s.start()
	require.NoError(t, stopA())
	require.NoError(t, stopB())
	text = scrape()
	require.Contains(t, text, "\npushed_total 112\n")
	require.NotContains(t, text, "coderd_api_concurrent_requests ", "gauges go with the last snapshot")
	a, stopA = start(coderd{instance: 3, counted: 1}) // a restart of the first
	<-refused
	a.Inc()
	require.NoError(t, stopA())
	require.Contains(t, scrape(), "\npushed_total 114\n")
}
