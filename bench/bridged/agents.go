package bridged

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/internal/codertest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// What Coder's own agent does in a minute: 2.4 reports of 2.9 kB with 85 samples, and 7.8
// calls with metadata.
const (
	callsPerMinute = 10.2
	callsPerReport = 4 // one of them
	samples        = 85
	// connectsAtOnce bounds the handshakes.
	connectsAtOnce = 50
)

type agentsArgs struct {
	Target string
	Count  int
	// Version of the API that agents say; empty: that of the stand-in.
	Version string
}

// callsArgs say for how long agents make calls.
type callsArgs struct{ Milliseconds int }

// Tally has the percentiles of the times of calls, in milliseconds.
type Tally struct {
	Calls         int
	P50, P99, Max float64
}

// runAgents is the role of agents that connect.
func runAgents(ctx context.Context, c *process.Console) error {
	var args agentsArgs
	if err := c.Args(&args); err != nil {
		return err
	}
	if args.Count < 1 {
		return errNoAgents
	}
	sessions := make([]*codertest.Session, args.Count)
	group, dialing := errgroup.WithContext(ctx)
	group.SetLimit(connectsAtOnce)
	for n := range sessions {
		group.Go(func() (err error) {
			if sessions[n], err = codertest.Dial(dialing, args.Target, token(n), codertest.DialOptions{Version: args.Version}); err != nil {
				return err
			}
			_, err = sessions[n].Call(dialing, codertest.GetManifest, nil)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	defer func() {
		for _, s := range sessions {
			_ = s.Close()
		}
	}()
	report, metadata, err := requests()
	if err != nil {
		return err
	}
	next := 0
	return c.Serve(nil, map[string]process.Handler{
		"calls": func(decode func(any) error) (any, error) {
			var args callsArgs
			if err := decode(&args); err != nil {
				return nil, err
			}
			return makeCalls(ctx, time.Duration(args.Milliseconds)*time.Millisecond, len(sessions), func(n int) error {
				name, request := codertest.BatchUpdateMetadata, metadata
				if n%callsPerReport == 0 {
					name, request = codertest.UpdateStats, report
				}
				_, err := sessions[(next+n)%len(sessions)].Call(ctx, name, request)
				return err
			}, &next)
		},
	})
}

// makeCalls makes calls at the rate of so many agents. call makes the n-th. next is increased
// by their number.
func makeCalls(ctx context.Context, d time.Duration, agents int, call func(n int) error, next *int) (Tally, error) {
	pause := time.Duration(float64(time.Minute) / callsPerMinute / float64(agents))
	var mu sync.Mutex
	var times []float64
	var failed error
	var calls sync.WaitGroup
	ticker := time.NewTicker(max(pause, time.Microsecond))
	defer ticker.Stop()
	end := time.Now().Add(d)
	for n := 0; time.Now().Before(end) && ctx.Err() == nil; n++ {
		calls.Go(func() {
			began := time.Now()
			err := call(n)
			took := float64(time.Since(began)) / float64(time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			times = append(times, took)
			if err != nil && failed == nil {
				failed = fmt.Errorf("call: %w", err)
			}
		})
		<-ticker.C
	}
	calls.Wait()
	*next += len(times)
	if failed != nil {
		return Tally{}, failed
	}
	return Tally{len(times), figure.Percentile(times, 50), figure.Percentile(times, 99), figure.Percentile(times, 100)}, ctx.Err()
}

// requests returns those of a report and of metadata.
func requests() (report, metadata []byte, err error) {
	stats := &agentstatsv1.Stats{RxBytes: 1000, TxBytes: 2000, ConnectionCount: 1}
	for i := range samples {
		stats.Metrics = append(stats.Metrics, &agentstatsv1.Stats_Metric{
			Name: fmt.Sprintf("agent_forwarded_%02d", i), Type: agentstatsv1.Stats_Metric_TYPE_GAUGE, Value: float64(i),
		})
	}
	if report, err = field(1, stats); err != nil {
		return nil, nil, err
	}
	metadata, err = field(2, &agentstatsv1.Metadata{Key: "cpu", Result: &agentstatsv1.Metadata_Result{Value: "12 %"}})
	return report, metadata, err
}

func field(number protowire.Number, m proto.Message) ([]byte, error) {
	encoded, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode a request: %w", err)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), encoded), nil
}
