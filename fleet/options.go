package fleet

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"time"
)

// Options are the limits and intervals of a Fleet. A zero field takes its
// default, except where zero has a meaning of its own.
type Options struct {
	// MaxAgents bounds the registered agents, and likewise the workspaces; default
	// 200000.
	MaxAgents int
	// MaxBytes bounds the memory of all registrations; default 512 MiB, which is
	// 2.7 KB for each of 200,000 agents with a workspace of its own.
	MaxBytes int64
	// MaxMetadataKeys bounds the metadata keys of an agent whose template
	// declares none; default 128.
	MaxMetadataKeys int
	// SessionAge is how long a session lasts before the agent is asked to
	// reconnect, plus or minus a tenth at random; 0: for ever.
	SessionAge time.Duration
	// SessionGrace is how long the agent has to reconnect then; default 30 s.
	SessionGrace time.Duration
	// InstanceRetention is how long the progress of an instance is kept after its
	// session; default 1 h.
	InstanceRetention time.Duration
	// WriteInterval is how long the first change waits for others before states and
	// sessions are written; default 500 ms.
	WriteInterval time.Duration
	// WriteTimeout bounds one write; default 10 s.
	WriteTimeout time.Duration
	// FollowInterval is the time between two reads of what other replicas wrote. They
	// repair missed notifications; default 2 s.
	FollowInterval time.Duration
	// UpTemplateVersion adds the version of the workspace's template to
	// coderd_agents_up, as newer Coders do.
	UpTemplateVersion bool
	// WorkspaceInfo adds agentstatsd_workspace_info: a series of each workspace.
	WorkspaceInfo bool
	// MaxLookups bounds the callers unknown to this replica that wait at once for a
	// read of the registrations. Anybody can be such a caller; default 256.
	MaxLookups int
	// Now is the wall clock of this replica, for epochs; default time.Now.
	Now func() time.Time
	// Random draws the jitter of waits, within [0, 1); default rand.Float64.
	Random func() float64
	// RefusedPerSecond and RefusedBurst bound the refused items of an agent; defaults
	// 100 and 5000. 1 KiB of a message with a refused part counts as an item.
	RefusedPerSecond, RefusedBurst int
	// MessagesPerSecond and MessagesBurst bound the messages of an agent; defaults 200
	// and 2000. Opening a session counts as 20.
	MessagesPerSecond, MessagesBurst int
	// BytesPerSecond and BytesBurst bound the bytes of an agent's messages; defaults
	// 512 KiB and 8 MiB.
	BytesPerSecond, BytesBurst int
}

func (o Options) withDefaults() Options {
	o.MaxAgents = cmp.Or(o.MaxAgents, 200_000)
	o.MaxBytes = cmp.Or(o.MaxBytes, 512<<20)
	o.MaxMetadataKeys = cmp.Or(o.MaxMetadataKeys, 128)
	o.SessionGrace = cmp.Or(o.SessionGrace, 30*time.Second)
	o.InstanceRetention = cmp.Or(o.InstanceRetention, time.Hour)
	o.WriteInterval = cmp.Or(o.WriteInterval, 500*time.Millisecond)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, 10*time.Second)
	o.FollowInterval = cmp.Or(o.FollowInterval, 2*time.Second)
	o.MaxLookups = cmp.Or(o.MaxLookups, 256)
	o.RefusedPerSecond = cmp.Or(o.RefusedPerSecond, 100)
	o.RefusedBurst = cmp.Or(o.RefusedBurst, 5000)
	o.MessagesPerSecond = cmp.Or(o.MessagesPerSecond, 200)
	o.MessagesBurst = cmp.Or(o.MessagesBurst, 2000)
	o.BytesPerSecond = cmp.Or(o.BytesPerSecond, 512<<10)
	o.BytesBurst = cmp.Or(o.BytesBurst, 8<<20)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	return o
}

func (o Options) validate() error {
	for _, c := range []struct {
		name  string
		value int64
	}{
		{"max agents", int64(o.MaxAgents)},
		{"max bytes", o.MaxBytes},
		{"max metadata keys", int64(o.MaxMetadataKeys)},
		{"session age", int64(o.SessionAge)},
		{"session grace", int64(o.SessionGrace)},
		{"instance retention", int64(o.InstanceRetention)},
		{"write interval", int64(o.WriteInterval)},
		{"write timeout", int64(o.WriteTimeout)},
		{"follow interval", int64(o.FollowInterval)},
		{"max lookups", int64(o.MaxLookups)},
		{"refused per second", int64(o.RefusedPerSecond)},
		{"refused burst", int64(o.RefusedBurst)},
		{"messages per second", int64(o.MessagesPerSecond)},
		{"messages burst", int64(o.MessagesBurst)},
		{"bytes per second", int64(o.BytesPerSecond)},
		{"bytes burst", int64(o.BytesBurst)},
	} {
		if c.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %d", c.name, c.value)
		}
	}
	// The scan checks ages once a second.
	if o.SessionAge != 0 && o.SessionAge < 10*time.Second {
		return fmt.Errorf("session age: want 0 or at least 10s, got %v", o.SessionAge)
	}
	return nil
}
