package fleet

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Options are the limits and intervals of a Fleet. A zero field takes its
// default, except where zero has a meaning of its own.
type Options struct {
	// MaxAgents bounds the registered agents, and the workspaces too; default
	// 200000.
	MaxAgents int
	// MaxBytes bounds what all registrations take in memory; default 512 MiB, which
	// is 2.7 KB for each of 200,000 agents with a workspace of its own.
	MaxBytes int64
	// MaxMetadataKeys bounds the metadata keys of an agent whose template
	// declares none; default 128.
	MaxMetadataKeys int
	// SessionAge is how long a session lasts before the agent is asked to
	// connect again, plus or minus a tenth at random; 0: for ever.
	SessionAge time.Duration
	// SessionGrace is how long an agent has to follow that; default 30 s.
	SessionGrace time.Duration
	// InstanceRetention is how long the sequences of an instance are remembered
	// after its session; default 1 h.
	InstanceRetention time.Duration
	// WriteInterval is how long the first change waits for others before states
	// and sessions are written; default 500 ms.
	WriteInterval time.Duration
	// WriteTimeout bounds one write; default 10 s.
	WriteTimeout time.Duration
	// FollowInterval is the time between two looks for what other replicas wrote,
	// which repair missed news; default 2 s.
	FollowInterval time.Duration
	// UpTemplateVersion has coderd_agents_up carry the version of the workspace's
	// template, as newer Coders do.
	UpTemplateVersion bool
	// MaxLookups is how many callers that are not known here wait at once for what
	// other replicas wrote: anybody can be one; default 256.
	MaxLookups int
	// Now is the wall clock of this replica, of which epochs are made; default
	// time.Now.
	Now func() time.Time
	// Random draws waits, within [0, 1); default rand.Float64.
	Random func() float64
	// RefusedPerSecond items of an agent are tolerated for ever, and
	// RefusedBurst at once; defaults 100 and 5000. 1 KiB of a message of which
	// something is refused counts as an item.
	RefusedPerSecond, RefusedBurst int
	// MessagesPerSecond of an agent are taken in for ever, and MessagesBurst at once;
	// defaults 200 and 2000. The opening of a session counts as 20.
	MessagesPerSecond, MessagesBurst int
	// BytesPerSecond of an agent's messages are taken in for ever, and BytesBurst at
	// once; defaults 512 KiB and 8 MiB.
	BytesPerSecond, BytesBurst int
}

func (o Options) withDefaults() Options {
	set(&o.MaxAgents, 200_000)
	set(&o.MaxBytes, 512<<20)
	set(&o.MaxMetadataKeys, 128)
	set(&o.SessionGrace, 30*time.Second)
	set(&o.InstanceRetention, time.Hour)
	set(&o.WriteInterval, 500*time.Millisecond)
	set(&o.WriteTimeout, 10*time.Second)
	set(&o.FollowInterval, 2*time.Second)
	set(&o.MaxLookups, 256)
	set(&o.RefusedPerSecond, 100)
	set(&o.RefusedBurst, 5000)
	if o.Random == nil {
		o.Random = rand.Float64
	}
	set(&o.MessagesPerSecond, 200)
	set(&o.MessagesBurst, 2000)
	set(&o.BytesPerSecond, 512<<10)
	set(&o.BytesBurst, 8<<20)
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func set[T comparable](field *T, to T) {
	var zero T
	if *field == zero {
		*field = to
	}
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
	// A scan notices age once a second.
	if o.SessionAge != 0 && o.SessionAge < 10*time.Second {
		return fmt.Errorf("session age: want 0 or at least 10s, got %v", o.SessionAge)
	}
	return nil
}
