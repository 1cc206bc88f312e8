package clienttest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestAgentSession(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		var bytes int64
		agent, err := client.NewAgent(conn, client.AgentOptions{
			Collect: func(context.Context) *agentstatsv1.Stats {
				bytes++
				return &agentstatsv1.Stats{RxBytes: bytes, Metrics: []*agentstatsv1.Stats_Metric{{Name: "m"}}}
			},
			Credentials: client.Token("secret", true),
		})
		require.NoError(t, err)
		require.Equal(t, client.Stopped, agent.Status().Connection)

		app := uuid.UUID{7}
		changed := time.Unix(1000, 0)
		agent.SetLifecycle(agentstatsv1.Lifecycle_STATE_STARTING, changed)
		require.NoError(t, agent.SetAppHealth(app, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
		require.NoError(t, agent.SetNetwork(&agentstatsv1.Network{NodeId: 3, Regions: []*agentstatsv1.Network_Region{{Id: 1, Name: "bad\xff"}}}))
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "cpu", Value: "1%"}, client.Metadata{Key: "cpu", Value: "2%"}))
		stop := run(t.Context(), agent.Run)
		synctest.Wait()

		fake.locked(func() {
			require.Equal(t, "Bearer secret", fake.headers[0].Get("authorization")[0])
			require.Equal(t, []int64{1}, fake.ordinals)
			require.Equal(t, agentstatsv1.Lifecycle_STATE_STARTING, fake.lifecycle.GetState())
			require.Equal(t, changed.UTC(), fake.lifecycle.GetChangedAt().AsTime())
			require.Equal(t, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY, fake.apps[string(app[:])])
			require.Equal(t, "bad\uFFFD", fake.network.GetRegions()[0].GetName())
			require.Equal(t, [][]int64{{1}}, fake.lives)
		})
		status := agent.Status()
		require.Equal(t, client.Connected, status.Connection)
		require.Equal(t, 30*time.Second, status.ReportInterval)
		require.Equal(t, client.Counts{Sessions: 1, Reports: 1, ReportsReceived: 1, Samples: 1, Metadata: 2}, status.Counts)

		fake.flush()
		require.NoError(t, agent.Flush(t.Context()))
		require.Equal(t, int64(2), agent.Status().Counts.MetadataDurable)

		// The second report comes after a part of the interval, the others
		// an interval apart.
		time.Sleep(10 * 30 * time.Second)
		synctest.Wait()
		fake.locked(func() { require.Contains(t, []int{11, 12}, len(fake.lives[0])) })

		require.NoError(t, stop())
		require.Equal(t, client.Stopped, agent.Status().Connection)
		fake.locked(func() { require.Zero(t, fake.goodbyes) })
	})
}

func TestAgentClose(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		var durable []client.Metadata
		agent, err := client.NewAgent(conn, client.AgentOptions{
			Collect:   func(context.Context) *agentstatsv1.Stats { return &agentstatsv1.Stats{RxBytes: 1} },
			OnDurable: func(m []client.Metadata) { durable = append(durable, m...) },
		})
		require.NoError(t, err)
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Error: "none"}))
		stop := run(t.Context(), agent.Run)
		synctest.Wait()
		require.Error(t, agent.Run(t.Context()), "a second Run")

		closed := run(t.Context(), agent.Close)
		synctest.Wait()
		fake.locked(func() {
			require.Equal(t, 1, fake.goodbyes)
			require.Equal(t, [][]int64{{1, 1}}, fake.lives, "one report before the goodbye")
		})
		require.Equal(t, client.Connected, agent.Status().Connection, "waits for the flush")
		fake.flush()
		synctest.Wait()
		require.NoError(t, closed())
		require.NoError(t, stop())
		require.Equal(t, []client.Metadata{{Key: "k", Error: "none"}}, durable)
		require.NoError(t, agent.Run(t.Context()), "does not start again")
	})
}

// After a goodbye both the last ack and the end of the stream will do.
func TestAgentCloseEnds(t *testing.T) {
	for _, test := range []struct {
		name  string
		setup func(*fakeService)
	}{
		{"without an ack", func(f *fakeService) { f.mute = true }},
		{"without an end", func(f *fakeService) { f.linger = true }},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				fake, _, conn := startFake(t)
				test.setup(fake)
				agent, err := client.NewAgent(conn, client.AgentOptions{})
				require.NoError(t, err)
				stop := run(t.Context(), agent.Run)
				synctest.Wait()
				began := time.Now()
				require.NoError(t, agent.Close(t.Context()))
				require.NoError(t, stop())
				require.Zero(t, time.Since(began))
				fake.locked(func() {
					require.Equal(t, 1, fake.goodbyes)
					require.Len(t, fake.openedAt, 1)
				})
			})
		})
	}
}

// An ack that was lost with its stream comes with the next session's settings.
func TestAgentFlushEndsByResume(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		fake.mute = true
		agent, err := client.NewAgent(conn, client.AgentOptions{})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: "v"}))
		synctest.Wait()
		flushed := make(chan error, 1)
		go func() { flushed <- agent.Flush(t.Context()) }()
		synctest.Wait()
		fake.flush()
		fake.kill(codes.Unavailable)
		time.Sleep(time.Minute)
		require.Equal(t, int64(1), agent.Status().Counts.MetadataDurable)
		synctest.Wait()
		require.Len(t, flushed, 1)
		require.NoError(t, <-flushed)
		require.NoError(t, stop())
		fake.locked(func() {
			require.Len(t, fake.requests, 2, "it is not sent again")
			require.NotNil(t, fake.requests[0].GetMetadata())
			require.True(t, fake.requests[1].GetAckNow())
		})
	})
}

func TestAgentCloseTimeout(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		agent, err := client.NewAgent(conn, client.AgentOptions{})
		require.NoError(t, err)
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: "v"}))
		require.ErrorContains(t, agent.Close(t.Context()), "not running")

		agent, err = client.NewAgent(conn, client.AgentOptions{})
		require.NoError(t, err)
		agent.Report(&agentstatsv1.Stats{RxBytes: 5})
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: "v"}))
		stop := run(t.Context(), agent.Run)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.EqualError(t, agent.Flush(ctx), "wait for acks of 1 metadata keys: context deadline exceeded")
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = agent.Close(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualError(t, err, "wait for acks of 1 metadata keys, the goodbye: context deadline exceeded")
		require.NoError(t, stop())
		fake.locked(func() { require.Equal(t, 1, fake.goodbyes) })
	})
}

// A report that was not received is sent again as it was; one that was is not, also if
// its ack was lost.
func TestAgentSendsReportsAgain(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault fault
	}{
		{"lost before it was taken in", beforeTaking},
		{"taken in without an ack", beforeAck},
		{"acked", afterAck},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				fake, _, conn := startFake(t)
				fake.settings.ReportInterval = durationpb.New(time.Second)
				agent, err := client.NewAgent(conn, client.AgentOptions{})
				require.NoError(t, err)
				stop := run(t.Context(), agent.Run)
				agent.Report(&agentstatsv1.Stats{RxBytes: 1, TxBytes: 10})
				synctest.Wait()
				fake.locked(func() { fake.fault, fake.faultCode = test.fault, codes.Unavailable })
				agent.Report(&agentstatsv1.Stats{RxBytes: 2, TxBytes: 20})
				time.Sleep(time.Second)
				synctest.Wait()
				require.Equal(t, client.Waiting, agent.Status().Connection)
				require.Equal(t, codes.Unavailable, status.Code(agent.Status().Err))
				agent.Report(&agentstatsv1.Stats{RxBytes: 4, TxBytes: 40})
				time.Sleep(time.Minute)
				agent.Report(&agentstatsv1.Stats{RxBytes: 8, TxBytes: 80})
				require.NoError(t, agent.Flush(t.Context()))
				require.NoError(t, stop())
				fake.locked(func() {
					require.Equal(t, [][]int64{{1, 2, 4, 8}}, fake.lives)
					require.Equal(t, []int64{1, 2}, fake.ordinals)
					for _, req := range fake.requests {
						require.Equal(t, 10*req.GetStats().GetRxBytes(), req.GetStats().GetTxBytes())
					}
				})
			})
		})
	}
}

// While acks do not come, counts merge instead of piling up, and samples are sent on.
func TestAgentMergesUnackedCounts(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		fake.mute = true
		fake.settings.ReportInterval = durationpb.New(time.Second)
		agent, err := client.NewAgent(conn, client.AgentOptions{})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		for range 50 {
			agent.Report(&agentstatsv1.Stats{RxBytes: 1})
			time.Sleep(time.Second)
		}
		fake.locked(func() {
			require.Len(t, fake.lives[0], 50)
			for i, bytes := range fake.lives[0] {
				require.Equal(t, i < 16, bytes == 1, "%d", i)
			}
			fake.mute = false
		})
		fake.flush()
		require.NoError(t, agent.Flush(t.Context()))
		fake.locked(func() {
			require.Len(t, fake.lives[0], 51)
			require.Equal(t, int64(34), fake.lives[0][50])
		})
		require.Equal(t, int64(50), agent.Status().Counts.ReportsReceived)
		require.NoError(t, stop())
	})
}

// Ten minutes of an agent with metadata each 10 s and reports each 30 s: what is due
// within a second is one message.
func TestAgentSendsFewMessages(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for range 10 {
			fake, _, conn := startFake(t)
			fake.lazy = true
			agent, err := client.NewAgent(conn, client.AgentOptions{
				Collect: func(context.Context) *agentstatsv1.Stats {
					return &agentstatsv1.Stats{RxBytes: 1, Metrics: []*agentstatsv1.Stats_Metric{{Name: "m"}}}
				},
			})
			require.NoError(t, err)
			for key := range 10 {
				require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: strconv.Itoa(key)}))
			}
			stop := run(t.Context(), agent.Run)
			for i := range 59 {
				time.Sleep(9900 * time.Millisecond)
				for key := range 10 {
					require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: strconv.Itoa(key), Value: strconv.Itoa(i)}))
					time.Sleep(10 * time.Millisecond)
				}
			}
			time.Sleep(10 * time.Second)
			require.NoError(t, stop())
			fake.locked(func() {
				require.LessOrEqual(t, len(fake.requests), 61)
				require.GreaterOrEqual(t, len(fake.lives[0]), 20)
				require.LessOrEqual(t, len(fake.lives[0]), 23)
			})
		}
	})
}

// Flush waits for neither the pace nor the ack delay, and asks again in the next
// session.
func TestAgentFlushAsksForAcks(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		fake.lazy = true
		fake.settings.MetadataInterval = durationpb.New(time.Hour)
		agent, err := client.NewAgent(conn, client.AgentOptions{})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		agent.Report(&agentstatsv1.Stats{RxBytes: 1})
		synctest.Wait()
		began := time.Now()
		require.NoError(t, agent.Flush(t.Context()))
		agent.Report(&agentstatsv1.Stats{RxBytes: 2})
		require.NoError(t, agent.Flush(t.Context()))
		agent.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Time{})
		require.NoError(t, agent.Flush(t.Context()))
		require.Zero(t, time.Since(began))
		for _, value := range []string{"1", "2"} {
			require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: value}))
			flushed := run(t.Context(), agent.Flush)
			synctest.Wait()
			fake.flush()
			synctest.Wait()
			fake.locked(func() { require.Equal(t, value, fake.database["k"]) })
			require.NoError(t, flushed())
		}
		require.Zero(t, time.Since(began))

		fake.locked(func() { fake.mute = true })
		agent.Report(&agentstatsv1.Stats{RxBytes: 4})
		flushed := run(t.Context(), agent.Flush)
		synctest.Wait()
		fake.locked(func() { fake.mute = false })
		fake.kill(codes.Unavailable)
		fake.forget()
		time.Sleep(2 * time.Second)
		require.NoError(t, flushed())
		require.NoError(t, stop())
		fake.locked(func() { require.Equal(t, [][]int64{{1, 2, 4}, {4}}, fake.lives) })
	})
}

// The service's settings bind what is handed over, an interval of the agent's own comes
// first.
func TestAgentKeepsIntervals(t *testing.T) {
	for _, test := range []struct {
		name    string
		own     time.Duration
		reports int
	}{{"the service's", 0, 11}, {"its own", 5 * time.Second, 21}} {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				fake, _, conn := startFake(t)
				fake.settings.ReportInterval = durationpb.New(10 * time.Second)
				fake.settings.MetadataInterval = durationpb.New(20 * time.Second)
				agent, err := client.NewAgent(conn, client.AgentOptions{ReportInterval: test.own})
				require.NoError(t, err)
				stop := run(t.Context(), agent.Run)
				for i := range 199 {
					agent.Report(&agentstatsv1.Stats{RxBytes: 1})
					require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: strconv.Itoa(i)}))
					time.Sleep(500 * time.Millisecond)
				}
				closed := run(t.Context(), agent.Close)
				synctest.Wait()
				fake.flush()
				synctest.Wait()
				require.NoError(t, closed())
				require.NoError(t, stop())
				fake.locked(func() {
					var metadata int
					var bytes int64
					for _, req := range fake.requests {
						if req.GetMetadata() != nil {
							metadata++
						}
						bytes += req.GetStats().GetRxBytes()
					}
					require.Equal(t, 6, metadata)
					require.Len(t, fake.lives[0], test.reports)
					require.Equal(t, int64(199), bytes)
					require.Equal(t, "198", fake.database["k"])
				})
			})
		})
	}
}

// States are sent at once.
func TestAgentSendsStatesAtOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		agent, err := client.NewAgent(conn, client.AgentOptions{})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		agent.Report(&agentstatsv1.Stats{})
		time.Sleep(time.Second)
		began := time.Now()
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: "1"}))
		synctest.Wait()
		fake.locked(func() { require.Len(t, fake.requests, 1) })
		require.NoError(t, agent.SetAppHealth(uuid.UUID{1}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
		synctest.Wait()
		agent.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Time{})
		synctest.Wait()
		require.NoError(t, agent.SetNetwork(&agentstatsv1.Network{NodeId: 9}))
		// What the service has is not sent again.
		require.NoError(t, agent.SetAppHealth(uuid.UUID{1}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
		require.NoError(t, agent.SetNetwork(&agentstatsv1.Network{NodeId: 9}))
		synctest.Wait()
		require.Zero(t, time.Since(began))
		fake.locked(func() {
			require.Len(t, fake.requests, 4)
			require.NotNil(t, fake.requests[1].GetAppHealth())
			require.NotNil(t, fake.requests[1].GetMetadata(), "with what is there")
			require.NotNil(t, fake.requests[2].GetLifecycle())
			require.NotNil(t, fake.requests[3].GetNetwork())
		})
		require.NoError(t, stop())
	})
}

func TestAgentReplaysStates(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, n, conn := startFake(t)
		agent, err := client.NewAgent(conn, client.AgentOptions{})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		agent.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Time{})
		require.NoError(t, agent.SetAppHealth(uuid.UUID{1}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
		require.NoError(t, agent.SetAppHealth(uuid.UUID{2}, agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY))
		require.NoError(t, agent.SetNetwork(&agentstatsv1.Network{NodeId: 9}))
		require.NoError(t, agent.Flush(t.Context()))
		fake.locked(func() {
			fake.lifecycle, fake.network = nil, nil
			clear(fake.apps)
		})
		n.cut()
		time.Sleep(time.Minute)
		require.NoError(t, agent.Flush(t.Context()))
		fake.locked(func() {
			require.Equal(t, agentstatsv1.Lifecycle_STATE_READY, fake.lifecycle.GetState())
			require.Nil(t, fake.lifecycle.GetChangedAt())
			require.Len(t, fake.apps, 2)
			require.Equal(t, uint64(9), fake.network.GetNodeId())
		})
		require.NoError(t, stop())
	})
}

// What the service refused is neither durable nor sent again, and does not hold
// up Flush; the rest of the request is.
func TestAgentRefusals(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		fake.refuse = func(req *agentstatsv1.ConnectRequest) *agentstatsv1.Refusal {
			if req.GetMetadata() == nil {
				return nil
			}
			return &agentstatsv1.Refusal{
				Sequence: req.GetSequence(), Code: agentstatsv1.RefusalCode_REFUSAL_CODE_NOT_ALLOWED,
				Reason: "undeclared", Names: []string{"bad"}, Count: 1,
			}
		}
		var mu sync.Mutex
		var durable []client.Metadata
		var reasons []string
		agent, err := client.NewAgent(conn, client.AgentOptions{
			OnDurable: func(m []client.Metadata) {
				mu.Lock()
				defer mu.Unlock()
				durable = append(durable, m...)
			},
			OnRefusal: func(r *agentstatsv1.Refusal) {
				mu.Lock()
				defer mu.Unlock()
				reasons = append(reasons, fmt.Sprintf("%s:%s", r.GetReason(), strings.Join(r.GetNames(), ",")))
			},
		})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "good", Value: "1"}, client.Metadata{Key: "bad", Value: "2"}))
		synctest.Wait()
		fake.flush()
		require.NoError(t, agent.Flush(t.Context()))

		// What cannot be sent is refused on the way, and the rest is sent.
		agent.Report(&agentstatsv1.Stats{
			RxBytes:       -5,
			TxBytes:       7,
			SessionCounts: map[string]int64{"\xff": 1, "ssh": 2},
			Metrics: []*agentstatsv1.Stats_Metric{
				{Name: "a"}, {Name: "bad\xff"},
				{Name: "b", Labels: []*agentstatsv1.Stats_Metric_Label{{Name: "l", Value: "\xff"}}},
				{Name: "c"},
			},
		})
		require.NoError(t, agent.Flush(t.Context()))
		big := &agentstatsv1.Stats{ConnectionsByProto: map[string]int64{strings.Repeat("x", 70<<10): 1}, RxBytes: 9}
		for i := range 2000 {
			big.Metrics = append(big.Metrics, &agentstatsv1.Stats_Metric{Name: fmt.Sprintf("metric_%d_%s", i, strings.Repeat("y", 60))})
		}
		agent.Report(big)
		require.NoError(t, agent.Flush(t.Context()))
		require.NoError(t, stop())

		require.Equal(t, []client.Metadata{{Key: "good", Value: "1"}}, durable)
		require.Len(t, reasons, 4)
		require.Equal(t, []string{"undeclared:bad", "negative_delta:rx_bytes", "invalid_utf8:bad\uFFFD,b,\uFFFD"}, reasons[:3])
		require.True(t, strings.HasPrefix(reasons[3], "message_size:metric_1999_"), reasons[3][:30])
		fake.locked(func() {
			require.Equal(t, [][]int64{{0, 9}}, fake.lives)
			var stats []*agentstatsv1.Stats
			for _, req := range fake.requests {
				if req.GetStats() != nil {
					stats = append(stats, req.GetStats())
				}
			}
			require.Len(t, stats[0].GetMetrics(), 2)
			require.Equal(t, map[string]int64{"ssh": 2}, stats[0].GetSessionCounts())
			require.Empty(t, stats[1].GetMetrics(), "the map alone is too large")
		})
		counts := agent.Status().Counts
		require.Equal(t, int64(1), counts.MetadataDurable)
		require.Equal(t, int64(1), counts.MetadataRefused)
		require.Equal(t, int64(1+1+3+2002), counts.Refused)
	})
}

func TestAgentRefusesAtOnce(t *testing.T) {
	_, _, conn := startFake(t)
	_, err := client.NewAgent(conn, client.AgentOptions{ReportInterval: -1})
	require.Error(t, err)
	_, err = client.NewAgent(conn, client.AgentOptions{Backoff: client.Backoff{Min: -1}})
	require.Error(t, err)

	agent, err := client.NewAgent(conn, client.AgentOptions{})
	require.NoError(t, err)
	for key, want := range map[string]string{
		"":                        "is empty",
		"\xff":                    "is not UTF-8",
		strings.Repeat("k", 1025): "has 1025 bytes, at most 1024 are allowed",
	} {
		require.ErrorContains(t, agent.UpdateMetadata(client.Metadata{Key: key}), want)
	}
	for i := range 1024 {
		require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: strconv.Itoa(i)}))
	}
	require.ErrorContains(t, agent.UpdateMetadata(client.Metadata{Key: "one more"}, client.Metadata{Key: "5"}), "1024 keys are pending")
	require.Equal(t, int64(1025), agent.Status().Counts.Metadata, "a known key is taken in")
	for i := range 256 {
		require.NoError(t, agent.SetAppHealth(uuid.UUID{byte(i), 1}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
	}
	require.Error(t, agent.SetAppHealth(uuid.UUID{0, 2}, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
	require.Error(t, agent.SetNetwork(&agentstatsv1.Network{Regions: make([]*agentstatsv1.Network_Region, 129)}))
}
