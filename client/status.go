package client

import (
	"fmt"
	"time"
)

// Ack is one ack of the service.
type Ack struct {
	// Received and Durable sequences, as the service names them.
	Received, Durable int64
	// RoundTrip is the time since the newest report that this ack covers was sent. It
	// includes the time for which the service delayed the ack; 0: the ack covers no new
	// report.
	RoundTrip time.Duration
}

// Connection is the phase of an Agent's connection.
type Connection int

// The phases of an Agent's connection.
const (
	// Stopped means that Run is not running.
	Stopped Connection = iota
	// Connecting means that a session is being opened.
	Connecting
	// Connected means that a session is open.
	Connected
	// Waiting means that Run waits before it connects again.
	Waiting
)

// String returns the name in lower case.
func (c Connection) String() string {
	switch c {
	case Stopped:
		return "stopped"
	case Connecting:
		return "connecting"
	case Connected:
		return "connected"
	case Waiting:
		return "waiting"
	}
	return fmt.Sprintf("connection(%d)", int(c))
}

// State is the state of an Agent's connection.
type State struct {
	Connection Connection
	// Err is why the last session ended or did not open; nil once one is open.
	Err error
	// Wait is the time until the next attempt, while Waiting.
	Wait time.Duration
}

// Status is a snapshot of an Agent.
type Status struct {
	State
	// ReportInterval is what the service asks for; 0: no session was open yet.
	ReportInterval time.Duration
	Counts         Counts
}

// Counts are totals of an Agent since it was made.
type Counts struct {
	// Sessions that were opened.
	Sessions int64
	// Reports are those that were handed over or collected. Of them ReportsReceived
	// were taken in by the service, also as a part of a later report.
	Reports, ReportsReceived int64
	// Samples in the reports that were sent.
	Samples int64
	// Metadata values that were handed over. Of them MetadataDurable are in the
	// database, themselves or by a newer value of their key, and
	// MetadataRefused were refused.
	Metadata, MetadataDurable, MetadataRefused int64
	// Refused is the sum of the counts of all refusals: samples, values, states.
	Refused int64
}
