package agentapi_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coder/agentstatsd/agentapi"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// statsWatcher is one stream of a watch of stats.
type statsWatcher struct {
	pb.CoderdService_WatchStatsClient
	t testing.TB
}

func bids(numbers ...int) [][]byte {
	var ids [][]byte
	for _, n := range numbers {
		ids = append(ids, bid(n))
	}
	return ids
}

func (s *service) resumeStats(ctx context.Context, first *pb.WatchStatsRequest) *statsWatcher {
	s.t.Helper()
	w, err := s.coderd().WatchStats(ctx)
	require.NoError(s.t, err)
	if err := w.Send(first); !errors.Is(err, io.EOF) { // a refused stream may have ended
		require.NoError(s.t, err)
	}
	return &statsWatcher{w, s.t}
}

// watchName begins a stream of the watch of the name. The returned function
// breaks it.
func (s *service) watchName(name string, epoch uint64, acked int64, numbers ...int) (*statsWatcher, func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.asCoderd())
	w := s.resumeStats(ctx, &pb.WatchStatsRequest{Name: name, Epoch: epoch, AckedSequence: acked, AgentIds: bids(numbers...)})
	synctest.Wait()
	return w, func() {
		cancel()
		synctest.Wait()
	}
}

func (w *statsWatcher) next() *pb.WatchStatsResponse {
	w.t.Helper()
	m, err := w.Recv()
	require.NoError(w.t, err)
	return m
}

// requireBytes receives the next response, which has the sequence and one agent
// with the bytes.
func (w *statsWatcher) requireBytes(sequence, bytes int64) *pb.WatchStatsResponse {
	w.t.Helper()
	m := w.next()
	require.Equal(w.t, sequence, m.GetSequence())
	require.Len(w.t, m.GetAgents(), 1)
	require.Equal(w.t, bytes, m.GetAgents()[0].GetStats().GetRxBytes())
	return m
}

func (w *statsWatcher) ack(sequence int64) {
	w.t.Helper()
	require.NoError(w.t, w.Send(&pb.WatchStatsRequest{AckedSequence: sequence}))
}

func TestWatchStatsContinues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1, 2)
		s.report(1, &pb.Stats{RxBytes: 1000}) // nobody watches
		w, cut := s.watchName("insights", 0, 0)
		s.report(1, &pb.Stats{RxBytes: 1})
		first := w.requireBytes(1, 1)
		require.NotZero(t, first.GetEpoch())
		// Nothing more comes before the ack.
		s.report(1, &pb.Stats{RxBytes: 2})
		time.Sleep(time.Minute)
		cut()
		require.Equal(t, 0.0, s.counter("agentstatsd_watches", "stats"))
		require.Equal(t, 1.0, s.counter("agentstatsd_stats_watches_parked", ""))
		s.report(1, &pb.Stats{RxBytes: 4})

		// It was not processed: it comes again, unchanged.
		w, cut = s.watchName("insights", 0, 0)
		require.Equal(t, 0.0, s.counter("agentstatsd_stats_watches_parked", ""))
		require.Empty(t, cmp.Diff(first, w.next(), protocmp.Transform()))
		w.ack(1)
		require.Equal(t, first.GetEpoch(), w.requireBytes(2, 6).GetEpoch())
		cut()

		// An ack of another epoch says nothing.
		w, cut = s.watchName("insights", first.GetEpoch()+1, 2)
		w.requireBytes(2, 6)
		cut()
		// It was processed, but its ack was lost.
		w, cut = s.watchName("insights", first.GetEpoch(), 2)
		s.report(1, &pb.Stats{RxBytes: 8})
		w.requireBytes(3, 8)
		// Old acks say nothing.
		w.ack(2)
		w.ack(0)
		synctest.Wait()
		cut()
		w, cut = s.watchName("insights", first.GetEpoch(), 1)
		w.requireBytes(3, 8)
		w.ack(3)
		require.NoError(t, w.CloseSend())
		synctest.Wait()
		require.Equal(t, 1.0, s.counter("agentstatsd_stats_watches_parked", ""))
		cut()

		// Other agents, and those of before, that had gathered.
		s.report(1, &pb.Stats{RxBytes: 16})
		w, cut = s.watchName("insights", first.GetEpoch(), 3, 2)
		w.requireBytes(4, 16)
		s.report(1, &pb.Stats{RxBytes: 32})
		w.ack(4)
		s.report(2, &pb.Stats{RxBytes: 64})
		w.requireBytes(5, 64)
		cut()

		// Without a name nothing is kept.
		w, cut = s.watchName("", 0, 0)
		s.report(1, &pb.Stats{RxBytes: 1})
		unnamed := w.requireBytes(1, 1)
		cut()
		require.Equal(t, 1.0, s.counter("agentstatsd_stats_watches_parked", ""))
		s.report(1, &pb.Stats{RxBytes: 2})
		w, cut = s.watchName("", unnamed.GetEpoch(), 0)
		defer cut()
		s.report(1, &pb.Stats{RxBytes: 4})
		require.NotEqual(t, unnamed.GetEpoch(), w.requireBytes(1, 4).GetEpoch())
	})
}

// TestWatchStatsOfMuch shows that parts that were not sent outlive the stream.
func TestWatchStatsOfMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		counts, numbers := map[string]int64{}, []int{}
		for i := range 64 {
			counts[strings.Repeat("x", 120)+string(rune('0'+i))] = 1
		}
		for n := range 70 {
			numbers = append(numbers, n+1)
		}
		s.register(numbers...)
		w, cut := s.watchName("insights", 0, 0)
		s.report(1, &pb.Stats{RxBytes: 1})
		epoch := w.requireBytes(1, 1).GetEpoch()
		for _, n := range numbers {
			s.report(n, &pb.Stats{RxBytes: int64(n), SessionCounts: counts})
		}
		w.ack(1)
		seen := 0
		for sequence := int64(2); seen < len(numbers); sequence++ {
			m := w.next()
			require.Equal(t, sequence, m.GetSequence())
			for _, a := range m.GetAgents() {
				require.Equal(t, bid(numbers[seen]), a.GetAgentId())
				require.Equal(t, int64(numbers[seen]), a.GetStats().GetRxBytes())
				seen++
			}
			require.Less(t, len(m.GetAgents()), 40, "256 KiB have room for 29")
			cut()
			w, cut = s.watchName("insights", epoch, sequence)
		}
		cut()
	})
}

func TestWatchStatsTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1)
		old, _ := s.watchName("insights", 0, 0)
		other, _ := s.watchName("other", 0, 0)
		s.report(1, &pb.Stats{RxBytes: 1})
		epoch := old.requireBytes(1, 1).GetEpoch()
		other.requireBytes(1, 1)
		other.ack(1)

		// Who acks what was never sent takes nothing over.
		bad, _ := s.watchName("insights", epoch, 2)
		_, err := bad.Recv()
		requireCode(t, err, codes.InvalidArgument, "acked_sequence: want 0 to 1, got 2")

		w, cut := s.watchName("insights", epoch, 0)
		_, err = old.Recv()
		requireCode(t, err, codes.Aborted, "superseded by a newer watch of the name")
		w.requireBytes(1, 1)
		s.report(1, &pb.Stats{RxBytes: 2})
		w.ack(1)
		w.requireBytes(2, 2)
		other.requireBytes(2, 2)
		require.Equal(t, 0.0, s.counter("agentstatsd_stats_watches_parked", ""))
		w.ack(3)
		_, err = w.Recv()
		requireCode(t, err, codes.InvalidArgument, "acked_sequence: want 0 to 2, got 3")
		cut()

		_, err = s.resumeStats(s.asCoderd(), &pb.WatchStatsRequest{Name: strings.Repeat("n", 65)}).Recv()
		requireCode(t, err, codes.InvalidArgument, "name: want at most 64 bytes, got 65")
		silent, err := s.coderd().WatchStats(s.asCoderd())
		require.NoError(t, err)
		_, err = silent.Recv()
		requireCode(t, err, codes.InvalidArgument, "message: want the first one within 10s")
		silent, err = s.coderd().WatchStats(s.asCoderd())
		require.NoError(t, err)
		require.NoError(t, silent.CloseSend())
		_, err = silent.Recv()
		requireCode(t, err, codes.InvalidArgument, "request: want it as the first message, got none")
	})
}

func TestWatchStatsRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{api: agentapi.Options{MaxWatches: 2}})
		s.register(1)
		_, cut := s.watchName("insights", 0, 0)
		cut()
		s.report(1, &pb.Stats{RxBytes: 1})
		time.Sleep(10*time.Minute - 1)
		w, cut := s.watchName("insights", 0, 0)
		epoch := w.requireBytes(1, 1).GetEpoch()
		time.Sleep(time.Hour) // with a stream it goes on
		cut()
		s.report(1, &pb.Stats{RxBytes: 2})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Equal(t, 0.0, s.counter("agentstatsd_stats_watches_parked", ""))
		require.Equal(t, 1.0, s.counter("agentstatsd_stats_watches_expired_total", "retention"))
		w, cut = s.watchName("insights", epoch, 1)
		s.report(1, &pb.Stats{RxBytes: 4})
		require.NotEqual(t, epoch, w.requireBytes(1, 4).GetEpoch())
		cut()

		// More than two gather for nobody: the one that waits longest ends.
		for _, name := range []string{"second", "third"} {
			time.Sleep(time.Second)
			_, cut := s.watchName(name, 0, 0)
			cut()
		}
		require.Equal(t, 2.0, s.counter("agentstatsd_stats_watches_parked", ""))
		require.Equal(t, 1.0, s.counter("agentstatsd_stats_watches_expired_total", "limit"))
		s.report(1, &pb.Stats{RxBytes: 8})
		for _, name := range []string{"second", "third"} {
			w, cut := s.watchName(name, 0, 0)
			w.requireBytes(1, 8)
			cut()
		}
		w, cut = s.watchName("insights", 0, 0)
		s.report(1, &pb.Stats{RxBytes: 16})
		w.requireBytes(1, 16)
		cut()
		s.stop() // with parked watches
		require.Equal(t, 0.0, s.counter("agentstatsd_stats_watches_parked", ""))
	})
}
