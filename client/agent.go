package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/client/internal/outage"
	"github.com/coder/agentstatsd/client/internal/outbox"
	"github.com/coder/agentstatsd/client/internal/recovery"
	"github.com/coder/agentstatsd/client/internal/refusallog"
	"github.com/coder/agentstatsd/client/internal/standby"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxRegions is how many regions a view of the network may have.
const maxRegions = 128

// AgentOptions are the knobs of an Agent. The zero value works on a connection
// that carries the agent's token.
//
// The functions are called for the goroutines of Run, also at the same time, never
// under a lock. They must not call Close or Flush, and must not block for long: see
// CallbackTimeout.
type AgentOptions struct {
	// Collect returns the agent's stats, with counts since the last call and the
	// whole set of samples; nil: no report this time. It is called when a
	// session opens, once each report interval, and before a goodbye. A call may
	// come up to a third of the interval early, to go with metadata. The
	// message is the Agent's to read and change until the next call. Absent:
	// reports come by Report.
	Collect func(context.Context) *agentstatsv1.Stats
	// Gatherer of samples that are added to what Collect returns, such as the registry of
	// the agent's own endpoint; nil: none are. Of histograms and summaries these are the
	// sums and counts. Without Collect they are the report. One that hangs is logged, and
	// left out until it returns.
	Gatherer prometheus.Gatherer
	// ReportInterval between two reports; 0: what the service says, which may
	// change at any time, and which is what agents should do.
	ReportInterval time.Duration
	// Version of the agent's program; empty: the service does not know it. It sums up what
	// agents are refused by it.
	Version string
	// InstanceID identifies this process of the agent; zero: random.
	InstanceID uuid.UUID
	// Credentials of the agent, if the connection does not carry them: see
	// Token and TokenFile.
	Credentials credentials.PerRPCCredentials
	// Registration of an agent that Coderd.Relay relays for: it is sent when the service
	// does not know the agent, together with those of others. It is not sent again once
	// it is refused, or the agent was deregistered while it was relayed. It need not have
	// the id, and must not be changed. Other Agents have none.
	Registration *agentstatsv1.AgentRegistration
	// Backoff bounds the waits between two sessions.
	Backoff Backoff
	// Logger of sessions that open and end, and of what the service refuses, a line a
	// minute for each reason; nil: they are not logged. While there is no session, that is
	// logged when it begins and each minute.
	Logger *slog.Logger
	// OnState is called when the state changes.
	OnState func(State)
	// OnAck is called for each ack.
	OnAck func(Ack)
	// OnDurable is called with metadata values that are in the database now: the
	// newest of each key that an ack covers. A value that was refused is never
	// among them.
	OnDurable func([]Metadata)
	// OnRefusal is called with what the service refused, and, with sequence 0, with
	// what the Agent itself refused to send.
	OnRefusal func(*agentstatsv1.Refusal)
	// CallbackTimeout is how long a function may take; 0: 10 s. When Run ends it is
	// 2 s at most. One that takes longer is logged and left to itself, and not called
	// before it has returned: calls in between are left out. What Collect returns late
	// is reported. For the function of NewDialingAgent it is an error like any other.
	CallbackTimeout time.Duration
}

func (o *AgentOptions) validate() error {
	if o.ReportInterval < 0 {
		return errors.New("report interval: is negative")
	}
	if o.CallbackTimeout < 0 {
		return errNegativeTimeout
	}
	return o.Backoff.validate()
}

var errOwnRegistration = errors.New("agent options: registration: want none, only coderd registers agents")

// Agent is an agent's side of the service. It keeps what it is handed until the service
// has it, and sends it in few messages. States are sent at once, metadata and reports
// within a second, together with what else is due. Metadata is sent at most each
// metadata interval of the service, reports at most each report interval. Until then
// newer values replace older ones, and the counts of reports add up. The first message
// of a session, and all messages during Flush and Close, are sent at once.
//
// Watchers of reports get each count once, whatever breaks, as a report that was not
// acked is sent again as it was. Memory is bounded. An Agent keeps at most two metadata
// values of a key, the newest lifecycle, app healths and network, and the newest
// report. Of sent reports it keeps the counts of 16. While these are not acked, further
// counts add up, and samples are sent without counts.
//
// All methods may be called at any time by any goroutine.
type Agent struct {
	// connect returns the connection of the next session, and a function that closes
	// it.
	connect     func() (conn grpc.ClientConnInterface, hangUp func(), err error)
	opts        AgentOptions
	callOptions []grpc.CallOption
	log         *slog.Logger
	// routine is the level of sessions that open and end as usual.
	routine   slog.Level
	failures  *outage.Subject
	refusals  *refusallog.Log
	recovery  *recovery.Recovery // of all relays; nil: it is none of Relays
	callbacks callbacks
	// registration of a relayed agent; nil: it is not relayed.
	registration *relayedRegistration
	// wake is signalled when something is due before Run checks again.
	wake chan struct{}

	mu      sync.Mutex
	outbox  *outbox.Outbox
	limits  outbox.Limits
	standby standby.Standby
	// sleeps is true while Run waits in a session until something is due. checksAt is
	// when it checks again.
	sleeps   bool
	checksAt time.Time
	// epoch of the last session that was opened; 0: none was.
	epoch  int64
	status Status
	// sent is the highest sequence that was sent, received the highest that was acked as
	// received. isOpen is true while a session is open. drained is true once a relay that
	// is to end had nothing left that was not received.
	sent, received  int64
	isOpen, drained bool
	// lifecycleAt is the time of the newest state of SetLifecycle.
	lifecycleAt time.Time
	// stopped is closed when Run returns; nil: it is not running.
	stopped chan struct{}
	cancel  context.CancelFunc
	// leave has functions of the host left soon, as Run is about to end. hurry has the wait
	// for the next session cut short once.
	leave   context.CancelFunc
	hurry   context.CancelFunc
	closing bool
	// idle is closed when no ack is waited for; nil: nobody waits.
	idle chan struct{}
}

// NewAgent makes an Agent that talks over conn, which it does not close. It does
// nothing before Run. All its sessions run over the same connection while that
// lives. NewDialingAgent is for agents of a service with several replicas behind a
// load balancer of connections.
func NewAgent(conn grpc.ClientConnInterface, opts AgentOptions) (*Agent, error) {
	if opts.Registration != nil {
		return nil, errOwnRegistration
	}
	return newAgent(func() (grpc.ClientConnInterface, func(), error) { return conn, func() {}, nil }, opts)
}

// NewDialingAgent makes an Agent whose sessions have connections of their own. It
// calls dial for each, like one that calls Dial, and closes the connection at the
// session's end. So the next session can be on another replica, wherever a load
// balancer puts a new connection. The service asks for that when a replica stops or
// a session is old. It costs a handshake of TLS a session. An error of dial is
// retried like any other.
func NewDialingAgent(dial func() (*grpc.ClientConn, error), opts AgentOptions) (*Agent, error) {
	if opts.Registration != nil {
		return nil, errOwnRegistration
	}
	a, err := newAgent(nil, opts)
	if err != nil {
		return nil, err
	}
	c := a.callbacks.named("dial")
	a.connect = func() (grpc.ClientConnInterface, func(), error) {
		conn, err := c.dial(dial)
		if err != nil {
			return nil, nil, err
		}
		// The only error is that it is closed already.
		return conn, func() { _ = conn.Close() }, nil
	}
	return a, nil
}

func newAgent(connect func() (grpc.ClientConnInterface, func(), error), opts AgentOptions) (*Agent, error) {
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("agent options: %w", err)
	}
	opts.Backoff = opts.Backoff.withDefaults()
	opts.addSamples()
	if opts.InstanceID == uuid.Nil {
		// Read never fails.
		_, _ = rand.Read(opts.InstanceID[:])
	}
	a := &Agent{
		outbox:  outbox.New(opts.Collect != nil),
		connect: connect,
		opts:    opts,
		log:     opts.Logger,
		wake:    make(chan struct{}, 1),
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.failures = outage.New(a.log, outage.Sessions).Subject(a.log)
	a.refusals = new(refusallog.Log)
	a.callbacks.timeout, a.callbacks.log = cmp.Or(opts.CallbackTimeout, defaultCallbackTimeout), a.log
	a.opts.bound(&a.callbacks, a.Report)
	if opts.Credentials != nil {
		a.callOptions = append(a.callOptions, grpc.PerRPCCredentials(opts.Credentials))
	}
	return a, nil
}

// Report hands over one report: counts since the last one, and the whole set of
// samples. The Agent owns stats from then on. If an older report was not sent yet, the
// new one replaces it, with the counts of both. So reports that come more often than
// the report interval merge. It does not block.
func (a *Agent) Report(stats *agentstatsv1.Stats) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outbox.PutStats(stats, false, time.Now())
	a.handedOverLocked()
}

// UpdateMetadata hands over the newest values of metadata keys. They are sent within a
// second, but at most each metadata interval of the service. Then the newest are sent.
// It does not block. An error names the first entry that was refused: its key is
// malformed, or more than 1024 keys wait to become durable. The others are accepted.
func (a *Agent) UpdateMetadata(entries ...Metadata) error {
	var first error
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for _, m := range entries {
		if err := a.outbox.PutMetadata(outbox.Metadata(m), now); err != nil && first == nil {
			first = err
		}
	}
	a.handedOverLocked()
	return first
}

// SetLifecycle sets the agent's state, and since when it has it; the zero time: since
// the service receives it. It is sent at once. SetLifecycle does not block.
func (a *Agent) SetLifecycle(state agentstatsv1.Lifecycle_State, changedAt time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setLifecycleLocked(state, changedAt)
}

func (a *Agent) setLifecycleLocked(state agentstatsv1.Lifecycle_State, changedAt time.Time) {
	a.lifecycleAt = changedAt
	a.outbox.PutLifecycle(state, changedAt, time.Now())
	a.handedOverLocked()
}

// SetAppHealth sets the health of an app of the agent, which is sent at once, unless it
// is what was set before. It does not block. It returns an error if it is the 257th app.
func (a *Agent) SetAppHealth(appID uuid.UUID, health agentstatsv1.AppHealth) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.outbox.PutAppHealth(appID, health, time.Now())
	a.handedOverLocked()
	return err
}

// SetNetwork sets the agent's view of the network, which is sent at once, unless it is
// what was set before. network is copied. It does not block. It returns an error if there
// are more than 128 regions.
func (a *Agent) SetNetwork(network *agentstatsv1.Network) error {
	if n := len(network.GetRegions()); n > maxRegions {
		return fmt.Errorf("network: has %d regions, at most %d are allowed", n, maxRegions)
	}
	network = proto.CloneOf(network)
	for _, region := range network.GetRegions() {
		region.Name = strings.ToValidUTF8(region.GetName(), "\uFFFD")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outbox.PutNetwork(network, time.Now())
	a.handedOverLocked()
	return nil
}

// Status returns a snapshot of the Agent.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	status := a.status
	c := &a.outbox.Counts
	status.Counts = Counts{
		Sessions: status.Counts.Sessions, Reports: c.Reports, ReportsReceived: c.ReportsReceived, Samples: c.Samples,
		Metadata: c.Metadata, MetadataDurable: c.MetadataDurable, MetadataRefused: c.MetadataRefused, Refused: c.Refused,
	}
	return status
}

// Flush waits until no ack is pending for what was handed over: reports are received,
// metadata and states are in the database or refused. Meanwhile all is sent at once,
// and the service is asked to send acks at once. That does not hurry its writes of
// metadata, which come every few seconds. It returns an error if ctx ends first.
func (a *Agent) Flush(ctx context.Context) error {
	a.mu.Lock()
	a.outbox.Pace.AddWaiter()
	a.wakeLocked()
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.outbox.Pace.RemoveWaiter()
	}()
	for {
		a.mu.Lock()
		if a.settledLocked() {
			a.mu.Unlock()
			return nil
		}
		if a.idle == nil {
			a.idle = make(chan struct{})
		}
		idle := a.idle
		a.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			return a.pendingError(ctx.Err())
		}
	}
}

// Close ends the agent's presence for good. It sends what is left and a goodbye,
// waits for all acks, and ends Run. A Run that waits for the service tries again at once.
// If ctx ends first, it ends Run. It returns an error that names what was not acked. Run
// does not start again after it.
func (a *Agent) Close(ctx context.Context) error {
	a.mu.Lock()
	if !a.closing {
		a.closing = true
		a.outbox.Pace.AddWaiter()
	}
	stopped, cancel, hurry := a.stopped, a.cancel, a.hurry
	a.mu.Unlock()
	if stopped == nil {
		return a.pendingError(errors.New("run agent: is not running"))
	}
	a.signal()
	hurry()
	select {
	case <-stopped:
	case <-ctx.Done():
		cancel()
		<-stopped
	}
	return a.pendingError(cmp.Or(ctx.Err(), context.Canceled))
}

// pendingError returns nil if no ack is waited for, otherwise an error that names what
// waits and wraps err.
func (a *Agent) pendingError(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.settledLocked() {
		return nil
	}
	return fmt.Errorf("wait for acks of %s: %w", a.outbox.DescribePending(), err)
}

func (a *Agent) setState(s State) {
	a.mu.Lock()
	a.status.State = s
	a.mu.Unlock()
	if a.opts.OnState != nil {
		a.opts.OnState(s)
	}
}

// wakeLocked wakes Run if something is due before it checks again.
func (a *Agent) wakeLocked() {
	if at, due := a.outbox.DueAt(); a.sleeps && due && at.Before(a.checksAt) {
		a.signal()
	}
}

// signal wakes Run.
func (a *Agent) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
