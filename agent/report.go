package agent

// Stats are the scalar values of one report.
type Stats struct {
	// RxBytes and TxBytes were moved since the last report that was taken in, in
	// RxPackets and TxPackets.
	RxBytes, TxBytes     int64
	RxPackets, TxPackets int64
	// ConnectionCount is the number of distinct flows in the period.
	ConnectionCount int64
	// MedianLatencyMS is in milliseconds; 0 or less: unknown.
	MedianLatencyMS float64
	// Sessions are those open now, by family of app, and Apps the same by app. An
	// app of which there are none is not served.
	Sessions Sessions
	Apps     AppCounts
}

// The most that a report may say. What exceeds it counts as not reported, for all
// readers of the report.
const (
	// MaxReportedBytes, or packets, moved since the report before: 1 PiB takes a
	// link of 100 Gbit/s a day.
	MaxReportedBytes = 1 << 50
	// MaxReportedCount of connections and sessions: an agent tracks 2,048 flows.
	MaxReportedCount = 1 << 30
	// MaxLatencyMS is a day. No connection that is open answers later.
	MaxLatencyMS = 24 * 60 * 60 * 1000
)

// Sessions are open sessions by family of app.
type Sessions struct {
	VSCode, JetBrains, ReconnectingPTY, SSH int64
}

// Report is one report of an agent. It is valid only during the call that it
// is passed to: whoever keeps a string of it keeps a copy.
//
// An agent mostly sends the same series again. A receiver that knows the encoding
// of a sample need not decode it.
type Report interface {
	Stats() Stats
	// Len is the number of forwarded samples, which have indices from 0 in the
	// order of the wire.
	Len() int
	// Match returns the value of sample i if the sample is known to have the
	// encoding. False says nothing. The encoding is not zero and does not change.
	Match(i int, e *SampleEncoding) (v float64, ok bool)
	// Sample returns sample i. It is overwritten by the next call.
	Sample(i int) *Sample
	// Encoding returns the encoding of sample i, which the caller may keep. It is
	// zero if the sample has none.
	Encoding(i int) SampleEncoding
}

// SampleEncoding is how the name, the type and the labels of a sample are encoded:
// the bytes before its value, and those after it. Samples of one encoding differ only
// in their values. Samples of different encodings may be of one series, too.
type SampleEncoding struct {
	Head, Tail string
}

// Sample is one forwarded sample.
type Sample struct {
	Name   string
	Type   SampleType
	Value  float64
	Labels []Label
}

// Label is one label of a sample.
type Label struct {
	Name, Value string
}

// SampleType is the type that an agent gives a forwarded family.
type SampleType uint8

// The types of forwarded families.
const (
	Untyped SampleType = iota
	Counter
	Gauge
	// UnknownType is any that the contract does not have. Samples of it are
	// refused.
	UnknownType
)

// Refusal is what was refused of one request for one reason; the rest of the
// request was taken in.
type Refusal struct {
	Kind RefusalKind
	// Reason as the refusing component's counter labels it, like
	// "invalid_name".
	Reason string
	// Message is for a person: it names the field, the limit and the value.
	Message string
	// Names are sample names or metadata keys, the first MaxRefusalNames.
	Names []string
	// Count is how many were refused, those beyond Names included.
	Count int
}

// MaxRefusalNames bounds Refusal.Names, so that an answer to garbage stays
// small: 16 names of 200 bytes are 3 KB.
const MaxRefusalNames = 16

// RefusalKind reports whether sending again can help.
type RefusalKind uint8

// The kinds of refusals.
const (
	// RefusedInvalid is malformed: it will be refused again.
	RefusedInvalid RefusalKind = iota
	// RefusedNotAllowed is not the agent's to send: reserved or undeclared.
	RefusedNotAllowed
	// RefusedLimit is over a limit: it may be accepted later.
	RefusedLimit
	// RefusedStore is refused by the database.
	RefusedStore
)

// MetadataReport is the metadata of one request. Its entries and their texts are
// valid only during the call that it is passed to: whoever keeps a text keeps a
// copy.
type MetadataReport struct {
	Agent ID
	// Owner of the agent's workspace, whose agents together have a share of what
	// all agents share; zero: not known.
	Owner ID
	Order Order
	// LateOrder is that of entries with an age.
	LateOrder Order
	// Incarnation is as in Metadata.
	Incarnation int64
	// Entries in the order of the wire; of equal keys the last one counts.
	Entries []MetadataEntry
	// Tracker is notified of what becomes of the entries; nil: none.
	Tracker Tracker
}

// MaxMetadataKeyBytes bounds one metadata key, so that every database can store it. A
// row of an index of PostgreSQL has at most a third of a page. That is 2,704 of 8,192
// bytes, or 1,336 if it was built with pages of 4,096. Beside the key it has a header
// of 8 bytes, the agent's id (16), the key's length (4) and up to 7 of padding. These
// are 1,059 bytes at most. What compresses well fits if it is longer, which is no
// promise. SQLite has no such limit.
const MaxMetadataKeyBytes = 1024

// MetadataEntry is one key of a metadata report. Said is when a relay was given it before
// its session opened, in nanoseconds since 1970; 0: the session says it now.
type MetadataEntry struct {
	Key, Value, Error string
	Said              int64
}

// Tracker tracks which requests of one instance are durable. The methods return at
// once and call nothing back.
type Tracker interface {
	// AddPending notes that a part of the request waits to be stored: no durable ack
	// passes the sequence. Of one key only the oldest sequence is pending. It is
	// resolved with a newer value of the key.
	AddPending(sequence int64)
	// Resolve ends one AddPending for each element. It is called at most once after
	// each flush.
	Resolve([]Resolution)
	// Supersede notes that a pending part lost against a stored one with this epoch:
	// one above that of its session, or unknown to it. With 0 it lost because the
	// agent has another incarnation. It is never resolved.
	Supersede(epoch int64)
}

// Resolution is the outcome of a pending part.
type Resolution struct {
	// Sequence of the request.
	Sequence int64
	// Refusal is nil if the part, or a newer value of its key, is in the database.
	Refusal *Refusal
}
