package agentapi

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/coder/agentstatsd/agent"
)

// Limits are what agents are told that the components accept of one agent.
type Limits struct {
	// Series that an agent may have at once.
	Series int
	// MetadataKeyBytes of one key; default agent.MaxMetadataKeyBytes.
	// MetadataReportKeyBytes in one report; default 6144.
	MetadataKeyBytes, MetadataReportKeyBytes int
	// MetadataValueBytes and MetadataErrorBytes of one value; default 2048.
	MetadataValueBytes, MetadataErrorBytes int
}

// Options are the knobs of a Server. A zero field takes its default.
type Options struct {
	// Credentials of the listener; nil: plaintext.
	Credentials credentials.TransportCredentials
	// CoderdTokenHash is the SHA-256 of coderd's token; zero: it has none.
	CoderdTokenHash [32]byte
	// CoderdClientSAN is the DNS name in a verified client certificate that
	// makes its holder coderd; empty: none does.
	CoderdClientSAN string

	// ReportInterval that agents are told; default 30 s, at least 1 s.
	ReportInterval time.Duration
	Limits         Limits

	// MaxMessageBytes of one request, encoded; default 4 MiB.
	MaxMessageBytes int
	// MaxAgentMessageBytes of one request of an agent; default 1 MiB.
	MaxAgentMessageBytes int
	// MaxReceivingBytes of messages above 64 KiB that are being received; half for agents,
	// each of which has one at a time, half for coderd; default 64 MiB, at least twice
	// MaxMessageBytes. More of them wait in line.
	MaxReceivingBytes int
	// MessageTimeout bounds the time of such a message from its header to its end, half
	// of which it may wait for room; default 30 s.
	MessageTimeout time.Duration
	// MaxStreams on one connection; default 65536, as coderd relays many.
	MaxStreams uint32
	// MaxWatches at once, of all kinds together; default 256. MaxSyncs at once;
	// default 4: each holds the whole set in memory.
	MaxWatches, MaxSyncs int
	// MaxWatchBytes is what one watch of metadata may have in memory: half for a read of
	// the database, of which half is values, half for what it was sent; default 4 MiB. The
	// values of one agent must fit a read. Of all watches, and GetMetadata, together:
	// MaxWatchesBytes, default 64 MiB, at least six times MaxMessageBytes.
	MaxWatchBytes, MaxWatchesBytes int
	// SendTimeout bounds the time that a response of a stream waits for coderd to read
	// those before it; default 30 s.
	SendTimeout time.Duration
	// MaxPushes is how many instances of coderd may push at once; default 256.
	MaxPushes int
	// MaxPushBytes of one snapshot of an instance, with 24 for each family;
	// default 64 MiB. Of all pushes under way together: MaxPushesBytes, default
	// 64 MiB, with which the process stays below 300 MB.
	MaxPushBytes, MaxPushesBytes int
	// MaxRegistrationBytes of one registration, encoded; default 64 KiB.
	MaxRegistrationBytes int
	// MaxSyncBytes is what registrations and syncs under way may take in memory
	// together; default 64 MiB, with which the process stays below 300 MB: with
	// garbage it takes some three times as much. That is room for 6 syncs of 10,000
	// agents, or one of 60,000: an agent with 3 apps and 15 keys counts 1.0 KB, and
	// 2.1 KB while its message is decoded.
	MaxSyncBytes int
	// MaxDeclaredKeys is how many metadata keys a registration may declare;
	// default 256.
	MaxDeclaredKeys int

	// MaxStreamsPerAgent at once; default 8: a new one ends the session of the
	// one before. As many may have ended without their responses being read.
	MaxStreamsPerAgent int
	// MaxCoderdCalls at once, without those that stream responses; default 64:
	// each may have a message of MaxMessageBytes in memory. More of them wait.
	MaxCoderdCalls int
	// MaxConnections at once; default 16384.
	MaxConnections int
	// MaxStrangersPerAddress is how many connections one address may have that
	// have not made an authenticated call yet; default 1024.
	MaxStrangersPerAddress int
	// MaxStrangerCalls on a connection without an authenticated one; default 100.
	MaxStrangerCalls int
	// StrangerRate is how many connections and calls without authentication one
	// address may make each second for ever, StrangerBurst how many at once; default
	// 100 and 4096. A connection that is authenticated does not count.
	StrangerRate, StrangerBurst int
	// AgentCallRate is how many calls a second are read from a connection of agents, a
	// quarter of them at once; default 1000. An ingress may have many agents on one;
	// connections of coderd are not slowed.
	AgentCallRate int
	// MaxOpenCalls are the calls of health and reflection at once; default 64, at
	// least 16.
	MaxOpenCalls int
	// AuthenticationTimeout bounds the time from the start of a connection to its
	// first authenticated call; default 20 s.
	AuthenticationTimeout time.Duration
	// ConnectionIdleTimeout is how long a connection may be without a call;
	// default 5 min.
	ConnectionIdleTimeout time.Duration
	// IdleTimeout bounds the time between two messages of an agent's stream that
	// coderd does not relay; default three report intervals.
	IdleTimeout time.Duration
	// Reflection has gRPC's reflection served, to anyone.
	Reflection bool

	// HelloTimeout bounds the time from the start of a call to the end of its
	// first message; default 10 s.
	HelloTimeout time.Duration
	// GoodbyeTimeout bounds the wait for the last ack; default 15 s.
	GoodbyeTimeout time.Duration
	// SyncTimeout bounds a sync; default 5 min.
	SyncTimeout time.Duration
	// WatchInterval is the time between two re-reads of what is watched, which
	// repair missed news; default 30 s.
	WatchInterval time.Duration
	// DrainTimeout is the time that agents have to leave when the service
	// stops; default 10 s. They are asked one after another, over three quarters
	// of it. Serve returns at most stopTimeout later.
	DrainTimeout time.Duration

	// StoreReady returns why the database cannot be used now; nil: it is not
	// asked. CoderdService is served only while it returns nil.
	StoreReady func(ctx context.Context) error
}

// Defaults of Limits.
const (
	defaultValueBytes = 2048
	defaultErrorBytes = 2048
)

func (o Options) withDefaults() Options {
	set(&o.ReportInterval, 30*time.Second)
	set(&o.Limits.MetadataKeyBytes, agent.MaxMetadataKeyBytes)
	set(&o.Limits.MetadataReportKeyBytes, 6144)
	set(&o.Limits.MetadataValueBytes, defaultValueBytes)
	set(&o.Limits.MetadataErrorBytes, defaultErrorBytes)
	set(&o.MaxMessageBytes, 4<<20)
	set(&o.MaxAgentMessageBytes, 1<<20)
	set(&o.MaxReceivingBytes, 64<<20)
	set(&o.MessageTimeout, 30*time.Second)
	set(&o.MaxStreams, 1<<16)
	set(&o.MaxWatches, 256)
	set(&o.MaxWatchBytes, 4<<20)
	set(&o.MaxWatchesBytes, 64<<20)
	set(&o.SendTimeout, 30*time.Second)
	set(&o.MaxSyncs, 4)
	set(&o.MaxPushes, 256)
	set(&o.MaxPushBytes, 64<<20)
	set(&o.MaxPushesBytes, 64<<20)
	set(&o.MaxRegistrationBytes, 64<<10)
	set(&o.MaxSyncBytes, 64<<20)
	set(&o.MaxDeclaredKeys, 256)
	set(&o.MaxStreamsPerAgent, 8)
	set(&o.MaxCoderdCalls, 64)
	set(&o.MaxConnections, 16384)
	set(&o.MaxStrangersPerAddress, 1024)
	set(&o.MaxStrangerCalls, 100)
	set(&o.StrangerRate, 100)
	set(&o.StrangerBurst, 4096)
	set(&o.AgentCallRate, 1000)
	set(&o.MaxOpenCalls, 64)
	set(&o.AuthenticationTimeout, 20*time.Second)
	set(&o.ConnectionIdleTimeout, 5*time.Minute)
	set(&o.IdleTimeout, 3*o.ReportInterval)
	set(&o.HelloTimeout, 10*time.Second)
	set(&o.GoodbyeTimeout, 15*time.Second)
	set(&o.SyncTimeout, 5*time.Minute)
	set(&o.WatchInterval, 30*time.Second)
	set(&o.DrainTimeout, 10*time.Second)
	return o
}

func set[T comparable](field *T, to T) {
	var zero T
	if *field == zero {
		*field = to
	}
}

func (o Options) validate() error {
	if o.ReportInterval < time.Second {
		return fmt.Errorf("report interval: want at least 1s, got %v", o.ReportInterval)
	}
	if o.MaxAgentMessageBytes > o.MaxMessageBytes {
		return fmt.Errorf("max agent message bytes: want at most the max message bytes of %d, got %d", o.MaxMessageBytes, o.MaxAgentMessageBytes)
	}
	if most := max(ReadMessages*o.MaxMessageBytes, o.MaxWatchBytes); o.MaxWatchesBytes < most {
		return fmt.Errorf("max watches bytes: want at least %d, six times the max message bytes and once the max watch bytes, got %d", most, o.MaxWatchesBytes)
	}
	if o.MaxReceivingBytes < 2*o.MaxMessageBytes {
		return fmt.Errorf("max receiving bytes: want at least %d, twice the max message bytes, got %d", 2*o.MaxMessageBytes, o.MaxReceivingBytes)
	}
	if o.MaxOpenCalls < 16 {
		return fmt.Errorf("max open calls: want at least 16, got %d", o.MaxOpenCalls)
	}
	for _, c := range []struct {
		name  string
		value int64
	}{
		{"max message bytes", int64(o.MaxMessageBytes)},
		{"max agent message bytes", int64(o.MaxAgentMessageBytes)},
		{"message timeout", int64(o.MessageTimeout)},
		{"max watches", int64(o.MaxWatches)},
		{"max watch bytes", int64(o.MaxWatchBytes)},
		{"max watches bytes", int64(o.MaxWatchesBytes)},
		{"send timeout", int64(o.SendTimeout)},
		{"max syncs", int64(o.MaxSyncs)},
		{"max pushes", int64(o.MaxPushes)},
		{"max push bytes", int64(o.MaxPushBytes)},
		{"max pushes bytes", int64(o.MaxPushesBytes)},
		{"max registration bytes", int64(o.MaxRegistrationBytes)},
		{"max sync bytes", int64(o.MaxSyncBytes)},
		{"max declared keys", int64(o.MaxDeclaredKeys)},
		{"max streams per agent", int64(o.MaxStreamsPerAgent)},
		{"max coderd calls", int64(o.MaxCoderdCalls)},
		{"max connections", int64(o.MaxConnections)},
		{"max strangers per address", int64(o.MaxStrangersPerAddress)},
		{"max stranger calls", int64(o.MaxStrangerCalls)},
		{"stranger rate", int64(o.StrangerRate)},
		{"stranger burst", int64(o.StrangerBurst)},
		{"agent call rate", int64(o.AgentCallRate)},
		{"authentication timeout", int64(o.AuthenticationTimeout)},
		{"connection idle timeout", int64(o.ConnectionIdleTimeout)},
		{"idle timeout", int64(o.IdleTimeout)},
		{"hello timeout", int64(o.HelloTimeout)},
		{"goodbye timeout", int64(o.GoodbyeTimeout)},
		{"sync timeout", int64(o.SyncTimeout)},
		{"watch interval", int64(o.WatchInterval)},
		{"drain timeout", int64(o.DrainTimeout)},
	} {
		if c.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %d", c.name, c.value)
		}
	}
	return nil
}
