package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

var (
	// ErrSuperseded is wrapped by the error of a stream that does not own its
	// subscription any more. Another stream owns it, it was removed, or an older
	// database was restored.
	ErrSuperseded = errors.New("superseded by a newer watch of the name")
	// ErrUnknownWriter is wrapped by the error of a write if its replica recorded no
	// heartbeat, or was removed.
	ErrUnknownWriter = errors.New("unknown writer of reports")
	// ErrNameFree is the error of a stream that stood by, once the name is free. The
	// owner has processed more than this watcher knows. So it begins anew.
	ErrNameFree = errors.New("the name is free: the watcher that had it is gone")
	// ErrTooMany is wrapped by the error of a subscription beyond the limit of their
	// number.
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
	// Data is the rest of the newest report, in the encoding of the edge that received
	// it.
	Data []byte
	// Instance sent the report, or all those that are added up before they are written;
	// zero in batches.
	Instance Instance
	// Tracker is notified when the agent need not keep a single report any more; nil:
	// nobody waits for that.
	Tracker ReportTracker
}

// ReportTracker tracks which reports of one instance are written. Its method does not
// block and calls nothing back.
type ReportTracker interface {
	// ReportWritten records that the agent need not keep the counts of the report with
	// the sequence. They are in the database, were dropped for good and counted as
	// dropped, or nobody subscribes to them. It is called once for each report, maybe
	// before the call that adds the report returns.
	ReportWritten(sequence int64)
}

// HasCounts reports whether any of the counts is above 0.
func (s *ReportSum) HasCounts() bool { return s.RxPackets|s.RxBytes|s.TxPackets|s.TxBytes != 0 }

// Add adds other, which must be of the same agent. If other is newer, s references its
// Data from then on.
func (s *ReportSum) Add(other *ReportSum) {
	if other.Order.Compare(s.Order) > 0 {
		s.Order, s.Workspace, s.ReceivedAt, s.Data = other.Order, other.Workspace, other.ReceivedAt, other.Data
	}
	s.AddCounts(other)
}

// AddCounts adds the counts of other, and keeps the later LastUsedAt.
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

// Position is how far a watcher has processed a subscription: the batches up to Number.
// Of another incarnation it covers the newest batch only, by number and nonce. The zero
// value is the start.
type Position struct {
	Incarnation, Number int64
	// Nonce of the batch with the number; 0: it is not known, or there is none. An
	// older database gives a number again, but not the nonce.
	Nonce int64
}

// Subscription is a durable, named subscription to what agents report.
type Subscription struct {
	// ID is never assigned again.
	ID   int64
	Name string
	// Incarnation is random and not 0. It changes if the database turns out to be older
	// than what the watcher has processed.
	Incarnation int64
	// Since is the time from which all reports count, by the database's clock; zero:
	// not every replica adds to it yet.
	Since time.Time
}

// ReportBatch is a numbered batch of a subscription's sums.
type ReportBatch struct {
	// Number rises by one with each batch of a subscription, from 1.
	Number int64
	// Nonce is random: no other batch has it.
	Nonce int64
	// Sums have each agent at most once, in the order of their ids.
	Sums []ReportSum
	// More is true if further sums waited when it was made.
	More bool
}

// ReportCount is the number and size of a subscription's sums.
type ReportCount struct {
	// Agents have a sum. Bytes are those of the data of all.
	Agents, Bytes int64
}

// ReportWrite adds sums to subscriptions. It must not change between attempts until its
// outcome is known.
type ReportWrite struct {
	// Writer is the replica. Sequence is the number of its write, from 1.
	Writer   ID
	Sequence int64
	// Sums are single reports, those of an agent in the order of their sequences. They
	// are added to all subscriptions of To. A report is left out if its sequence is not
	// above all that were added of its instance. That is known for a day, of an agent's
	// 65 newest instances.
	Sums []ReportSum
	To   []ReportTarget
}

// ReportTarget is a subscription that sums are added to.
type ReportTarget struct {
	Subscription int64
	// Full is true if reports are added only for agents that have a sum already.
	Full bool
}

// ReportWritten is the outcome of a ReportWrite.
type ReportWritten struct {
	// Repeated is true if an earlier attempt wrote it.
	Repeated bool
	// Lost is how many earlier writes are missing from the database: it was restored
	// from a backup, or is a standby that was behind.
	Lost int64
	// Refused is the number of reports that a full subscription has no room for.
	// Removed is the number of those for removed subscriptions. Found is the number of
	// those that a subscription had already, from this replica or another. A report
	// counts once for each subscription. Those of an earlier attempt are included.
	Refused, Removed, Found int64
}

// SubscriptionOpening opens a stream of a subscription, which is made if there is none
// with the name.
type SubscriptionOpening struct {
	Name string
	// Stream is random.
	Stream ID
	// Position is what the watcher has processed. Batches up to it are removed if it is
	// the newest batch's by number and nonce, or an older one of the incarnation. The
	// database does not have another one of the incarnation.
	Position Position
	// StandBy leaves a subscription to the stream that owns it.
	StandBy bool
	// Lease is how long the stream owns the subscription, unless the lease is renewed.
	Lease time.Duration
	// Max bounds the number of subscriptions.
	Max int
	// Incarnation is random, for a subscription that needs a new one.
	Incarnation int64
}

// OpenedSubscription is the state that a stream begins with.
type OpenedSubscription struct {
	Subscription
	// Owned is true if StandBy was set and another stream owns the subscription.
	// Nothing else is set then.
	Owned bool
	// Created is true if the subscription was made. Restored is true if it has a new
	// incarnation, as an older database was restored: the batch of the watcher's
	// position is missing.
	Created, Restored bool
	// Number and Nonce are those of the newest batch.
	Number, Nonce int64
	// Unacked is the batch with that number; nil: it is acked.
	Unacked *ReportBatch
}

// Delivery is a step of a stream: it acks batches, renews the lease, and requests the
// next batch.
type Delivery struct {
	Subscription, Incarnation int64
	Stream                    ID
	// Number and Nonce are those of the newest batch that the stream knows of. Acked is
	// the number of the newest that the watcher has acked. The next batch is made only
	// if they are equal.
	Number, Nonce, Acked int64
	// NextNonce is random and not 0, for the next batch.
	NextNonce int64
	// Limit bounds the sums of the next batch; 0: no batch is requested. Bytes bounds
	// their data, but for that of the first; 0: no bound.
	Limit, Bytes int
	Lease        time.Duration
}

// ExpiredSubscription is one that was removed. Agents is the number of its sums,
// Batches that of its batches, which were not delivered.
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
	// StandBy waits while another stream owns the subscription, instead of superseding
	// it. Once the name is free the stream ends with ErrNameFree.
	StandBy bool
	// Room waits a while for the memory of a batch, before one is read. keep sets how
	// many bytes the batch takes; 0: it is freed. The error is ErrNoRoom or that of
	// ctx. nil: there is always room.
	Room func(ctx context.Context) (keep func(bytes int), err error)
}

// ReportMessage is a message to a watcher. The first one of a stream has no sums.
type ReportMessage struct {
	// Position of the batch. In the first message it is that of the newest batch that
	// is acked.
	Position Position
	// Since is the time from which all reports count.
	Since time.Time
	Sums  []ReportSum
}

// AckError is the error of a stream whose watcher acks a batch that was not sent.
type AckError struct {
	// Newest is the number of the newest batch, Got the one that was acked.
	Newest, Got int64
}

// Error names the valid range and the number.
func (e *AckError) Error() string {
	return fmt.Sprintf("want 0 to %d, got %d", e.Newest, e.Got)
}
