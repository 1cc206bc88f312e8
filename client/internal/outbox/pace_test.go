package outbox

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// clocked is an outbox in a session, at a time of its own.
type clocked struct {
	*Outbox
	began, now time.Time
	sent       []sentAt
	// acks is true if all is acked at once.
	acks bool
	// second is when the second report is collected; 0: at random.
	second time.Duration
}

type sentAt struct {
	at  time.Duration
	req *agentstatsv1.ConnectRequest
}

func newClocked(report, metadata time.Duration, collects bool) *clocked {
	began := time.Unix(1000, 0)
	c := &clocked{Outbox: &Outbox{Pace: Pace{collects: collects}}, began: began, now: began, acks: true}
	c.Pace.BeginSession(began)
	c.Pace.SetIntervals(report, metadata, began)
	return c
}

// send sends what is due, as a session does.
func (c *clocked) send() {
	for {
		if c.WantsReport(c.now) {
			c.Pace.Collect(c.now)
			if !c.Pace.begun && c.second > 0 {
				c.Pace.collectAt = c.began.Add(c.second)
			}
			c.PutStats(&agentstatsv1.Stats{RxBytes: 1}, true, c.now)
		}
		req := c.Next(anyLimits, c.now)
		if req == nil {
			return
		}
		c.sent = append(c.sent, sentAt{c.now.Sub(c.began), proto.CloneOf(req)})
		if c.acks {
			c.Ack(req.GetSequence(), req.GetSequence())
		}
	}
}

// until lets time pass until so long after the beginning.
func (c *clocked) until(d time.Duration) {
	end := c.began.Add(d)
	c.send()
	for {
		at, ok := c.DueAt()
		if !ok || at.After(end) {
			c.now = end
			return
		}
		if at.After(c.now) {
			c.now = at
		}
		c.send()
	}
}

func (c *clocked) metadata(value string) {
	if err := c.PutMetadata(Metadata{Key: "a", Value: value}, c.now); err != nil {
		panic(err)
	}
	c.send()
}

func (c *clocked) report(bytes int64) {
	c.PutStats(&agentstatsv1.Stats{RxBytes: bytes}, false, c.now)
	c.send()
}

// times returns when requests were sent that have something.
func (c *clocked) times(has func(*agentstatsv1.ConnectRequest) bool) (times []time.Duration) {
	for _, s := range c.sent {
		if has(s.req) {
			times = append(times, s.at)
		}
	}
	return times
}

func hasMetadata(r *agentstatsv1.ConnectRequest) bool { return r.GetMetadata() != nil }
func hasStats(r *agentstatsv1.ConnectRequest) bool    { return r.GetStats() != nil }

// An agent with metadata each 10 s and reports each 30 s sends 6 requests a minute,
// whatever the phases and jitter of its timers. No value waits longer than a second.
// Reports are at most an interval apart.
func TestPaceOfAnAgent(t *testing.T) {
	// Without rapid, which a coderd does not have among its modules.
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 0))
		c := newClocked(30*time.Second, 10*time.Second, true)
		ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
		phase := ms(random.IntN(9800))
		c.second = ms(1 + random.IntN(30000))
		handedOver := make(map[string]time.Duration)
		for i := range 60 {
			at := 10*time.Second*time.Duration(i) + phase + ms(random.IntN(201))
			c.until(at)
			value := at.String()
			handedOver[value] = at
			c.metadata(value)
		}
		c.until(10 * time.Minute)
		if n := len(c.sent); n > 62 {
			t.Fatalf("seed %d: %d requests in 10 minutes: %v", seed, n, c.times(hasStats))
		}
		last := time.Duration(0)
		for _, at := range c.times(hasStats) {
			if at-last > 30*time.Second {
				t.Fatalf("seed %d: a report at %s, the one before at %s", seed, at, last)
			}
			last = at
		}
		if n := len(c.times(hasStats)); n < 20 || n > 24 {
			t.Fatalf("seed %d: %d reports: %v", seed, n, c.times(hasStats))
		}
		for _, s := range c.sent {
			for _, m := range s.req.GetMetadata().GetMetadata() {
				if waited := s.at - handedOver[m.GetResult().GetValue()]; waited > time.Second {
					t.Fatalf("seed %d: %s waited %s", seed, m.GetResult().GetValue(), waited)
				}
			}
		}
	}
}

// The first message of a session waits for nothing, the next ones for a metadata
// interval, and the newest value is sent.
func TestPaceOfMetadata(t *testing.T) {
	c := newClocked(30*time.Second, 10*time.Second, false)
	c.until(5 * time.Second)
	for i := range 100 {
		c.until(5*time.Second + time.Duration(i)*time.Second/4)
		c.metadata(c.now.Sub(c.began).String())
	}
	c.until(time.Minute)
	require.Equal(t, []time.Duration{5 * time.Second, 15 * time.Second, 25 * time.Second, 35 * time.Second}, c.times(hasMetadata))
	require.Equal(t, "14.75s", c.sent[1].req.GetMetadata().GetMetadata()[0].GetResult().GetValue())

	// A setting holds at once, in both directions.
	c.metadata("1")
	c.until(61 * time.Second)
	c.Pace.SetIntervals(30*time.Second, 40*time.Second, c.now)
	c.metadata("2")
	c.until(90 * time.Second)
	require.Len(t, c.times(hasMetadata), 5)
	c.Pace.SetIntervals(30*time.Second, 0, c.now)
	c.until(90 * time.Second)
	require.Equal(t, 90*time.Second, c.times(hasMetadata)[5])
	c.metadata("3")
	c.until(2 * time.Minute)
	require.Equal(t, 90*time.Second+MaxWait, c.times(hasMetadata)[6], "without an interval it waits for others")
}

// Reports that are handed over more often than the interval merge; timers that are a
// little early do not.
func TestPaceOfReports(t *testing.T) {
	for _, test := range []struct {
		name  string
		every time.Duration
		sent  []time.Duration
		bytes int64
	}{
		{"each second", time.Second, []time.Duration{0, 30 * time.Second, 60 * time.Second}, 29},
		{"a little early", 28 * time.Second, []time.Duration{0, 28*time.Second + MaxWait, 56*time.Second + MaxWait}, 1},
		{"seldom", 40 * time.Second, []time.Duration{0, 40*time.Second + MaxWait}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClocked(30*time.Second, 0, false)
			var all int64
			for at := time.Duration(0); at < time.Minute; at += test.every {
				c.until(at)
				c.report(1)
				all++
			}
			c.until(80 * time.Second)
			times := c.times(hasStats)
			require.Equal(t, test.sent, times[:len(test.sent)])
			require.Equal(t, test.bytes, c.sent[1].req.GetStats().GetRxBytes())
			c.Pace.AddWaiter()
			c.until(80 * time.Second)
			var bytes int64
			for _, s := range c.sent {
				bytes += s.req.GetStats().GetRxBytes()
			}
			require.Equal(t, all, bytes)
		})
	}
}

// States are sent at once, with what may be sent.
func TestPaceOfStates(t *testing.T) {
	c := newClocked(30*time.Second, 10*time.Second, false)
	c.report(1)
	c.metadata("1")
	c.until(20 * time.Second)
	c.report(1)
	c.metadata("2")
	require.Len(t, c.sent, 2)
	c.lifecycle.put(lifecycle{state: agentstatsv1.Lifecycle_STATE_READY}, time.Time{})
	c.send()
	require.Len(t, c.sent, 3)
	require.NotNil(t, c.sent[2].req.GetLifecycle())
	require.NotNil(t, c.sent[2].req.GetMetadata(), "its interval has passed")
	require.Nil(t, c.sent[2].req.GetStats(), "its interval has not passed")
	c.metadata("3")
	c.network.put(&agentstatsv1.Network{NodeId: 1}, time.Time{})
	c.send()
	require.Nil(t, c.sent[3].req.GetMetadata())
}

// While somebody waits for acks nothing else waits, and an ack is asked for once all
// is sent, and again in the next session.
func TestPaceOfThoseWhoWait(t *testing.T) {
	c := newClocked(30*time.Second, 10*time.Second, false)
	c.acks = false
	c.report(1)
	for _, value := range []string{"1", "2"} {
		c.metadata(value)
	}
	require.Len(t, c.sent, 1)
	require.False(t, c.sent[0].req.GetAckNow())
	c.Pace.AddWaiter()
	c.send()
	require.Len(t, c.sent, 2)
	require.NotNil(t, c.sent[1].req.GetMetadata())
	require.True(t, c.sent[1].req.GetAckNow())
	c.Pace.AddWaiter()
	c.send()
	require.Len(t, c.sent, 3)
	require.True(t, proto.Equal(&agentstatsv1.ConnectRequest{Sequence: 3, AckNow: true}, c.sent[2].req), "alone")
	c.metadata("3")
	c.report(1)
	require.Len(t, c.sent, 5)
	require.True(t, c.sent[3].req.GetAckNow())
	require.True(t, c.sent[4].req.GetAckNow())

	c.Resume(&agentstatsv1.Resume{ReceivedSequence: 5})
	c.Pace.BeginSession(c.now)
	c.send()
	require.True(t, proto.Equal(&agentstatsv1.ConnectRequest{Sequence: 6, AckNow: true}, c.sent[5].req), "in the next session")
	c.Pace.RemoveWaiter()
	c.Pace.RemoveWaiter()
	c.Resume(&agentstatsv1.Resume{ReceivedSequence: 6})
	c.Pace.BeginSession(c.now)
	c.send()
	require.Len(t, c.sent, 6)
}

// Agents whose settings change together are spread over the new interval.
func TestPaceSpreadsAgents(t *testing.T) {
	var first, last time.Duration
	for i := range 500 {
		c := newClocked(30*time.Second, 0, true)
		c.until(100 * time.Second)
		n := len(c.sent)
		c.Pace.SetIntervals(time.Minute, 0, c.now)
		c.until(161 * time.Second)
		require.Greater(t, len(c.sent), n)
		at := c.sent[n].at - 100*time.Second
		if i == 0 {
			first, last = at, at
		}
		first, last = min(first, at), max(last, at)
	}
	require.Less(t, first, 3*time.Second)
	require.Greater(t, last, 57*time.Second)
}
