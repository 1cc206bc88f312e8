package clienttest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// step is one step of a random history.
type step struct {
	what  string
	after time.Duration
	key   int
	fault fault
	code  codes.Code
}

func (s step) String() string {
	return fmt.Sprintf("%s@%s key=%d fault=%d code=%s", s.what, s.after, s.key, s.fault, s.code)
}

var steps = rapid.Custom(func(t *rapid.T) step {
	return step{
		what: rapid.SampledFrom([]string{
			"metadata", "metadata", "metadata", "metadata", "lifecycle", "flush", "flush", "kill",
			"cut", "fault", "fault", "restart", "crash", "reconnect",
		}).Draw(t, "what"),
		after: time.Duration(rapid.IntRange(0, 3000).Draw(t, "after")) * time.Millisecond,
		key:   rapid.IntRange(0, 3).Draw(t, "key"),
		fault: fault(rapid.IntRange(1, 3).Draw(t, "fault")),
		code:  rapid.SampledFrom([]codes.Code{codes.Unavailable, codes.Aborted, codes.Internal, codes.OK}).Draw(t, "code"),
	}
})

// Whatever breaks, and whenever: within one life of the service reported bytes count
// exactly once. The newest metadata and states arrive. Nothing counts as durable that
// is not in the database.
func TestAgentResumes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		history := rapid.SliceOfN(steps, 0, 40).Draw(rt, "history")
		lazy := rapid.Bool().Draw(rt, "lazy")
		var err error
		bubble.Test(t, func(t *testing.T) { err = live(t.Context(), history, lazy) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

// live lives through a history and checks the laws at its end.
func live(ctx context.Context, history []step, lazy bool) error {
	fake := newFakeService()
	fake.lazy = lazy
	fake.settings.ReportInterval = durationpb.New(time.Second)
	n := newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterAgentServiceServer(s, fake) })
	defer func() { n.stop() }()
	conn, err := client.Dial("passthrough:///fake", client.DialOptions{Plaintext: true}, n.plaintext()...)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()

	// Each report has a bit of its own.
	var mu sync.Mutex
	var reports int
	var early error
	agent, err := client.NewAgent(conn, client.AgentOptions{
		Collect: func(context.Context) *agentstatsv1.Stats {
			mu.Lock()
			defer mu.Unlock()
			if reports == 49 { // whose sum is below what a report may have
				return nil
			}
			reports++
			return &agentstatsv1.Stats{RxBytes: 1 << (reports - 1)}
		},
		Backoff: client.Backoff{Max: 4 * time.Second},
		OnDurable: func(entries []client.Metadata) {
			fake.locked(func() {
				for _, m := range entries {
					acked, _ := strconv.Atoi(m.Value)
					stored, _ := strconv.Atoi(fake.database[m.Key])
					if stored < acked {
						mu.Lock()
						early = fmt.Errorf("%s: %d is called durable, the database has %d", m.Key, acked, stored)
						mu.Unlock()
					}
				}
			})
		},
	})
	if err != nil {
		return err
	}
	stop := run(ctx, agent.Run)
	synctest.Wait()

	newest := map[string]string{}
	state := agentstatsv1.Lifecycle_STATE_UNSPECIFIED
	for i, s := range history {
		time.Sleep(s.after)
		switch s.what {
		case "metadata":
			key, value := strconv.Itoa(s.key), strconv.Itoa(i+1)
			newest[key] = value
			if err := agent.UpdateMetadata(client.Metadata{Key: key, Value: value}); err != nil {
				return err
			}
		case "lifecycle":
			state = agentstatsv1.Lifecycle_State(s.key + 1)
			agent.SetLifecycle(state, time.Time{})
		case "flush":
			fake.flush()
		case "kill":
			fake.kill(s.code)
		case "cut":
			n.cut()
		case "fault":
			fake.locked(func() { fake.fault, fake.faultCode = s.fault, s.code })
		case "restart", "crash":
			n.stop()
			if s.what == "crash" {
				fake.forget()
			}
			time.Sleep(s.after)
			n.start()
		case "reconnect":
			fake.respond(&agentstatsv1.ConnectResponse{Reconnect: &agentstatsv1.Reconnect{Delay: durationpb.New(s.after)}})
		}
	}

	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	flushing := run(ctx, func(ctx context.Context) error {
		for ctx.Err() == nil {
			fake.flush()
			time.Sleep(time.Second)
		}
		return nil
	})
	closed := agent.Close(ctx)
	if err := errors.Join(closed, stop(), flushing()); err != nil {
		return err
	}

	fake.mu.Lock()
	defer fake.mu.Unlock()
	if len(fake.violations) > 0 {
		return fmt.Errorf("violations: %q", fake.violations)
	}
	if early != nil {
		return early
	}
	var all int64
	for i, life := range fake.lives {
		var seen int64
		for _, bytes := range life {
			if seen&bytes != 0 {
				return fmt.Errorf("life %d counts a report twice: %b in %b", i, bytes, life)
			}
			seen |= bytes
		}
		all |= seen
	}
	if want := int64(math.MaxInt64 >> (63 - reports)); all != want {
		return fmt.Errorf("counted %b of %b", all, want)
	}
	for key, value := range newest {
		if fake.database[key] != value {
			return fmt.Errorf("metadata %s: stored %q, newest %q", key, fake.database[key], value)
		}
	}
	if got := fake.lifecycle.GetState(); got != state {
		return fmt.Errorf("lifecycle: stored %s, newest %s", got, state)
	}
	counts := agent.Status().Counts
	if counts.Reports != counts.ReportsReceived || counts.Metadata != counts.MetadataDurable || counts.Refused != 0 {
		return fmt.Errorf("counts do not add up: %+v", counts)
	}
	return nil
}
