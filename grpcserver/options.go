package grpcserver

import (
	"cmp"
	"fmt"
	"time"

	"google.golang.org/grpc/credentials"
)

// Options are the knobs of a Server. A zero field takes its default.
type Options struct {
	// Credentials of the listener; nil: plaintext.
	Credentials credentials.TransportCredentials
	// Tokens that are no agent's, until SetTokens.
	Tokens Tokens
	// CoderdClientSAN is the DNS name in a verified client certificate that makes
	// its owner coderd; empty: none does.
	CoderdClientSAN string

	// MaxMessageBytes of one request, encoded; default 4 MiB.
	MaxMessageBytes int
	// MaxAgentMessageBytes of one request of an agent; default 1 MiB.
	MaxAgentMessageBytes int
	// MaxReceivingBytes of messages above 64 KiB that are being received; default
	// 64 MiB, at least twice MaxMessageBytes. Half is for agents, each of which has
	// one at a time, half for coderd. More of them wait in line.
	MaxReceivingBytes int
	// MessageTimeout bounds the time of such a message from its header to its end, half
	// of which it may wait for room; default 30 s.
	MessageTimeout time.Duration
	// MaxStreams on one connection; default 65536.
	MaxStreams uint32
	// SendTimeout bounds the time that a response of a stream waits for coderd to read
	// those before it; default 30 s.
	SendTimeout time.Duration

	// MaxStreamsPerAgent at once; default 8: a new one ends the session of the
	// one before. As many may have ended without their responses being read.
	MaxStreamsPerAgent int
	// MaxUnreadOfCoderd is how many streams of responses to coderd may have ended without
	// being read; default 256.
	MaxUnreadOfCoderd int
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
	// address may make each second for ever; default 100. StrangerBurst is how many
	// at once; default 4096. A connection that is authenticated does not count.
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
	// IdleTimeout bounds the time between two messages of an agent's own stream; default
	// 90 s.
	IdleTimeout time.Duration
	// Reflection makes gRPC's reflection served, to anyone.
	Reflection bool

	// HelloTimeout bounds the time from the start of a call to the end of its
	// first message; default 10 s.
	HelloTimeout time.Duration
	// DrainTimeout bounds the time in which agents end their streams when the
	// service stops; default 10 s. They are asked one after another, over three
	// quarters of it. Serve returns at most 2 s later.
	DrainTimeout time.Duration
}

func (o Options) withDefaults() Options {
	o.MaxMessageBytes = cmp.Or(o.MaxMessageBytes, 4<<20)
	o.MaxAgentMessageBytes = cmp.Or(o.MaxAgentMessageBytes, 1<<20)
	o.MaxReceivingBytes = cmp.Or(o.MaxReceivingBytes, 64<<20)
	o.MessageTimeout = cmp.Or(o.MessageTimeout, 30*time.Second)
	o.MaxStreams = cmp.Or(o.MaxStreams, 1<<16)
	o.SendTimeout = cmp.Or(o.SendTimeout, 30*time.Second)
	o.MaxStreamsPerAgent = cmp.Or(o.MaxStreamsPerAgent, 8)
	o.MaxUnreadOfCoderd = cmp.Or(o.MaxUnreadOfCoderd, 256)
	o.MaxCoderdCalls = cmp.Or(o.MaxCoderdCalls, 64)
	o.MaxConnections = cmp.Or(o.MaxConnections, 16384)
	o.MaxStrangersPerAddress = cmp.Or(o.MaxStrangersPerAddress, 1024)
	o.MaxStrangerCalls = cmp.Or(o.MaxStrangerCalls, 100)
	o.StrangerRate = cmp.Or(o.StrangerRate, 100)
	o.StrangerBurst = cmp.Or(o.StrangerBurst, 4096)
	o.AgentCallRate = cmp.Or(o.AgentCallRate, 1000)
	o.MaxOpenCalls = cmp.Or(o.MaxOpenCalls, 64)
	o.AuthenticationTimeout = cmp.Or(o.AuthenticationTimeout, 20*time.Second)
	o.ConnectionIdleTimeout = cmp.Or(o.ConnectionIdleTimeout, 5*time.Minute)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, 90*time.Second)
	o.HelloTimeout = cmp.Or(o.HelloTimeout, 10*time.Second)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, 10*time.Second)
	return o
}

func (o Options) validate() error {
	if err := o.Tokens.Validate(); err != nil {
		return err
	}
	if o.MaxAgentMessageBytes > o.MaxMessageBytes {
		return fmt.Errorf("max agent message bytes: want at most the max message bytes of %d, got %d", o.MaxMessageBytes, o.MaxAgentMessageBytes)
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
		{"send timeout", int64(o.SendTimeout)},
		{"max streams per agent", int64(o.MaxStreamsPerAgent)},
		{"max unread of coderd", int64(o.MaxUnreadOfCoderd)},
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
		{"drain timeout", int64(o.DrainTimeout)},
	} {
		if c.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %d", c.name, c.value)
		}
	}
	return nil
}
