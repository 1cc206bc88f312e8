package agentapi_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// unwritten are reports that somebody subscribed to, and that the test writes.
type unwritten struct {
	mu   sync.Mutex
	sums []agent.ReportSum
}

func (*unwritten) Wanted() bool { return true }

func (u *unwritten) Add(sum *agent.ReportSum) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sums = append(u.sums, *sum)
}

// write writes the nth report.
func (u *unwritten) write(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sums[n].Tracker.ReportWritten(u.sums[n].Order.Sequence)
}

func startUnwritten(t *testing.T) (*edgetest.Service, *unwritten) {
	t.Helper()
	u := &unwritten{}
	s := edgetest.Start(t, edgetest.Settings{ChangeAgents: func(c *agentapi.Components) { c.Reports = u }})
	s.Register(1)
	return s, u
}

func rxBytes(n int64) *pb.ConnectRequest { return edgetest.Stats(&pb.Stats{RxBytes: n}) }

// A report with counts is acked as received when it is written.
func TestAckOfAReportWaitsForItsWrite(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, u := startUnwritten(t)
		c := connectPatient(s, edgetest.Session{Agent: 1, Instance: 7})
		c.SendNext(custom(1)) // it has no counts
		c.SendNext(rxBytes(10))
		c.SendNext(rxBytes(20))
		c.requireAck(5*time.Second, edgetest.Ack{Received: 1, Durable: 1})
		require.Nil(t, u.sums[0].Tracker)
		require.Equal(t, agent.Instance{7}, u.sums[1].Instance)
		u.write(2)
		c.until(20 * time.Second)
		u.write(1)
		c.requireAck(25*time.Second, edgetest.Ack{Received: 3, Durable: 3})

		// What is stored of a request is acked when its report is written, too.
		req := rxBytes(30)
		req.Metadata = edgetest.Metadata("k", "v").GetMetadata()
		c.SendNext(req)
		c.until(39 * time.Second)
		require.Equal(t, []string{"k=v"}, s.StoredMetadata(1))
		u.write(3)
		c.requireAck(39*time.Second, edgetest.Ack{Received: 4, Durable: 4})

		// An ack that is waited for says at once that there is none, then that there is.
		c.SendNext(rxBytes(40))
		c.SendNext(&pb.ConnectRequest{AckNow: true})
		c.requireAck(39*time.Second, edgetest.Ack{Received: 4, Durable: 4})
		c.until(41 * time.Second)
		u.write(4)
		c.requireAck(41*time.Second, edgetest.Ack{Received: 6, Durable: 6})

		// The last ack waits for it.
		c.SendNext(rxBytes(50))
		c.SendNext(edgetest.Goodbye())
		c.requireAck(41*time.Second, edgetest.Ack{Received: 6, Durable: 6})
		c.until(45 * time.Second)
		u.write(5)
		c.requireAck(45*time.Second, edgetest.Ack{Received: 8, Durable: 8})
		c.RequireEnd(codes.OK, "")
		require.Equal(t, 45*time.Second, time.Since(c.began))
	})
}

// A report that is not written is sent again by the next session of its instance. The
// replica that has it ignores it, and acks it when it is written.
func TestUnwrittenReportIsSentAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, u := startUnwritten(t)
		c := connectPatient(s, edgetest.Session{Agent: 1})
		c.SendNext(rxBytes(10))
		c.SendNext(rxBytes(20))
		synctest.Wait()
		c = connectPatient(s, edgetest.Session{Agent: 1, Number: 2})
		require.Zero(t, c.Settings.GetResume().GetReceivedSequence())
		again := rxBytes(10)
		again.StatsSuperseded = true
		c.SendNext(again)
		c.SendNext(rxBytes(20))
		c.SendNext(custom(1))
		synctest.Wait()
		require.Len(t, u.sums, 3, "each was taken in once")
		require.Contains(t, s.Exposition("rx_bytes")[0], "} 30")
		u.write(0)
		c.requireAck(5*time.Second, edgetest.Ack{Received: 1, Durable: 1})
		u.write(1)
		c.requireAck(10*time.Second, edgetest.Ack{Received: 3, Durable: 3})
	})
}

// A report whose counts are to come is none, but its rest counts.
func TestUncountedReport(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, u := startUnwritten(t)
		c := connectPatient(s, edgetest.Session{Agent: 1})
		c.SendNext(&pb.ConnectRequest{Stats: &pb.Stats{ConnectionCount: 1}, StatsUncounted: true})
		c.SendNext(&pb.ConnectRequest{Stats: &pb.Stats{RxBytes: 10}})
		synctest.Wait()
		require.Len(t, u.sums, 2)
		require.Zero(t, u.sums[0].Reports)
		require.False(t, u.sums[0].LastUsedAt.IsZero())
		require.Equal(t, int64(1), u.sums[1].Reports)
	})
}
