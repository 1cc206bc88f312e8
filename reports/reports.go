// Package reports keeps what agents report for whoever watches it, in the
// database, until the watcher has processed it.
//
// A subscription is a row with a name. While it lives, each replica gathers what
// its agents report, and adds it to the subscription's sums: a row for each agent.
// A stream moves sums into a numbered batch, sends it, and deletes it when it is
// acked. Any replica can have the stream; nothing is sent from one to another.
//
// The writer of a replica:
//
//	gathering --1 s or a full batch--> frozen --written, or found written--> gathering
//	                                     |  ^
//	                                     +--+ the outcome is not known: the same again
//
// A frozen batch does not change until the database says that it has it. It counts
// up the writes in the replica's row, so an attempt whose answer was lost is found
// there, and one that is under way is waited for.
//
// An agent keeps the counts of a report until that is written, and sends it again over
// its next stream, so several replicas may have it. The sum's row has the sequence of the
// newest report that was added of the agent's process: the database decides for each
// report whether it is added. So reports of an agent are kept one by one until they are
// written, and then its tracker is notified, as it is of what will never be written.
//
// A stream of a subscription:
//
//	opening --another has it, and it stands by--> standing by --that is gone--> free, the end
//	opening --all replicas add to it, or 10 s--> gathering
//	gathering --a batch was made--> sent --acked--> gathering
//	any --a newer stream has the subscription--> superseded
//
// It has the subscription's row for the time of a lease, by the database's clock, and
// renews it. Each step checks that the stream is the owner, and the number of the
// newest batch: so two streams never make the same batch, and a step whose answer
// was lost returns the batch that it made.
//
// What a replica has gathered and not written is sent again by the agents if it is
// killed. What can be lost is what an agent's process had not sent again when it ended;
// what is beyond a limit, which is counted; and what a database has lost.
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
)

// Store is the database. store.Store is one; its methods say more.
type Store interface {
	// RecordReportWriterHeartbeat notes that a replica is alive, RemoveReportWriter that
	// it adds nothing any more.
	RecordReportWriterHeartbeat(ctx context.Context, writer agent.ID) error
	RemoveReportWriter(ctx context.Context, writer agent.ID) error
	// AddReports adds sums to subscriptions, once for each sequence of a writer, which
	// must have recorded a heartbeat.
	AddReports(ctx context.Context, w agent.ReportWrite) (agent.ReportWritten, error)
	// CountReportSums returns how many sums there are, by subscription; HasReportSums
	// whether a subscription has any.
	CountReportSums(ctx context.Context) (map[int64]agent.ReportCount, error)
	HasReportSums(ctx context.Context, subscription int64) (bool, error)

	// Subscriptions returns all, in the order of their ids.
	Subscriptions(ctx context.Context) ([]agent.Subscription, error)
	// ConfirmSubscriptions says that a replica adds to them from now on.
	ConfirmSubscriptions(ctx context.Context, writer agent.ID, ids []int64) error
	// StartSubscription returns from when a subscription counts, which is now if all
	// replicas with a heartbeat within a time have confirmed it, or with force;
	// zero: they have not.
	StartSubscription(ctx context.Context, id int64, self agent.ID, within time.Duration, force bool) (since time.Time, err error)
	// OpenSubscription gives a subscription to a stream, DeliverReports makes a step
	// of that, ReleaseSubscription ends it.
	OpenSubscription(ctx context.Context, o agent.SubscriptionOpening) (agent.OpenedSubscription, error)
	DeliverReports(ctx context.Context, d agent.Delivery) (*agent.ReportBatch, error)
	ReleaseSubscription(ctx context.Context, id int64, stream agent.ID) error
	// ExpireSubscriptions removes those that no stream has had for a time.
	ExpireSubscriptions(ctx context.Context, retention time.Duration) ([]agent.ExpiredSubscription, error)
}

const (
	// batchSize reports are written at once, and sums delivered at once, or as many as
	// have batchBytes: a message is below the 4 MiB that gRPC's clients take by default.
	batchSize  = 500
	batchBytes = 1 << 20
	// sumBytes is what a sum takes in memory beside its data: 200 of it, and its place
	// in a map and a list. reportBytes is what each report takes that is not written.
	sumBytes    = 256
	reportBytes = 96
	// batchInterval is how long reports gather before they are written, and again
	// before they are delivered.
	batchInterval = time.Second
	// pollInterval is how soon a replica knows of a new subscription.
	pollInterval = time.Second
	// heartbeatInterval passes between two heartbeats of a writer. One without them for
	// writerTimeout is not waited for when a subscription begins.
	heartbeatInterval = 5 * time.Second
	writerTimeout     = 4 * heartbeatInterval
	// countInterval passes between two counts of what the database has.
	countInterval = 5 * time.Second
	// expireInterval passes between two looks for subscriptions to remove.
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
	opts    Options
	metrics *metrics
	log     *slog.Logger

	// wanted is true while there is a subscription: without, a report costs one load.
	wanted atomic.Bool
	// due has an element when a batch is full, look when subscriptions may have
	// changed.
	due, look chan struct{}

	mu sync.Mutex
	// Guarded by mu.

	subscriptions []agent.Subscription
	confirmed     map[int64]struct{}
	full          map[int64]bool
	// groups are what is not frozen yet, the oldest first. Only the last one
	// takes more.
	groups []*group
	// pending agents are in groups, with pendingBytes.
	pending, pendingBytes int
	free                  []*unwritten
	// streams of this replica are notified of writes.
	streams map[chan struct{}]struct{}
	// frozen is changed by the writer only; nil: nothing is. halves are to be written
	// next: the database refused a batch for one of its rows.
	frozen *frozenBatch
	halves []*frozenBatch

	// sequence is that of the newest write. Only the writer uses it.
	sequence int64
}

// frozenBatch is a write whose outcome is not known.
type frozenBatch struct {
	write agent.ReportWrite
	// agents have the data of the write, and of the halves before it.
	agents []*unwritten
}

// New returns Reports that know of no subscription yet.
func New(store Store, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Reports, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("reports options: %w", err)
	}
	r := &Reports{
		store:     store,
		opts:      opts,
		log:       log,
		due:       make(chan struct{}, 1),
		look:      make(chan struct{}, 1),
		confirmed: make(map[int64]struct{}),
		full:      make(map[int64]bool),
		streams:   make(map[chan struct{}]struct{}),
	}
	var err error
	if r.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("reports: %w", err)
	}
	if err := r.registerGauges(reg); err != nil {
		return nil, fmt.Errorf("reports: %w", err)
	}
	return r, nil
}

// Load reads the subscriptions. It is called before the first report: a subscription
// that is made later waits for this replica to confirm it.
func (r *Reports) Load(ctx context.Context) error {
	if err := r.store.RecordReportWriterHeartbeat(ctx, r.opts.ID); err != nil {
		return err
	}
	return r.readSubscriptions(ctx)
}

// Wanted reports whether there is a subscription.
func (r *Reports) Wanted() bool { return r.wanted.Load() }

// signal puts an element into a channel of one, unless it has one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run writes what is gathered until ctx is cancelled. Then it writes the rest, within
// 10 s, and returns nil. What cannot be written by then is counted as dropped.
func (r *Reports) Run(ctx context.Context) error {
	var polling sync.WaitGroup
	polling.Go(func() { r.poll(ctx) })
	r.write(ctx)
	polling.Wait()
	r.stop(ctx)
	return nil
}
