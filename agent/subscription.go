package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

var (
	// ErrSuperseded is wrapped by the error of a stream whose subscription has
	// another stream meanwhile, was removed, or is that of an older database.
	ErrSuperseded = errors.New("superseded by a newer watch of the name")
	// ErrUnknownWriter is wrapped by the error of a write of a replica that recorded no
	// heartbeat, or was removed.
	ErrUnknownWriter = errors.New("unknown writer of reports")
	// ErrNameFree is the error of a stream that stood by when the name is free. Others
	// have processed more meanwhile than it knows, so the watcher begins anew.
	ErrNameFree = errors.New("the name is free: the watcher that had it is gone")
	// ErrTooMany is wrapped by the error of what would be one too many.
	ErrTooMany = errors.New("too many")
)

// ReportSum is what reports of one agent add up to: counts are added, the rest
// is of the newest report.
type ReportSum struct {
	Agent, Workspace ID
	// Order of the newest report.
	Order Order
	// Reports is their number. The counts are those of all, at least 0.
	Reports                                int64
	RxPackets, RxBytes, TxPackets, TxBytes int64
	// ReceivedAt is when the newest was received.
	ReceivedAt time.Time
	// LastUsedAt is when the newest was received that shows the workspace in use;
	// zero: none does.
	LastUsedAt time.Time
	// Data is the rest of the newest report, as whoever took it in encoded it.
	Data []byte
	// Instance sent the report, or all that are added up before they are written; what
	// is delivered has none.
	Instance Instance
	// Tracker is notified when a report that came alone need not be kept by its agent
	// any more; nil: nobody waits for that.
	Tracker ReportTracker
}

// ReportTracker tracks which reports of one instance are written. The method returns
// at once and calls nothing back.
type ReportTracker interface {
	// ReportWritten notes that the counts of the report with the sequence cannot be lost
	// by this replica any more: they are in the database, or they were dropped for good,
	// and counted as such, or nobody subscribes to them. It is called once for each
	// report, at the earliest while the report is taken in.
	ReportWritten(sequence int64)
}

// HasCounts reports whether any of the counts is above 0.
func (s *ReportSum) HasCounts() bool { return s.RxPackets|s.RxBytes|s.TxPackets|s.TxBytes != 0 }

// Add adds other, which is of the same agent. s keeps other's Data if that is
// newer.
func (s *ReportSum) Add(other *ReportSum) {
	if other.Order.Compare(s.Order) > 0 {
		s.Order, s.Workspace, s.ReceivedAt, s.Data = other.Order, other.Workspace, other.ReceivedAt, other.Data
	}
	s.AddCounts(other)
}

// AddCounts adds what does not depend on which report is newer.
func (s *ReportSum) AddCounts(other *ReportSum) {
	s.Reports = SaturatingAdd(s.Reports, other.Reports)
	s.RxPackets = SaturatingAdd(s.RxPackets, other.RxPackets)
	s.RxBytes = SaturatingAdd(s.RxBytes, other.RxBytes)
	s.TxPackets = SaturatingAdd(s.TxPackets, other.TxPackets)
	s.TxBytes = SaturatingAdd(s.TxBytes, other.TxBytes)
	if other.LastUsedAt.After(s.LastUsedAt) {
		s.LastUsedAt = other.LastUsedAt
	}
}

// SaturatingAdd returns the sum of two numbers that are at least 0, at most
// math.MaxInt64.
func SaturatingAdd(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// Position is how far a watcher has processed a subscription: the batches up to
// Number. It says nothing of another incarnation. The zero value is the start.
type Position struct {
	Incarnation, Number int64
	// Nonce of the batch with the number; 0: it is not known, or there is none. An
	// older database gives a number again, but not the nonce.
	Nonce int64
}

// Subscription is a durable, named subscription to what agents report.
type Subscription struct {
	// ID is never given again.
	ID   int64
	Name string
	// Incarnation is random and not 0. It is another one after the database was
	// found to be older than what the watcher has processed.
	Incarnation int64
	// Since is the time from which all reports count, by the database's clock; zero:
	// not every replica adds to it yet.
	Since time.Time
}

// ReportBatch is a numbered part of what a subscription has gathered.
type ReportBatch struct {
	// Number rises by one with each batch of a subscription, from 1.
	Number int64
	// Nonce is random: no other batch has it.
	Nonce int64
	// Sums have each agent at most once, in the order of their ids.
	Sums []ReportSum
	// More is true if there were more than it has room for, when it was made.
	More bool
}

// ReportCount is what a subscription has gathered.
type ReportCount struct {
	// Agents have a sum. Bytes are those of the data of all.
	Agents, Bytes int64
}

// ReportWrite adds sums to subscriptions. It is the same each time that it is
// tried, until its outcome is known.
type ReportWrite struct {
	// Writer is the replica, Sequence the number of the write of it, from 1.
	Writer   ID
	Sequence int64
	// Sums are reports, those of an agent in their order. They are added to all
	// subscriptions of To, but for those whose sequence is not above all that were added
	// of their instance. It is known for a day, of the 65 newest of an agent.
	Sums []ReportSum
	To   []ReportTarget
}

// ReportTarget is a subscription that sums are added to.
type ReportTarget struct {
	Subscription int64
	// Full has only agents added to that have a sum in it.
	Full bool
}

// ReportWritten is the outcome of a ReportWrite.
type ReportWritten struct {
	// Repeated is true if it was written by an attempt before.
	Repeated bool
	// Lost is how many writes before it the database does not have: it is an
	// older one, or a standby that was behind.
	Lost int64
	// Refused are the reports that a full subscription has no room for, Gone those for
	// subscriptions that were removed, and Found those that a subscription had already,
	// from this replica or another; once for each subscription. Those of an attempt before
	// count too.
	Refused, Gone, Found int64
}

// SubscriptionOpening begins a stream of a subscription, which is made if there
// is none of the name.
type SubscriptionOpening struct {
	Name string
	// Stream is random.
	Stream ID
	// Position is what the watcher has processed. Batches up to it are removed, unless
	// the newest has its number and another nonce.
	Position Position
	// StandBy leaves a subscription alone that another stream has.
	StandBy bool
	// Lease is how long the stream has the subscription, unless it is renewed.
	Lease time.Duration
	// Max is how many subscriptions there may be.
	Max int
	// Incarnation is random, for a subscription that needs a new one.
	Incarnation int64
}

// OpenedSubscription is what a stream begins with.
type OpenedSubscription struct {
	Subscription
	// Held is true if StandBy was asked for and another stream has it. Nothing
	// else is set then.
	Held bool
	// Created is true if it was made, Restored if its incarnation is a new one as
	// the database does not have the batch of the watcher's position: it is an older one.
	Created, Restored bool
	// Number and Nonce are those of the newest batch.
	Number, Nonce int64
	// Unacked is the batch with that number; nil: it is acked.
	Unacked *ReportBatch
}

// Delivery is a step of a stream: it acks, renews the lease, and asks for the
// next batch.
type Delivery struct {
	Subscription, Incarnation int64
	Stream                    ID
	// Number and Nonce are those of the newest batch that the stream knows of, Acked
	// is the number of the newest that is acked: the next batch is made when the numbers
	// are equal.
	Number, Nonce, Acked int64
	// NextNonce is random and not 0, for the next batch.
	NextNonce int64
	// Limit is how many sums the next batch has at most; 0: none is asked for. Bytes
	// bounds their data, but for that of the first; 0: nothing does.
	Limit, Bytes int
	Lease        time.Duration
}

// ExpiredSubscription is one that was removed, with the agents whose sums and
// the number of batches that were not delivered.
type ExpiredSubscription struct {
	Name    string
	Agents  int64
	Batches int64
}

// ReportWatch is what a watcher begins a stream with.
type ReportWatch struct {
	// Name of the subscription.
	Name string
	// Position is the last one that the watcher has processed.
	Position Position
	// StandBy waits while another stream has the subscription, rather than to take
	// it. Then the stream ends with ErrNameFree.
	StandBy bool
	// Room waits a while for the memory of a batch, before one is read. keep says how
	// many bytes of a batch there are, 0: none any more. The error is ErrNoRoom or that
	// of ctx. nil: there is always room.
	Room func(ctx context.Context) (keep func(bytes int), err error)
}

// ReportMessage is what a watcher is sent. The first of a stream has no sums.
type ReportMessage struct {
	// Position is that of the batch, or of the first message: the newest that is acked.
	Position Position
	// Since is the time from which all reports count.
	Since time.Time
	Sums  []ReportSum
}

// AckError is that of a watcher which acks what was not sent.
type AckError struct {
	// Newest is the number of the newest batch, Got the one that was acked.
	Newest, Got int64
}

// Error says what was wanted.
func (e *AckError) Error() string {
	return fmt.Sprintf("want 0 to %d, got %d", e.Newest, e.Got)
}
