package client

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client/internal/relaystream"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// registerTimeout bounds a registration of relayed agents.
const registerTimeout = 30 * time.Second

// registrar registers relayed agents that the service does not know, many at once: those
// that come within relaystream.GatherTime, or while a call is under way, go with one call.
type registrar struct {
	register func(context.Context, []*agentstatsv1.AgentRegistration, []*agentstatsv1.Workspace) (Registered, error)
	log      *slog.Logger
	// calling has an element while a call is under way.
	calling chan struct{}

	mu   sync.Mutex
	next *registration // guarded by mu; nil: nobody waits for a further call
}

// registration is one call for several agents.
type registration struct {
	// agents by id: one may come again, by its next relay. Guarded by the registrar's mu
	// until the call.
	agents map[string]keptRegistration
	// done is closed after the call. Then the fields below may be read.
	done       chan struct{}
	registered Registered
	err        error
}

// keptRegistration is a registration that a relay has kept since it got it.
type keptRegistration struct {
	registration *agentstatsv1.AgentRegistration
	gotAt        time.Time
}

func newRegistrar(c *Coderd) *registrar {
	return &registrar{register: c.Register, log: c.log, calling: make(chan struct{}, 1)}
}

// add registers an agent with the next call. It waits for that, and returns it. An error
// is that of ctx.
func (r *registrar) add(ctx context.Context, kept keptRegistration) (*registration, error) {
	r.mu.Lock()
	call := r.next
	if call == nil {
		call = &registration{agents: make(map[string]keptRegistration), done: make(chan struct{})}
		r.next = call
		go r.call(call)
	}
	call.agents[string(kept.registration.GetId())] = kept
	r.mu.Unlock()
	select {
	case <-call.done:
		return call, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// call waits for further agents, and for the call before.
func (r *registrar) call(call *registration) {
	defer close(call.done)
	time.Sleep(relaystream.GatherTime)
	r.calling <- struct{}{}
	defer func() { <-r.calling }()
	r.mu.Lock()
	r.next = nil
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), registerTimeout)
	defer cancel()
	// With their ages: what coderd removed since does not come back.
	agents := make([]*agentstatsv1.AgentRegistration, 0, len(call.agents))
	for _, kept := range call.agents {
		reg := proto.CloneOf(kept.registration)
		reg.Age = durationpb.New(max(0, time.Since(kept.gotAt)))
		agents = append(agents, reg)
	}
	call.registered, call.err = r.register(ctx, agents, nil)
	if call.err != nil {
		r.log.Warn("relayed agents are not registered", "error", call.err, "agents", len(call.agents))
		return
	}
	r.log.Info("relayed agents are registered", "agents", len(call.agents), "refused", len(call.registered.Refused), "stale", len(call.registered.Stale))
}

// Why a relayed agent that the service does not know stays so.
var (
	errStale   = errors.New("the service does not know the agent: it was removed since, or one of a newer build is registered in its place")
	errRemoved = errors.New("the agent was deregistered: it is not registered again")
)

// relayedRegistration is the registration of one relayed agent.
type relayedRegistration struct {
	registrar *registrar
	agentID   uuid.UUID
	// onUnknown is called when the service does not know the agent, and nothing is sent
	// that makes it known; nil: nothing is.
	onUnknown func(uuid.UUID)

	mu    sync.Mutex
	kept  keptRegistration // guarded by mu; nil in it: none
	final error            // likewise: why it is not sent again; nil: it may be

	// Of the Agent's Run only:

	// sessions is the number of sessions that were opened up to the last one.
	sessions int64
	// isNew is true while the agent was registered after the last session.
	isNew bool
}

// set replaces the registration by one that is current, unless reg is nil. Its id may be
// absent.
func (r *relayedRegistration) set(reg *agentstatsv1.AgentRegistration) error {
	switch {
	case reg == nil:
		return nil
	case len(reg.GetId()) == 0:
		reg = proto.CloneOf(reg)
		reg.Id = r.agentID[:]
	case !bytes.Equal(reg.GetId(), r.agentID[:]):
		return errors.New("relay an agent: registration: is of another agent")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !errors.Is(r.final, errRemoved) && (errors.Is(r.final, errStale) || !proto.Equal(reg, r.kept.registration)) {
		r.final = nil // that was of the one before
	}
	r.kept = keptRegistration{reg, time.Now()}
	return nil
}

// get returns the registration, and why it is not sent; nil: it is, unless there is none.
func (r *relayedRegistration) get() (keptRegistration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept, r.final
}

func (r *relayedRegistration) setFinal(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.final = err
}

// noteEnd notes that a session has ended, and whether that is since the service does not
// know the agent.
func (a *Agent) noteEnd(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.isOpen = false
	var end *relaystream.EndError
	if code := status.Code(err); errors.As(err, &end) && (code == codes.NotFound || code == codes.Unauthenticated) {
		a.outbox.Forget()
	}
}

// afterSession registers the agent if its session ended as the service does not know it.
// registered is true if it was registered. Otherwise it returns the error of the session
// or, if it is known why the agent is not registered, that. sessions is the number of
// those that were opened.
func (r *relayedRegistration) afterSession(ctx context.Context, err error, sessions int64) (registered bool, _ error) {
	if r.sessions != sessions {
		r.sessions = sessions
		r.setFinal(nil) // it was known
	}
	wasNew := r.isNew
	r.isNew = false
	var end *relaystream.EndError // a stream may end so, too, if coderd's token is refused
	if !errors.As(err, &end) {
		return false, err
	}
	if status.Code(err) == codes.Unauthenticated {
		// Coderd, or a newer build, removed the agent: whoever did that knows better.
		r.setFinal(errRemoved)
	}
	kept, final := r.get()
	switch {
	case status.Code(err) != codes.NotFound:
		return false, err
	case kept.registration == nil:
		r.notifyUnknown()
		return false, err
	case final != nil:
		r.notifyUnknown()
		return false, final
	case wasNew:
		return false, err // another attempt waits first
	}
	call, failed := r.registrar.add(ctx, kept)
	switch {
	case failed != nil:
		return false, err
	case call.err != nil:
		return false, call.err
	}
	if final = call.registered.problem(r.agentID); final != nil {
		r.setFinal(final)
		return false, final
	}
	r.isNew = true
	return true, nil
}

func (r *relayedRegistration) notifyUnknown() {
	if r.onUnknown != nil {
		r.onUnknown(r.agentID)
	}
}

// problem returns why an agent was not registered; nil: it was.
func (r *Registered) problem(agentID uuid.UUID) error {
	for _, refused := range r.Refused {
		if bytes.Equal(refused.GetAgentId(), agentID[:]) {
			return &registrationError{refused}
		}
	}
	for _, id := range r.Stale {
		if id == agentID {
			return errStale
		}
	}
	return nil
}

// registrationError is a registration that the service refused.
type registrationError struct {
	refusal *agentstatsv1.RegistrationRefusal
}

func (e *registrationError) Error() string {
	return "the registration is refused: " + e.refusal.GetField() + ": " + e.refusal.GetMessage()
}
