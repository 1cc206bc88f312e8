package stream

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/process"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "child" {
		if err := process.RunChild(context.Background(), Roles[os.Args[2]], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestResponse(t *testing.T) {
	encode := func(m *agentstatsv1.ConnectResponse) mem.BufferSlice {
		text, err := proto.Marshal(m)
		require.NoError(t, err)
		return mem.BufferSlice{mem.SliceBuffer(text)}
	}
	var r response
	require.NoError(t, r.receive(encode(&agentstatsv1.ConnectResponse{Settings: &agentstatsv1.Settings{Epoch: 5}})))
	require.Equal(t, response{settings: true}, r)
	require.NoError(t, r.receive(encode(&agentstatsv1.ConnectResponse{Ack: &agentstatsv1.Ack{ReceivedSequence: 300, DurableSequence: 299}})))
	require.Equal(t, response{ack: 300}, r)
	require.NoError(t, r.receive(mem.BufferSlice{mem.SliceBuffer(encodeAck(77))}))
	require.Equal(t, response{ack: 77}, r)
	require.NoError(t, r.receive(mem.BufferSlice{mem.SliceBuffer(emptySettings)}))
	require.True(t, r.settings)
	require.ErrorContains(t, r.receive(encode(&agentstatsv1.ConnectResponse{Refusals: []*agentstatsv1.Refusal{{Reason: "invalid_name"}}})), "invalid_name")
}

// TestServiceAndSenders has senders report to the whole service, by both ways of
// decoding, with and without TLS.
func TestServiceAndSenders(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run(IdleCase(tls), func(t *testing.T) {
			dir := t.TempDir()
			var cert, key string
			if tls {
				var err error
				cert, key, err = writeCertificate(dir)
				require.NoError(t, err)
			}
			const agents = 4
			server, target, err := startIdle(t.Context(), dir, Fast, agents, cert, key)
			require.NoError(t, err)
			defer server.Stop()
			senders, err := process.StartSelf(t.Context(), "stream-senders", SendersArgs{
				Target: target, Count: agents, Samples: Samples, Acking: Always, CA: cert, Unknown: tls,
			}, nil)
			require.NoError(t, err)
			defer senders.Stop()
			var tally Tally
			require.NoError(t, senders.Call("busy", BusyArgs{Reports: 3}, &tally))
			require.EqualValues(t, 3*agents, tally.Sent)
			require.Positive(t, tally.Acks)
			require.NoError(t, senders.Call("paced", PacedArgs{Milliseconds: 100, Rate: 400}, &tally))
			require.EqualValues(t, 40, tally.Sent+tally.Skipped)
			require.GreaterOrEqual(t, tally.Max, tally.P99)
			require.NoError(t, server.Call("free", nil, nil))
		})
	}
}

func TestDiscard(t *testing.T) {
	for _, ackEvery := range []int{0, 1, 5} {
		var target string
		server, err := process.StartSelf(t.Context(), "stream-discard", discardArgs{AckEvery: ackEvery}, &target)
		require.NoError(t, err)
		defer server.Stop()
		acking := Never
		if ackEvery > 0 {
			acking = Some
		}
		senders, err := process.StartSelf(t.Context(), "stream-senders", SendersArgs{
			Target: target, Count: 2, Samples: Samples, Acking: acking,
		}, nil)
		require.NoError(t, err)
		defer senders.Stop()
		taker := &taker{server: server, senders: senders, received: func() (n int64, err error) {
			err = server.Call("received", nil, &n)
			return n, err
		}}
		seen, err := taker.measure(t.Context(), Load{Milliseconds: 50})
		require.NoError(t, err)
		require.Positive(t, seen.cpuPerReport)
	}
}

func TestPlace(t *testing.T) {
	stack := make([]uintptr, 8)
	where, ok := place(stack[:runtime.Callers(1, stack)])
	require.True(t, ok)
	require.Equal(t, lockPlace{names: "stream.TestPlace < testing.tRunner", own: true}, where)
	_, ok = place(nil)
	require.False(t, ok)
}

func TestSumLocks(t *testing.T) {
	stack := make([]uintptr, 8)
	stack = stack[:runtime.Callers(1, stack)]
	record := func(count, cycles int64) runtime.BlockProfileRecord {
		r := runtime.BlockProfileRecord{Count: count, Cycles: cycles}
		copy(r.Stack0[:], stack)
		return r
	}
	sums := sumLocks([]runtime.BlockProfileRecord{record(1, 100), record(2, 50)})
	require.Len(t, sums, 1)
	for _, sum := range sums {
		require.EqualValues(t, 3, sum.Count)
		require.EqualValues(t, 150, sum.Cycles)
	}
}

// TestFleet has some agents of the real client measured for a moment.
func TestFleet(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "agentstatsd")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/agentstatsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
	build.Dir = filepath.Join("..", "..")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	run := new(figure.Run)
	f := Fleet{Agents: 300, Samples: 5, Settle: 100 * time.Millisecond, Window: 4 * time.Second}
	require.NoError(t, MeasureFleet(t.Context(), run, binary, t.TempDir(), f))
	for _, metric := range []string{FleetCPU, FleetRest, FleetMessages, FleetResident} {
		values := run.Values(figure.Key{Section: FleetSection, Case: f.Case(), Subject: Fast, Metric: metric})
		require.Len(t, values, 1, metric)
		require.Positive(t, values[0], metric)
	}
	require.Len(t, run.Values(figure.Key{Section: FleetSection, Case: f.Case(), Subject: Answering, Metric: FleetCPU}), 1)

	f.Relayed = true
	require.Equal(t, "300 relayed agents, 5 samples", f.Case())
	require.NoError(t, MeasureFleet(t.Context(), run, binary, t.TempDir(), f))
	values := run.Values(figure.Key{Section: FleetSection, Case: f.Case(), Subject: Fast, Metric: FleetMessages})
	require.Len(t, values, 1)
	require.Positive(t, values[0])
}

func TestCalls(t *testing.T) {
	stack := func(names ...string) *profile.Sample {
		s := new(profile.Sample)
		for _, name := range names {
			s.Location = append(s.Location, &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: name}}}})
		}
		return s
	}
	require.True(t, calls(stack("runtime.memmove", "modernc.org/libc.Xmemcpy", "main.main"), drivers))
	require.True(t, calls(stack("database/sql.(*Tx).Commit"), drivers))
	require.False(t, calls(stack("runtime.memmove", "github.com/coder/agentstatsd/batcher.(*Batcher).Add"), drivers))
	require.False(t, calls(stack(), drivers))
}

// TestGrowth has few series measured for a moment: each figure is there, once for each scrape.
func TestGrowth(t *testing.T) {
	run := new(figure.Run)
	g := Growth{Series: 4000, Rounds: 1, Window: 300 * time.Millisecond}
	require.NoError(t, MeasureGrowth(t.Context(), run, t.TempDir(), g))
	positive := func(subject string, metrics ...string) {
		for _, metric := range metrics {
			values := run.Values(figure.Key{Section: GrowthSection, Case: "4000", Subject: subject, Metric: metric})
			require.NotEmpty(t, values, "%s: %s", subject, metric)
			require.Positive(t, values[0], "%s: %s", subject, metric)
		}
	}
	positive(GrowthService, GrowthNew, GrowthHeap, GrowthReport, GrowthResident)
	for _, subject := range GrowthSubjects {
		positive(subject, AckP50, AckMax, Cores)
		if subject != GrowthQuiet {
			positive(subject, GrowthScrape)
		}
	}
	require.Len(t, asks(GrowthShards), 4)
	require.Equal(t, "3/4", asks(GrowthShards)[3].Shard)
}
