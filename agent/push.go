package agent

import (
	"errors"
	"time"
)

// ErrNoRoom is wrapped when nothing of a push is taken in, as a limit leaves no room
// for it. The text names the limit. To push again does not help by itself.
var ErrNoRoom = errors.New("no room")

// ErrNewerScrape is the error of a scraped snapshot that has no effect, as there is one that
// was scraped later, or shortly before.
var ErrNewerScrape = errors.New("superseded by another scrape")

// Push is one snapshot of the metric families of one coderd instance.
type Push struct {
	// Replica is the name of the instance for people.
	Replica string
	// Instance is the process of coderd.
	Instance Instance
	// Interval between two snapshots.
	Interval time.Duration
	// PassThrough means that what agents have, and what is computed of them, is taken in.
	PassThrough bool
	// Snapshot is the number of this one, rising from 1 in the life of the
	// instance.
	Snapshot int64
	// ScrapedAt is when others scraped the snapshot, which orders it among those of the
	// instance in place of its number. Zero: the instance pushes itself.
	ScrapedAt time.Time
	// Final is true if the instance goes away.
	Final bool
	// Families are serialized io.prometheus.client.MetricFamily messages.
	Families [][]byte
}

// PushInstance is an instance of coderd, or a bridge, that pushes or did lately.
type PushInstance struct {
	Replica  string
	Instance Instance
	// Families of its newest snapshot, and the lines that these have in a scrape, as
	// limits count them.
	Families, Lines int
	// PushedAt is when that was taken in, by the clock of the replica that did.
	PushedAt time.Time
	// Live means that its gauges are served.
	Live bool
	// PassThrough is as in Push.
	PassThrough bool
}

// PushRefusal is why a family of a push, or a part of it, is not served.
type PushRefusal struct {
	// Name of the family; empty if it has no readable one.
	Name string
	// Reason as the counters label it, like "owned_by_service".
	Reason string
	// Message is for a person: it names the field, the limit and the value.
	Message string
	// Series are how many series, or values of series that are served, are
	// refused for the reason; 0: the whole family is.
	Series int
}

// PushRow is what is kept of one coderd instance, or, with the zero instance,
// of all that are merged into totals.
type PushRow struct {
	Instance Instance
	Replica  string
	// UpdatedAt is when the newest snapshot was received.
	UpdatedAt time.Time
	// Data is opaque to the store.
	Data []byte
	// Version counts the writes of the row. In a row that was read it is that of the
	// row, from 1. In one to be written it is that of the row that it replaces, 0 if
	// there is none.
	Version int64
}
