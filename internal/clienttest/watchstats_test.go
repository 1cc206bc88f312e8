package clienttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// passing is how many bytes still pass a connection in each direction; negative: all
// do.
type passing struct{ read, write int }

var unbroken = passing{read: -1, write: -1}

// fragileConn breaks after a number of bytes: what is in flight then is lost.
type fragileConn struct {
	net.Conn
	mu   sync.Mutex
	left passing
}

var errFragile = errors.New("the connection broke")

// breakAfter has the connection break after so many more bytes.
func (c *fragileConn) breakAfter(left passing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = left
}

// pass returns how many of n bytes pass, and whether all do.
func (c *fragileConn) pass(left *int, n int) (int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *left < 0 {
		return n, true
	}
	passed := min(n, *left)
	*left -= passed
	return passed, passed == n
}

func (c *fragileConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if passed, all := c.pass(&c.left.read, n); !all {
		_ = c.Close()
		return passed, errFragile
	}
	return n, err
}

func (c *fragileConn) Write(b []byte) (int, error) {
	passed, all := c.pass(&c.left.write, len(b))
	n, err := c.Conn.Write(b[:passed])
	if err == nil && !all {
		_ = c.Close()
		return n, errFragile
	}
	return n, err
}

// fragileNetwork dials connections that break.
type fragileNetwork struct {
	*network
	mu     sync.Mutex
	last   *fragileConn
	dialed int
}

func (n *fragileNetwork) dial(ctx context.Context, target string) (net.Conn, error) {
	conn, err := n.network.dial(ctx, target)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dialed++
	n.last = &fragileConn{Conn: conn, left: unbroken}
	return n.last, nil
}

func (n *fragileNetwork) breakAfter(left passing) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last.breakAfter(left)
}

// watchStep is one step of a random history of a watch of stats.
type watchStep struct {
	what  string
	after time.Duration
	bytes int
}

func (s watchStep) String() string { return fmt.Sprintf("%s@%s %d", s.what, s.after, s.bytes) }

var watchSteps = rapid.Custom(func(t *rapid.T) watchStep {
	return watchStep{
		what:  rapid.SampledFrom([]string{"report", "report", "report", "report", "read", "read", "write", "write", "slow", "again"}).Draw(t, "what"),
		after: rapid.SampledFrom([]time.Duration{0, time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, time.Second, 30 * time.Second}).Draw(t, "after"),
		bytes: rapid.IntRange(0, 120).Draw(t, "bytes"),
	}
})

// Whatever breaks, and whenever: of the bytes reported nothing is lost and
// nothing is handled twice.
func TestCoderdWatchesStatsExactly(t *testing.T) {
	breaks := 0
	rapid.Check(t, func(rt *rapid.T) {
		history := rapid.SliceOfN(watchSteps, 1, 60).Draw(rt, "history")
		var err error
		bubble.Test(t, func(t *testing.T) {
			var connections int
			connections, err = watchThrough(t.Context(), history)
			breaks += connections - 1
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
	want := 10
	if testing.Short() { // a fifth of the histories
		want = 1
	}
	if breaks < want {
		t.Errorf("the connections broke %d times, want at least %d", breaks, want)
	}
}

// reportBytes has the agent connect, report and disconnect. It returns once the
// report was taken in.
func reportBytes(ctx context.Context, conn *grpc.ClientConn, bytes int64) error {
	stream, err := agentstatsv1.NewAgentServiceClient(conn).Connect(ctx)
	if err != nil {
		return err
	}
	instance := uuid.New()
	for _, req := range []*agentstatsv1.ConnectRequest{
		{Hello: &agentstatsv1.Hello{InstanceId: instance[:], ProtocolVersion: 1}},
		{Sequence: 1, Stats: &agentstatsv1.Stats{RxBytes: bytes}},
	} {
		if err := stream.Send(req); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		switch _, err := stream.Recv(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// watchThrough watches through a history and checks what was handled at its end. It
// returns how many connections that took.
func watchThrough(ctx context.Context, history []watchStep) (connections int, err error) {
	s := startService()
	defer s.close()
	setup := s.conn(coderdToken)
	defer func() { _ = setup.Close() }()
	registrar, err := client.NewCoderd(setup, client.CoderdOptions{})
	if err != nil {
		return 0, err
	}
	if _, err := registrar.Register(ctx, []*agentstatsv1.AgentRegistration{registration()}, nil); err != nil {
		return 0, err
	}
	agentConn := s.conn(agentToken)
	defer func() { _ = agentConn.Close() }()

	fragile := &fragileNetwork{network: &s.network}
	conn, err := client.Dial("passthrough:///service", client.DialOptions{Plaintext: true, Token: coderdToken},
		grpc.WithContextDialer(fragile.dial))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{Backoff: client.Backoff{Min: 10 * time.Millisecond, Max: 5 * time.Second}})
	if err != nil {
		return 0, err
	}

	// Each report has a bit of its own.
	var mu sync.Mutex
	var reported, handled, reports, handledReports int64
	var slow time.Duration
	var problem error
	var position client.StatsPosition
	load := func(context.Context) (client.StatsPosition, error) {
		mu.Lock()
		defer mu.Unlock()
		return position, nil
	}
	handle := func(batch client.StatsBatch) error {
		mu.Lock()
		pause := slow
		slow = 0
		mu.Unlock()
		time.Sleep(pause)
		mu.Lock()
		defer mu.Unlock()
		if batch.Previous != position {
			problem = fmt.Errorf("%v is said to follow %v, stored is %v", batch.Position, batch.Previous, position)
		}
		position = batch.Position
		for _, e := range batch.Agents {
			bits := e.GetStats().GetRxBytes()
			if uuid.UUID(e.GetAgentId()) != agentID || handled&bits != 0 {
				problem = fmt.Errorf("handled %b of %x after %b", bits, e.GetAgentId(), handled)
			}
			handled |= bits
			handledReports += e.GetReports()
		}
		return nil
	}
	counts := make(chan struct{})
	started := sync.OnceFunc(func() { close(counts) })
	watch := func() (stop func() error) {
		stop = run(ctx, func(ctx context.Context) error {
			return coderd.WatchStats(ctx, client.StatsWatch{
				Name: "insights", Load: load, Handle: handle, Started: func(time.Time) { started() },
			})
		})
		<-counts
		synctest.Wait()
		return stop
	}
	allTold := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return handled == reported
	}
	// heal lets everything arrive, after a last break or without.
	heal := func() {
		time.Sleep(time.Second)
		fragile.breakAfter(unbroken)
		for waited := time.Duration(0); waited < 2*time.Minute && !allTold(); waited += time.Second {
			time.Sleep(time.Second)
		}
		synctest.Wait()
	}
	stop := watch()
	for _, step := range history {
		time.Sleep(step.after)
		switch step.what {
		case "report":
			bit := int64(1) << reports
			if err := reportBytes(ctx, agentConn, bit); err != nil {
				return 0, err
			}
			reported |= bit
			reports++
		case "read":
			fragile.breakAfter(passing{read: step.bytes, write: -1})
		case "write":
			fragile.breakAfter(passing{read: -1, write: step.bytes})
		case "slow":
			mu.Lock()
			slow = step.after
			mu.Unlock()
		case "again":
			heal()
			if err := stop(); err != nil {
				return 0, err
			}
			stop = watch()
		}
	}
	heal()
	time.Sleep(time.Minute) // nothing is handled twice, also after the lease
	synctest.Wait()
	if err := stop(); err != nil {
		return 0, err
	}
	mu.Lock()
	defer mu.Unlock()
	if problem == nil && (handled != reported || handledReports != reports) {
		problem = fmt.Errorf("handled %b in %d reports, want %b in %d", handled, handledReports, reported, reports)
	}
	fragile.mu.Lock()
	defer fragile.mu.Unlock()
	return fragile.dialed, problem
}

// A watch that ends while a batch is handled acks it: a later call of Handle gets the next
// one.
func TestCoderdWatchStatsEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, coderd := startCoderd(t)
		_, err := coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		conn := s.conn(agentToken)
		defer closeConn(t, conn)
		report := func(bytes int64) {
			if err := reportBytes(t.Context(), conn, bytes); err != nil {
				t.Error(err)
			}
		}
		var handled []int64
		for i := range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			started := make(chan struct{}, 1)
			stop := run(ctx, func(ctx context.Context) error {
				return coderd.WatchStats(ctx, client.StatsWatch{
					Name:    "insights",
					Started: func(time.Time) { started <- struct{}{} },
					Handle: func(batch client.StatsBatch) error {
						if len(batch.Agents) == 0 {
							return nil
						}
						cancel()
						time.Sleep(time.Second)
						for _, e := range batch.Agents {
							handled = append(handled, e.GetStats().GetRxBytes())
						}
						return nil
					},
				})
			})
			<-started
			if i == 0 {
				report(1)
				synctest.Wait()
			}
			time.Sleep(4 * time.Second)
			if err := stop(); err != nil {
				t.Error(err)
			}
			cancel()
			report(2)
			report(4)
		}
		if fmt.Sprint(handled) != "[1 6 6]" {
			t.Errorf("handled %v", handled)
		}
	})
}

// After an error of the user's functions the watch goes on, whatever gRPC code the
// error has. It may be of a call of another service.
func TestCoderdWatchStatsGoesOnAfterErrors(t *testing.T) {
	for _, code := range []codes.Code{codes.InvalidArgument, codes.Aborted, codes.Unknown} {
		bubble.Test(t, func(t *testing.T) {
			_, coderd := startCoderd(t)
			fault := status.Error(code, "of another service")
			loads, handles := 0, 0
			stop := run(t.Context(), func(ctx context.Context) error {
				return coderd.WatchStats(ctx, client.StatsWatch{
					Name: "insights",
					Load: func(context.Context) (client.StatsPosition, error) {
						if loads++; loads == 1 {
							return client.StatsPosition{}, fault
						}
						return client.StatsPosition{}, nil
					},
					Handle: func(client.StatsBatch) error {
						if handles++; handles == 1 {
							return fault
						}
						return nil
					},
				})
			})
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if err := stop(); err != nil {
				t.Errorf("%v: %v", code, err)
			}
			if loads != 3 || handles != 2 {
				t.Errorf("%v: loaded %d times, handled %d", code, loads, handles)
			}
		})
	}
}
