package coderdapi

import (
	"cmp"
	"context"
	"fmt"
	"time"
)

// Options are the knobs of a CoderdService. A zero field takes its default.
type Options struct {
	// MaxWatches at once, of all kinds together; default 256. MaxSyncs at once;
	// default 4: each has the whole set in memory.
	MaxWatches, MaxSyncs int
	// MaxWatchBytes bounds the memory of one watch of metadata; default 4 MiB. Half is
	// for a read of the database, of which half is values. Half is for hashes of what
	// was sent. The values of one agent must fit a read. MaxWatchesBytes bounds all
	// watches and GetMetadata together; default 64 MiB, at least six times the server's
	// MaxMessageBytes.
	MaxWatchBytes, MaxWatchesBytes int
	// MaxPushes is how many instances of coderd may push at once; default 256.
	MaxPushes int
	// MaxPushBytes of one snapshot of an instance, with 24 for each family;
	// default 64 MiB. Of all pushes under way together: MaxPushesBytes, default
	// 64 MiB, with which the process stays below 300 MB.
	MaxPushBytes, MaxPushesBytes int
	// MaxRegistrationBytes of one registration, encoded; default 64 KiB.
	MaxRegistrationBytes int
	// MaxSyncBytes bounds the memory of registrations and syncs under way together;
	// default 64 MiB. With that the process stays below 300 MB, as garbage takes some
	// three times as much. There is room for 6 syncs of 10,000 agents, or one of
	// 60,000. An agent with 3 apps and 15 keys counts 1.0 KB, and 2.1 KB while its
	// message is decoded.
	MaxSyncBytes int
	// MaxDeclaredKeys is how many metadata keys a registration may declare;
	// default 256.
	MaxDeclaredKeys int
	// SyncTimeout bounds a sync; default 5 min.
	SyncTimeout time.Duration
	// WatchInterval is the time between two re-reads of what is watched, which
	// repair missed notifications; default 30 s.
	WatchInterval time.Duration

	// StoreReady returns why the database cannot be used now; nil: it is not asked.
	// CoderdService is served only while it returns nil.
	StoreReady func(ctx context.Context) error
}

func (o Options) withDefaults() Options {
	o.MaxWatches = cmp.Or(o.MaxWatches, 256)
	o.MaxSyncs = cmp.Or(o.MaxSyncs, 4)
	o.MaxWatchBytes = cmp.Or(o.MaxWatchBytes, 4<<20)
	o.MaxWatchesBytes = cmp.Or(o.MaxWatchesBytes, 64<<20)
	o.MaxPushes = cmp.Or(o.MaxPushes, 256)
	o.MaxPushBytes = cmp.Or(o.MaxPushBytes, 64<<20)
	o.MaxPushesBytes = cmp.Or(o.MaxPushesBytes, 64<<20)
	o.MaxRegistrationBytes = cmp.Or(o.MaxRegistrationBytes, 64<<10)
	o.MaxSyncBytes = cmp.Or(o.MaxSyncBytes, 64<<20)
	o.MaxDeclaredKeys = cmp.Or(o.MaxDeclaredKeys, 256)
	o.SyncTimeout = cmp.Or(o.SyncTimeout, 5*time.Minute)
	o.WatchInterval = cmp.Or(o.WatchInterval, 30*time.Second)
	return o
}

// pushersPushes is how many pushes those may have at once who may only push,
// operatorsWatches how many watches those who may only read.
func (o *Options) pushersPushes() int    { return o.MaxPushes - o.MaxPushes/4 }
func (o *Options) operatorsWatches() int { return max(1, o.MaxWatches/4) }

func (o Options) validate(maxMessageBytes int) error {
	if most := max(ReadMessages*maxMessageBytes, o.MaxWatchBytes); o.MaxWatchesBytes < most {
		return fmt.Errorf("max watches bytes: want at least %d, six times the max message bytes and once the max watch bytes, got %d", most, o.MaxWatchesBytes)
	}
	for _, c := range []struct {
		name  string
		value int64
	}{
		{"max watches", int64(o.MaxWatches)},
		{"max syncs", int64(o.MaxSyncs)},
		{"max watch bytes", int64(o.MaxWatchBytes)},
		{"max watches bytes", int64(o.MaxWatchesBytes)},
		{"max pushes", int64(o.MaxPushes)},
		{"max push bytes", int64(o.MaxPushBytes)},
		{"max pushes bytes", int64(o.MaxPushesBytes)},
		{"max registration bytes", int64(o.MaxRegistrationBytes)},
		{"max sync bytes", int64(o.MaxSyncBytes)},
		{"max declared keys", int64(o.MaxDeclaredKeys)},
		{"sync timeout", int64(o.SyncTimeout)},
		{"watch interval", int64(o.WatchInterval)},
	} {
		if c.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %d", c.name, c.value)
		}
	}
	return nil
}
