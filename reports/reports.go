// Package reports adds up what agents report for watchers. The sums wait in the
// database until the watcher has processed them.
//
// A subscription is a row with a name. While it lives, each replica adds what its
// agents report to the subscription's sums: a row for each agent. A stream moves sums
// into a numbered batch, sends it, and deletes it when it is acked. Any replica can
// have the stream. Replicas send each other nothing.
//
// The writer of a replica:
//
//	gathering --1 s or a full batch--> frozen --written, or found written--> gathering
//	                                     |  ^
//	                                     +--+ the outcome is not known: the same again
//
// A frozen batch does not change until its outcome is known. Its transaction counts up
// the writes in the replica's row. So the next attempt sees there whether one whose
// answer was lost was committed, and waits for one that is still under way.
//
// An agent keeps the counts of a report until it is written, and sends it again over
// its next stream. So several replicas may have one report. The sum's row has the
// highest sequence that was added of each instance. The database adds only reports
// above it. For that a replica keeps the reports of an agent apart until they are
// written. Then it notifies the report's tracker. It does so, too, if a report will
// never be written.
//
// A stream of a subscription:
//
//	opening --another has it, and it stands by--> standing by --that is gone--> free, the end
//	opening --all replicas add to it, or 10 s--> gathering
//	gathering --a batch was made--> sent --acked--> gathering
//	any --a newer stream has the subscription--> superseded
//
// The stream owns the subscription's row for the time of a lease, by the database's
// clock, and renews it. Each step checks in the row that the stream is the owner, and
// the number of the newest batch. So two streams never make the same batch. A step
// whose answer was lost returns the batch that it made.
//
// Agents send again what a killed replica had not written. Reports are lost if the
// agent's process ends before that, or if the database loses them. Those beyond a limit
// are dropped, and counted.
package reports

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/backoff"
	"github.com/coder/agentstatsd/internal/outage"
	"github.com/coder/agentstatsd/internal/recurring"
)

// Store is the database. store.Store is one; its methods say more.
type Store interface {
	// RecordReportWriterHeartbeat records that a replica is alive. RemoveReportWriter
	// records that it adds nothing any more.
	RecordReportWriterHeartbeat(ctx context.Context, writer agent.ID) error
	RemoveReportWriter(ctx context.Context, writer agent.ID) error
	// AddReports adds sums to subscriptions, once for each sequence of a writer, which
	// must have recorded a heartbeat.
	AddReports(ctx context.Context, w agent.ReportWrite) (agent.ReportWritten, error)
	// CountReportSums returns how many sums each subscription has. HasReportSums
	// returns whether one has any.
	CountReportSums(ctx context.Context) (map[int64]agent.ReportCount, error)
	HasReportSums(ctx context.Context, subscription int64) (bool, error)

	// Subscriptions returns all, in the order of their ids.
	Subscriptions(ctx context.Context) ([]agent.Subscription, error)
	// ConfirmSubscriptions records that a replica adds to them from now on.
	ConfirmSubscriptions(ctx context.Context, writer agent.ID, ids []int64) error
	// StartSubscription starts a subscription once all replicas with a heartbeat within
	// that time have confirmed it. With force it starts it in any case. since is the
	// time from which all reports count; zero: it has not started.
	StartSubscription(ctx context.Context, id int64, self agent.ID, within time.Duration, force bool) (since time.Time, err error)
	// OpenSubscription makes a stream the owner of a subscription. DeliverReports makes
	// a step of it. ReleaseSubscription ends the ownership.
	OpenSubscription(ctx context.Context, o agent.SubscriptionOpening) (agent.OpenedSubscription, error)
	DeliverReports(ctx context.Context, d agent.Delivery) (*agent.ReportBatch, error)
	ReleaseSubscription(ctx context.Context, id int64, stream agent.ID) error
	// ExpireSubscriptions removes those that had no stream for that time.
	ExpireSubscriptions(ctx context.Context, retention time.Duration) ([]agent.ExpiredSubscription, error)
}

const (
	// A write has at most batchSize reports, a delivery at most batchSize sums. Each
	// has at most batchBytes, which keeps messages below the 4 MiB that gRPC's clients
	// accept by default.
	batchSize  = 500
	batchBytes = 1 << 20
	// sumBytes is what an agent takes in memory beside its data: 200 bytes, and its
	// place in a map and a list. reportBytes is what each of its reports takes.
	sumBytes    = 256
	reportBytes = 96
	// batchInterval is the time between two writes of reports, and between two
	// deliveries of sums.
	batchInterval = time.Second
	// pollInterval is the time between two reads of the subscriptions.
	pollInterval = time.Second
	// heartbeatInterval is the time between two heartbeats of a writer. A subscription
	// that starts does not wait for a writer without one for writerTimeout.
	heartbeatInterval = 5 * time.Second
	writerTimeout     = 4 * heartbeatInterval
	// countInterval is the time between two counts of the sums in the database.
	countInterval = 5 * time.Second
	// expireInterval is the time between two removals of expired subscriptions.
	expireInterval = time.Minute
	// confirmTimeout bounds the wait for all replicas to add to a subscription.
	confirmTimeout = 10 * time.Second
	// callTimeout bounds a call of the database.
	callTimeout = 5 * time.Second
	// stopTimeout bounds the last writes: the workers of the service have 20 s.
	stopTimeout = 10 * time.Second
)

// retries spaces calls of the database that failed.
var retries = backoff.Backoff{Min: 250 * time.Millisecond, Max: 10 * time.Second}

// Reports are this replica's part in all subscriptions. Its methods are safe for
// concurrent use.
type Reports struct {
	store   Store
	opts    atomic.Pointer[Options] // Reconfigure replaces them
	metrics *metrics
	log     *slog.Logger
	refused recurring.Events // reports that the database refuses
	// polls, writing and deliveries are outages of the database.
	polls, writing, deliveries *outage.Log

	// wanted is true while there is a subscription. Otherwise a report costs one load.
	wanted atomic.Bool
	// due has an element when a batch is full, pollNow when subscriptions may have
	// changed.
	due, pollNow chan struct{}

	mu sync.Mutex
	// Guarded by mu.

	subscriptions []agent.Subscription
	confirmed     map[int64]struct{}
	full          map[int64]bool
	// groups have the reports that are not frozen yet, the oldest first. Only the last
	// one gets new ones.
	groups []*group
	// pending agents are in groups, with pendingBytes.
	pending, pendingBytes int
	free                  []*unwritten
	// streams of this replica. Each gets an element after a write.
	streams map[chan struct{}]struct{}
	// frozen is the batch that is being written; nil: none. Only the writer changes it.
	// halves are what is left of a batch with a row that the database refused. They are
	// written next.
	frozen *frozenBatch
	halves []*frozenBatch

	// sequence is that of the newest write. Only the writer uses it.
	sequence int64
}

// frozenBatch is a write whose outcome is not known.
type frozenBatch struct {
	write agent.ReportWrite
	// agents own the data of the write, and of the halves before it.
	agents []*unwritten
}

// New returns Reports that know of no subscription yet.
func New(store Store, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Reports, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("reports options: %w", err)
	}
	r := &Reports{
		store:      store,
		log:        log,
		polls:      outage.New(log, "subscriptions to reports are not read, trying again", "subscriptions to reports are read again"),
		writing:    outage.New(log, "reports for watchers are not written, trying again", "reports for watchers are written again"),
		deliveries: outage.New(log, "watchers of reports wait for the database", "watchers of reports get them again"),
		due:        make(chan struct{}, 1),
		pollNow:    make(chan struct{}, 1),
		confirmed:  make(map[int64]struct{}),
		full:       make(map[int64]bool),
		streams:    make(map[chan struct{}]struct{}),
	}
	r.opts.Store(&opts)
	var err error
	if r.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("reports: %w", err)
	}
	if err := r.registerGauges(reg); err != nil {
		return nil, fmt.Errorf("reports: %w", err)
	}
	return r, nil
}

// Options returns the options in force, with their defaults.
func (r *Reports) Options() Options { return *r.opts.Load() }

// Reconfigure changes the limits and the retention. What is above a lowered limit stays.
// After an error nothing has changed.
func (r *Reports) Reconfigure(opts Options) error {
	before := r.opts.Load()
	opts.ID, opts.Shared, opts.Lease = before.ID, before.Shared, before.Lease
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("reports options: %w", err)
	}
	r.opts.Store(&opts)
	return nil
}

// Load reads the subscriptions from the database. It must return before the first
// report. A subscription that is made later waits for this replica to confirm it.
func (r *Reports) Load(ctx context.Context) error {
	if err := r.store.RecordReportWriterHeartbeat(ctx, r.opts.Load().ID); err != nil {
		return err
	}
	return r.readSubscriptions(ctx)
}

// Wanted reports whether there is a subscription.
func (r *Reports) Wanted() bool { return r.wanted.Load() }

// signal puts an element into a channel with room for one, unless it has one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run writes reports until ctx is cancelled. Then it writes the rest, within 10 s, and
// returns nil. Reports that are not written by then are counted as dropped.
func (r *Reports) Run(ctx context.Context) error {
	var polling sync.WaitGroup
	polling.Go(func() { r.poll(ctx) })
	r.writeBatches(ctx)
	polling.Wait()
	r.writeRest(ctx)
	return nil
}
