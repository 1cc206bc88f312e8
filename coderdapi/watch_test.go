package coderdapi_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// manualSubscriber notifies nobody, unless notify is called.
type manualSubscriber struct {
	mu sync.Mutex
	f  func([]agent.ID)
}

func (d *manualSubscriber) SubscribeMetadata(f func([]agent.ID)) (func(), error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.f = f
	return func() {}, nil
}

func (d *manualSubscriber) notify(ids []agent.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.f(ids)
}

// put has agent n's metadata stored.
func storeMetadata(s *edgetest.Service, n int, pairs ...string) {
	s.T.Helper()
	s.Request(n, edgetest.Metadata(pairs...))
	time.Sleep(6 * time.Second)
	synctest.Wait()
}

type watching struct {
	pb.CoderdService_WatchMetadataClient
	t testing.TB
}

func watchMetadata(s *edgetest.Service, numbers ...int) watching {
	s.T.Helper()
	req := &pb.WatchMetadataRequest{}
	for _, n := range numbers {
		req.AgentIds = append(req.AgentIds, edgetest.IDBytes(n))
	}
	w, err := s.Coderd().WatchMetadata(s.AsCoderd(), req)
	require.NoError(s.T, err)
	return watching{w, s.T}
}

// next returns the next message, as agent/key=value.
func (w watching) next() (values []string, synced bool) {
	w.t.Helper()
	m, err := w.Recv()
	require.NoError(w.t, err)
	for _, a := range m.GetAgents() {
		for _, v := range a.GetValues() {
			values = append(values, fmt.Sprintf("%d/%s=%s%s", a.GetAgentId()[15], v.GetKey(), v.GetValue(), v.GetError()))
		}
	}
	slices.Sort(values)
	return values, m.GetSynced()
}

func (w watching) requireNext(want ...string) {
	w.t.Helper()
	values, synced := w.next()
	require.Equal(w.t, want, values)
	require.False(w.t, synced)
}

func (w watching) requireSynced() {
	w.t.Helper()
	values, synced := w.next()
	require.Empty(w.t, values)
	require.True(w.t, synced)
}

func TestWatch(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1, 2, 3)
		storeMetadata(s, 1, "a", "1", "b", "2")
		storeMetadata(s, 3, "x", "1")
		w := watchMetadata(s, 1, 2, 99)
		w.requireNext("1/a=1", "1/b=2")
		w.requireSynced()
		require.Equal(t, 1.0, s.Counter("agentstatsd_watches", "metadata"))

		began := time.Now()
		storeMetadata(s, 2, "c", "3")
		storeMetadata(s, 3, "x", "2") // not watched
		storeMetadata(s, 1, "a", "4")
		w.requireNext("2/c=3")
		w.requireNext("1/a=4")
		require.Less(t, time.Since(began), 20*time.Second, "by a notification, not by the re-read")
	})
}

func TestWatchRepairsMissedNotifications(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		subscriber := &manualSubscriber{}
		s := edgetest.Start(t, edgetest.Settings{ChangeCoderd: func(c *coderdapi.Components) { c.Subscriber = subscriber }})
		s.Register(1, 2)
		w := watchMetadata(s, 1, 2)
		w.requireSynced()
		began := time.Now()
		storeMetadata(s, 1, "a", "1")
		w.requireNext("1/a=1")
		require.Equal(t, 30*time.Second, time.Since(began))

		storeMetadata(s, 1, "a", "2")
		storeMetadata(s, 2, "b", "3")
		subscriber.notify(nil) // something may have been missed
		w.requireNext("1/a=2", "2/b=3")
		require.Equal(t, 42*time.Second, time.Since(began))

		storeMetadata(s, 1, "a", "4")
		subscriber.notify([]agent.ID{edgetest.ID(2), edgetest.ID(77)})
		synctest.Wait()
		subscriber.notify([]agent.ID{edgetest.ID(1)})
		w.requireNext("1/a=4")
	})
}

func TestWatchWaitsForTheDatabase(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		subscriber := &manualSubscriber{}
		s := edgetest.Start(t, edgetest.Settings{ChangeCoderd: func(c *coderdapi.Components) { c.Subscriber = subscriber }})
		s.Register(1)
		s.Store.SetDown(true)
		_, err := watchMetadata(s, 1).Recv()
		edgetest.RequireCode(t, err, codes.Unavailable, "the database cannot be used now; try again")

		s.Store.SetDown(false)
		w := watchMetadata(s, 1)
		w.requireSynced()
		storeMetadata(s, 1, "a", "1")
		s.Store.SetDown(true)
		subscriber.notify([]agent.ID{edgetest.ID(1)})
		time.Sleep(9*time.Second + time.Second/2)
		s.Store.SetDown(false)
		began := time.Now()
		w.requireNext("1/a=1")
		require.LessOrEqual(t, time.Since(began), time.Second)
		require.Equal(t, 11.0, s.Counter("agentstatsd_watch_read_errors_total", ""), "one a second, and the first")
	})
}

func TestWatchSendsWhatComesBack(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		storeMetadata(s, 1, "a", "1")
		w := watchMetadata(s, 1)
		w.requireNext("1/a=1")
		w.requireSynced()
		_, err := s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
		require.NoError(t, err)
		time.Sleep(30 * time.Second)
		s.Register(1)
		storeMetadata(s, 1, "a", "1")
		w.requireNext("1/a=1")
	})
}

// TestWatchOfMuch shows that the answer comes in parts, and that a watcher that
// does not read gets the newest in the end.
func TestWatchOfMuch(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{SendTimeout: 10 * time.Minute}})
		var numbers []int
		for n := 1; n <= 150; n++ {
			numbers = append(numbers, n)
		}
		s.Register(numbers...)
		big := strings.Repeat("x", 2000)
		for _, n := range numbers {
			s.Request(n, edgetest.Metadata("a", big, "b", big))
		}
		time.Sleep(10 * time.Second)
		w := watchMetadata(s, numbers...)
		values, parts := 0, 0
		for {
			got, synced := w.next()
			if synced {
				break
			}
			values += len(got)
			parts++
		}
		require.Equal(t, 300, values)
		require.Equal(t, 10, parts, "four reads of 32 agents, one of 22, in two parts each")

		// 300 changes of 600 KB each do not fit into the buffers between.
		var agents []*edgetest.Stream
		for _, n := range numbers {
			agents = append(agents, s.Connect(edgetest.Session{Agent: n}))
		}
		for i := range 20 {
			for _, a := range agents {
				a.SendNext(edgetest.Metadata("a", fmt.Sprint(i)+big[:1900]))
			}
			time.Sleep(6 * time.Second)
		}
		newest := map[string]string{}
		values = 0
		for len(newest) < 150 || slices.ContainsFunc(slices.Collect(valuesOf(newest)), func(v string) bool { return !strings.HasPrefix(v, "19x") }) {
			m, err := w.Recv()
			require.NoError(t, err)
			for _, a := range m.GetAgents() {
				for _, v := range a.GetValues() {
					newest[string(a.GetAgentId())] = v.GetValue()
					values++
				}
			}
		}
		require.Less(t, values, 20*150, "intermediate values were left out")
	})
}

func valuesOf(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// A tool that may only read takes no watch from coderd.
func TestOperatorsHaveAShareOfWatches(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{Coderd: coderdapi.Options{MaxWatches: 4}})
	s.Register(1)
	watch := func(token string) error {
		w, err := s.Coderd().WatchMetadata(edgetest.As(t.Context(), token), &pb.WatchMetadataRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
		require.NoError(t, err)
		_, err = w.Recv()
		return err
	}
	require.NoError(t, watch(edgetest.OperatorToken))
	edgetest.RequireCode(t, watch(edgetest.OperatorToken), codes.ResourceExhausted,
		"want at most 1 watches at once of those who may only read, a share of --max-watches")
	for range 3 {
		require.NoError(t, watch(edgetest.CoderdToken))
	}
}

func TestWatchLimits(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{Coderd: coderdapi.Options{MaxWatches: 1}})
	s.Register(1)
	ctx, cancel := context.WithCancel(s.AsCoderd())
	first, err := s.Coderd().WatchMetadata(ctx, &pb.WatchMetadataRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
	require.NoError(t, err)
	_, err = first.Recv()
	require.NoError(t, err)
	_, err = watchMetadata(s, 1).Recv()
	edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 1 watches at once (--max-watches)")
	require.Equal(t, 1.0, s.Counter("agentstatsd_streams_refused_total", "watch"))
	_, err = watchMetadata(s).Recv()
	edgetest.RequireCode(t, err, codes.InvalidArgument, "agent_ids: want 1 to 1000, got 0")
	_, err = watchMetadata(s, make([]int, 1001)...).Recv()
	edgetest.RequireCode(t, err, codes.InvalidArgument, "agent_ids: want at most 1000, got 1001")

	setLimit := func(n int) {
		opts := s.Coderds.Options()
		opts.MaxWatches = n
		require.NoError(t, s.Coderds.Reconfigure(opts))
	}
	setLimit(2)
	second := watchMetadata(s, 1)
	_, err = second.Recv()
	require.NoError(t, err)
	setLimit(1)
	require.Equal(t, 2.0, s.Counter("agentstatsd_watches", "metadata"), "what is open stays")
	_, err = watchMetadata(s, 1).Recv()
	edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 1 watches at once (--max-watches)")
	cancel()
	_, err = first.Recv()
	require.Equal(t, codes.Canceled, status.Code(err))
}
