package standby

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// When a relay needs a session.
func TestStandbyWaits(t *testing.T) {
	now := time.Unix(1000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		name string
		s    Standby
		idle bool
		want time.Duration
	}{
		{"an agent that dials", Standby{}, true, 0},
		{"connected", Standby{IsRelay: true, Present: true}, true, 0},
		{"left, nothing is pending", Standby{IsRelay: true}, true, MaxSleep},
		{"left, something is pending", Standby{IsRelay: true}, false, 0},
		{"superseded, nothing is pending", Standby{IsRelay: true, Present: true, supersededAt: ago(time.Hour)}, true, MaxSleep},
		{"superseded, something is pending", Standby{IsRelay: true, Present: true, supersededAt: ago(3 * time.Second), backAt: now.Add(7 * time.Second)}, false, 7 * time.Second},
		{"superseded for long", Standby{IsRelay: true, supersededAt: ago(time.Minute), backAt: ago(time.Second)}, false, 0},
		{"superseded, something is new", Standby{IsRelay: true, supersededAt: ago(0), Said: true}, false, 0},
		{"superseded, and to end", Standby{IsRelay: true, supersededAt: ago(0), Draining: true}, false, 0},
		{"to end, nothing is pending", Standby{IsRelay: true, Draining: true}, true, MaxSleep},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, c.s.Wait(now, c.idle)) })
	}
}

// When a relay's session ends.
func TestStandbyEnds(t *testing.T) {
	now := time.Unix(1000, 0)
	requireEnds := func(s Standby, idle, want bool, wait time.Duration) {
		t.Helper()
		ends, after := s.Ends(now, idle)
		require.Equal(t, want, ends)
		require.Equal(t, wait, after)
	}
	requireEnds(Standby{}, true, false, MaxSleep)
	requireEnds(Standby{IsRelay: true, Present: true}, true, false, MaxSleep)
	requireEnds(Standby{IsRelay: true}, false, false, MaxSleep)
	requireEnds(Standby{IsRelay: true}, true, true, 0)

	s := Standby{IsRelay: true}
	s.Superseded(now.Add(-time.Minute), 0, true)
	s.Opened(now, 30*time.Second)
	requireEnds(s, true, false, 45*time.Second) // the agent is elsewhere
	s.Draining = true
	requireEnds(s, true, true, 0)
	s.Draining = false
	s.Connected(true)
	s.Connected(false)
	requireEnds(s, true, true, 0) // it was here again
}

// A relay whose rest is not stored comes back later each time.
func TestStandbyComesBackLater(t *testing.T) {
	now := time.Unix(1000, 0)
	s := Standby{IsRelay: true}
	received := true
	requireDelay := func(want time.Duration, durable int64) {
		t.Helper()
		s.Superseded(now, durable, received)
		wait := s.Wait(now, false)
		require.GreaterOrEqual(t, wait, want)
		require.Less(t, wait, want+want/2)
		now = now.Add(wait)
		require.Zero(t, s.Wait(now, false))
		s.Opened(now, 30*time.Second)
	}
	for _, seconds := range []int{10, 20, 40, 80, 160, 160} {
		requireDelay(time.Duration(seconds)*time.Second, 0)
	}
	requireDelay(10*time.Second, 1) // something was stored
	requireDelay(20*time.Second, 1)
	s.Connected(true)
	s.Connected(false)
	requireDelay(10*time.Second, 1) // the agent was here

	s, received = Standby{IsRelay: true}, false
	for _, seconds := range []int{1, 2, 4, 8} {
		requireDelay(time.Duration(seconds)*time.Second, 0)
	}
	requireDelay(time.Second, 1)
	received = true // what is left is only not stored yet
	requireDelay(10*time.Second, 1)
	requireDelay(20*time.Second, 1)
}
