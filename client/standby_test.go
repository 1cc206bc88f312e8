package client

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
		s    standby
		idle bool
		want time.Duration
	}{
		{"an agent that dials", standby{}, true, 0},
		{"connected", standby{isRelay: true, present: true}, true, 0},
		{"left, nothing is pending", standby{isRelay: true}, true, maxSleep},
		{"left, something is pending", standby{isRelay: true}, false, 0},
		{"superseded, nothing is pending", standby{isRelay: true, present: true, supersededAt: ago(time.Hour)}, true, maxSleep},
		{"superseded, something is pending", standby{isRelay: true, present: true, supersededAt: ago(3 * time.Second)}, false, 7 * time.Second},
		{"superseded for long", standby{isRelay: true, supersededAt: ago(time.Minute)}, false, 0},
		{"superseded, something is new", standby{isRelay: true, supersededAt: ago(0), said: true}, false, 0},
		{"superseded, and to end", standby{isRelay: true, supersededAt: ago(0), draining: true}, false, 0},
		{"to end, nothing is pending", standby{isRelay: true, draining: true}, true, maxSleep},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, c.s.wait(now, c.idle)) })
	}
}

// When a relay's session ends.
func TestStandbyEnds(t *testing.T) {
	now := time.Unix(1000, 0)
	requireEnds := func(s standby, idle, want bool, wait time.Duration) {
		t.Helper()
		ends, after := s.ends(now, idle)
		require.Equal(t, want, ends)
		require.Equal(t, wait, after)
	}
	requireEnds(standby{}, true, false, maxSleep)
	requireEnds(standby{isRelay: true, present: true}, true, false, maxSleep)
	requireEnds(standby{isRelay: true}, false, false, maxSleep)
	requireEnds(standby{isRelay: true}, true, true, 0)

	s := standby{isRelay: true}
	s.superseded(now.Add(-time.Minute))
	s.opened(now, 30*time.Second)
	requireEnds(s, true, false, 45*time.Second) // the agent is elsewhere
	s.draining = true
	requireEnds(s, true, true, 0)
	s.draining = false
	s.connected(true)
	s.connected(false)
	requireEnds(s, true, true, 0) // it was here again
}
