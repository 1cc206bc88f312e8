package simulate

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// agent is one simulated agent. Its client's goroutines call collect, and the
// checks read its presence; everything else is called by the one goroutine that
// drives the fleet.
type agent struct {
	planned   plannedAgent
	client    *client.Agent
	generator *generator
	// stopped is true when the agent produces no more.
	stopped atomic.Bool
	// changes of its metadata, for the clients' acks.
	changes changes
	// presence and histories are for the checks. There is a history for each family.
	presence  presence
	histories []history

	random *rand.Rand
	node   uint64
	keys   int
	// changing are the keys that have a new value at once.
	changing int
	// repeated has the newest value of each key if the others are reported, too; nil: they
	// are not.
	repeated []client.Metadata
	values   int64
	started  time.Time
	state    agentstatsv1.Lifecycle_State
	// flaps is true if the agent's first app comes and goes.
	flaps   bool
	steady  bool
	healthy bool
}

// observer counts what the clients of all agents see.
type observer struct {
	journal *journal
	// acks of reports, and of metadata values that are durable.
	acks, values *latencies
	// unknown is signalled when the service does not know an agent.
	unknown    chan struct{}
	unexpected atomic.Int64
	refusals   counts
	log        *slog.Logger
}

// newAgent makes the agent that a workspace has in the given build.
func newAgent(planned plannedAgent, build int, conns *connections, all []series, o Options, obs *observer) (*agent, error) {
	life := uint64(build)<<32 | uint64(planned.number)
	a := &agent{
		planned:   planned,
		generator: newGenerator(all, o.Seed, life),
		random:    rand.New(rand.NewPCG(o.Seed+1, life)),
		node:      life + 1,
		keys:      o.MetadataKeys,
		changing:  cmp.Or(o.MetadataChanging, o.MetadataKeys),
	}
	if o.MetadataRepeated {
		a.repeated = make([]client.Metadata, 0, o.MetadataKeys)
	}
	a.flaps, a.steady = a.random.IntN(12) == 0, o.Steady
	opts := client.AgentOptions{
		Collect:        a.collect,
		ReportInterval: o.ReportInterval,
		Credentials:    client.Token(planned.token, o.Dial.Plaintext),
		Backoff:        o.Backoff,
		OnAck:          func(ack client.Ack) { obs.acks.add(ack.RoundTrip) },
		OnState:        obs.onState,
		OnRefusal:      obs.onRefusal,
	}
	if len(o.Metrics) > 0 {
		opts.OnAck = func(ack client.Ack) {
			obs.acks.add(ack.RoundTrip)
			a.presence.onAck(a.client.Status().Counts.ReportsReceived, time.Now())
		}
		opts.OnState = func(s client.State) {
			a.presence.onState(s.Connection, a.client.Status().Counts.ReportsReceived, time.Now())
			obs.onState(s)
		}
	}
	opts.OnDurable = func(entries []client.Metadata) {
		a.changes.durable(entries, time.Now(), obs.values)
		if obs.journal != nil {
			obs.journal.write(planned.id, entries)
		}
	}
	var err error
	a.client, err = conns.newAgent(planned, opts)
	return a, err
}

func (obs *observer) onState(s client.State) {
	if s.Connection == client.Waiting && status.Code(s.Err) == codes.Unauthenticated {
		select {
		case obs.unknown <- struct{}{}:
		default:
		}
	}
}

func (obs *observer) onRefusal(r *agentstatsv1.Refusal) {
	// More series than a limit allows may be what is to be tried.
	if r.GetCode() != agentstatsv1.RefusalCode_REFUSAL_CODE_LIMIT {
		obs.unexpected.Add(r.GetCount())
	}
	if first := obs.refusals.add(r.GetReason(), r.GetCount()); first {
		obs.log.Warn("refused for a new reason", "reason", r.GetReason(), "message", r.GetMessage(), "names", r.GetNames())
	}
}

func (a *agent) collect(context.Context) *agentstatsv1.Stats {
	if a.stopped.Load() {
		return nil
	}
	return a.generator.next()
}

// start makes the agent's first statements.
func (a *agent) start(now time.Time) {
	a.started = now
	a.setLifecycle(agentstatsv1.Lifecycle_STATE_CREATED, now)
	a.setNetwork()
}

// live moves the agent's life on and returns the time until it is to be called
// again; 0: it is not.
func (a *agent) live(now time.Time) time.Duration {
	if a.stopped.Load() {
		return 0
	}
	switch a.state {
	case agentstatsv1.Lifecycle_STATE_CREATED:
		a.setLifecycle(agentstatsv1.Lifecycle_STATE_STARTING, now)
		return time.Duration((1 + 7*a.random.Float64()) * float64(time.Second))
	case agentstatsv1.Lifecycle_STATE_STARTING:
		state := agentstatsv1.Lifecycle_STATE_READY
		switch a.random.IntN(20) {
		case 0:
			state = agentstatsv1.Lifecycle_STATE_START_TIMEOUT
		case 1:
			state = agentstatsv1.Lifecycle_STATE_START_ERROR
		}
		a.setLifecycle(state, now)
		a.setApps(true)
	case agentstatsv1.Lifecycle_STATE_START_TIMEOUT:
		// Its scripts end after all.
		a.setLifecycle(agentstatsv1.Lifecycle_STATE_READY, now)
	default:
		if a.steady {
			return 0
		}
		// Now and then an app fails or recovers, or the network changes.
		switch n := a.random.IntN(10); {
		case a.flaps:
			a.setApps(!a.healthy)
			return time.Duration((5 + 5*a.random.Float64()) * float64(time.Second))
		case n == 0:
			a.setApps(false)
		case n < 3:
			a.setApps(true)
		case n == 3:
			a.setNetwork()
		}
	}
	return time.Duration((20 + 20*a.random.Float64()) * float64(time.Second))
}

// shutDown makes the agent produce no more, and returns the state in which it is
// to end.
func (a *agent) shutDown(now time.Time) agentstatsv1.Lifecycle_State {
	a.stopped.Store(true)
	a.setLifecycle(agentstatsv1.Lifecycle_STATE_SHUTTING_DOWN, now)
	switch a.random.IntN(10) {
	case 0:
		return agentstatsv1.Lifecycle_STATE_SHUTDOWN_ERROR
	case 1:
		return agentstatsv1.Lifecycle_STATE_SHUTDOWN_TIMEOUT
	}
	return agentstatsv1.Lifecycle_STATE_OFF
}

func (a *agent) setLifecycle(state agentstatsv1.Lifecycle_State, now time.Time) {
	a.state = state
	a.client.SetLifecycle(state, now)
}

// setApps says how the first app is; the others are healthy.
func (a *agent) setApps(healthy bool) {
	a.healthy = healthy
	for i, app := range a.planned.apps {
		health := agentstatsv1.AppHealth_APP_HEALTH_HEALTHY
		if i == 0 && !healthy {
			health = agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY
		}
		// There are fewer apps than the client's limit.
		_ = a.client.SetAppHealth(app, health)
	}
}

func (a *agent) setNetwork() {
	// There are fewer regions than the client's limit.
	_ = a.client.SetNetwork(network(a.random, a.node))
}

// updateMetadata hands over a new value of each key that changes: of others the next time, and
// until then what they have, if that is repeated.
func (a *agent) updateMetadata(now time.Time) {
	a.values++
	a.changes.add(a.values, now)
	entries := make([]client.Metadata, a.changing)
	for i := range entries {
		key := (int(a.values-1)*a.changing + i) % a.keys
		entries[i].Key = metadataKey(key)
		entries[i].Value, entries[i].Error = metadataValue(a.random, key, a.values, now.Sub(a.started))
	}
	if a.repeated != nil {
		for _, e := range entries {
			if i := slices.IndexFunc(a.repeated, func(r client.Metadata) bool { return r.Key == e.Key }); i >= 0 {
				a.repeated[i] = e
			} else {
				a.repeated = append(a.repeated, e)
			}
		}
		entries = a.repeated
	}
	// The keys are well formed and fewer than the client's limit.
	_ = a.client.UpdateMetadata(entries...)
}

func durationOfMS(ms float64) *durationpb.Duration {
	return durationpb.New(time.Duration(ms * float64(time.Millisecond)))
}
