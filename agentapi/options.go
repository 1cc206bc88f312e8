package agentapi

import (
	"cmp"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Limits are the limits of one agent that its settings name. The components enforce
// them.
type Limits struct {
	// Series that an agent may have at once.
	Series int
	// MetadataKeyBytes of one key; default agent.MaxMetadataKeyBytes.
	// MetadataReportKeyBytes in one report; default 6144.
	MetadataKeyBytes, MetadataReportKeyBytes int
	// MetadataValueBytes and MetadataErrorBytes of one value; default 2048.
	MetadataValueBytes, MetadataErrorBytes int
}

// Options are the knobs of an AgentService. A zero field takes its default.
type Options struct {
	// ReportInterval in the settings of agents; default 30 s, at least 1 s.
	ReportInterval time.Duration
	// LongestInterval is what report and metadata intervals are lengthened to at most;
	// default twice the ReportInterval.
	LongestInterval time.Duration
	Limits          Limits
	// AckDelay is how long an ack waits for another response; default 5 s. A request
	// with something to be stored is acked when it is stored, or after FlushInterval
	// and AckDelay. FlushInterval is that of the Metadata component; default 5 s.
	AckDelay, FlushInterval time.Duration
	// GoodbyeTimeout bounds the wait for the last ack; default 15 s.
	GoodbyeTimeout time.Duration
	// MaxRelayStreams bounds the streams of coderd that relay at once; default 64. The
	// queued requests of each may take twice the server's MaxMessageBytes.
	// MaxRelayedSessions bounds the sessions on one of them; default 2000.
	MaxRelayStreams, MaxRelayedSessions int
}

// Defaults of Limits.
const (
	defaultValueBytes = 2048
	defaultErrorBytes = 2048
)

// MaxValueBytes is the most that a stored value takes with its key in memory, under the
// default Limits.
const MaxValueBytes = agent.MaxMetadataKeyBytes + defaultValueBytes + defaultErrorBytes + 128

func (o Options) withDefaults() Options {
	o.ReportInterval = cmp.Or(o.ReportInterval, 30*time.Second)
	o.LongestInterval = cmp.Or(o.LongestInterval, 2*o.ReportInterval)
	o.Limits.MetadataKeyBytes = cmp.Or(o.Limits.MetadataKeyBytes, agent.MaxMetadataKeyBytes)
	o.Limits.MetadataReportKeyBytes = cmp.Or(o.Limits.MetadataReportKeyBytes, 6144)
	o.Limits.MetadataValueBytes = cmp.Or(o.Limits.MetadataValueBytes, defaultValueBytes)
	o.Limits.MetadataErrorBytes = cmp.Or(o.Limits.MetadataErrorBytes, defaultErrorBytes)
	o.AckDelay = cmp.Or(o.AckDelay, 5*time.Second)
	o.FlushInterval = cmp.Or(o.FlushInterval, 5*time.Second)
	o.GoodbyeTimeout = cmp.Or(o.GoodbyeTimeout, 15*time.Second)
	o.MaxRelayStreams = cmp.Or(o.MaxRelayStreams, 64)
	o.MaxRelayedSessions = cmp.Or(o.MaxRelayedSessions, 2000)
	return o
}

func (o Options) validate() error {
	if o.ReportInterval < time.Second {
		return fmt.Errorf("report interval: want at least 1s, got %v", o.ReportInterval)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"ack delay", o.AckDelay}, {"flush interval", o.FlushInterval}, {"goodbye timeout", o.GoodbyeTimeout}} {
		if d.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %v", d.name, d.value)
		}
	}
	for _, limit := range []struct {
		name  string
		value int
	}{
		{"limits: series", o.Limits.Series},
		{"limits: metadata key bytes", o.Limits.MetadataKeyBytes},
		{"limits: metadata report key bytes", o.Limits.MetadataReportKeyBytes},
		{"limits: metadata value bytes", o.Limits.MetadataValueBytes},
		{"limits: metadata error bytes", o.Limits.MetadataErrorBytes},
		{"max relay streams", o.MaxRelayStreams},
		{"max relayed sessions", o.MaxRelayedSessions},
	} {
		if limit.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %d", limit.name, limit.value)
		}
	}
	return nil
}
