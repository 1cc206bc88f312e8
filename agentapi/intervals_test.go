package agentapi_test

import (
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// factor is an agentapi.Intervals that a test sets.
type factor struct{ bits atomic.Uint64 }

func (f *factor) set(v float64)   { f.bits.Store(math.Float64bits(v)) }
func (f *factor) Factor() float64 { return math.Float64frombits(f.bits.Load()) }

// Changed intervals reach open sessions with their next response, and wake nobody; new
// sessions have them at once.
func TestIntervals(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := &factor{}
		f.set(1)
		s := edgetest.Start(t, edgetest.Settings{ChangeAgents: func(c *agentapi.Components) { c.Intervals = f }})
		s.Register(1, 2)
		c := s.Connect(edgetest.Session{Agent: 1})
		require.Equal(t, 30*time.Second, c.Settings.GetReportInterval().AsDuration())
		require.Nil(t, c.Settings.GetMetadataInterval())

		changed := func(report, metadata time.Duration) {
			t.Helper()
			c.SendNext(&pb.ConnectRequest{Stats: &pb.Stats{}, AckNow: true})
			want := proto.CloneOf(c.Settings)
			want.ReportInterval, want.MetadataInterval = durationpb.New(report), nil
			want.Resume, want.Epoch = nil, 0
			if metadata > 0 {
				want.MetadataInterval = durationpb.New(metadata)
			}
			got := c.Next().GetSettings()
			require.True(t, proto.Equal(want, got), "got %v", got)
			c.RequireDurable(c.Sequence)
			c.SendNext(&pb.ConnectRequest{Stats: &pb.Stats{}, AckNow: true})
			c.RequireDurable(c.Sequence) // and nothing but the ack
		}
		c.SendNext(&pb.ConnectRequest{Stats: &pb.Stats{}, AckNow: true})
		c.RequireDurable(c.Sequence)
		f.set(1.5)
		changed(45*time.Second, 15*time.Second)
		f.set(2)
		changed(time.Minute, 20*time.Second)
		f.set(4) // reports stay within the longest interval
		changed(time.Minute, 40*time.Second)
		f.set(2)
		changed(time.Minute, 20*time.Second)

		other := s.Connect(edgetest.Session{Agent: 2})
		require.Equal(t, time.Minute, other.Settings.GetReportInterval().AsDuration())
		require.Equal(t, 20*time.Second, other.Settings.GetMetadataInterval().AsDuration())
		require.NotNil(t, other.Settings.GetResume())

		// Nothing is sent for a change alone.
		f.set(1)
		received := make(chan *pb.ConnectResponse, 1)
		go func() {
			if m, err := other.Recv(); err == nil {
				received <- m
			}
		}()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Empty(t, received)
		changed(30*time.Second, 0)
	})
}

// Other options reach open sessions likewise.
func TestReconfigure(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		require.Error(t, s.AgentService.Reconfigure(agentapi.Options{ReportInterval: time.Millisecond}))
		c.SendNext(&pb.ConnectRequest{Stats: &pb.Stats{}, AckNow: true})
		c.RequireDurable(c.Sequence) // nothing has changed
		require.NoError(t, s.AgentService.Reconfigure(agentapi.Options{
			ReportInterval: 40 * time.Second, AckDelay: 2 * time.Second, Limits: agentapi.Limits{Series: 7},
		}))
		c.SendNext(&pb.ConnectRequest{Stats: &pb.Stats{}, AckNow: true})
		settings := c.Next().GetSettings()
		require.Equal(t, 40*time.Second, settings.GetReportInterval().AsDuration())
		require.Equal(t, 2*time.Second, settings.GetAckDelay().AsDuration())
		require.EqualValues(t, 7, settings.GetLimits().GetSeries())
		c.RequireDurable(c.Sequence)
		c.Patient = true
		c.SendNext(&pb.ConnectRequest{Stats: &pb.Stats{}})
		began := time.Now()
		c.RequireDurable(c.Sequence)
		require.Equal(t, 2*time.Second, time.Since(began), "its acks wait so long")
	})
}

// Metadata intervals are not longer than report intervals, as these are at a factor of 1.
func TestIntervalsOfFrequentReports(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := &factor{}
		f.set(3)
		s := edgetest.Start(t, edgetest.Settings{
			Agents:       agentapi.Options{ReportInterval: 2 * time.Second, LongestInterval: time.Minute},
			ChangeAgents: func(c *agentapi.Components) { c.Intervals = f },
		})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		require.Equal(t, 6*time.Second, c.Settings.GetReportInterval().AsDuration())
		require.Equal(t, 6*time.Second, c.Settings.GetMetadataInterval().AsDuration())
	})
}
