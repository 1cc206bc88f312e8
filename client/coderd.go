package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client/internal/outage"
	"github.com/coder/agentstatsd/client/internal/parts"
	"github.com/coder/agentstatsd/client/internal/relaystream"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxReadAgents is read in one request at first. With keys as most agents have they
	// have some 100 KB. At most they have more than a response may.
	maxReadAgents = 100
	// maxReadBytes bounds one response.
	maxReadBytes = 64 << 20
)

// CoderdOptions are the knobs of a Coderd. The zero value works.
type CoderdOptions struct {
	// Backoff bounds the waits before a watch connects again.
	Backoff Backoff
	// Logger of watches that break, of registrations that are refused, and of functions
	// that do not return in time; nil: they are not logged. An outage of all watches is a
	// line when it begins, one a minute and one when it ends.
	Logger *slog.Logger
	// CallbackTimeout is how long a function of a watch may take before it is logged;
	// 0: 10 s. The watch waits for it. When the context of the watch ends, it waits
	// 2 s at most.
	CallbackTimeout time.Duration
}

// Coderd is coderd's side of the service. All methods may be called at any time by
// any goroutine. Those with a context block until the service has answered, or ctx ends.
// They are not tried again, but for watches: without the service they return UNAVAILABLE.
// Errors wrap gRPC's, so that status.Code returns their kind.
type Coderd struct {
	service agentstatsv1.CoderdServiceClient
	// relayed are the streams of relayed agents.
	relayed *relaystream.Streams
	// registrar registers relayed agents that the service does not know.
	registrar *registrar
	backoff   Backoff
	log       *slog.Logger
	// watches are the failures of all watches.
	watches *outage.Log
	// callbackTimeout is CoderdOptions.CallbackTimeout.
	callbackTimeout time.Duration
}

// NewCoderd makes a Coderd that talks over conn, which carries coderd's
// credential and which it does not close.
func NewCoderd(conn grpc.ClientConnInterface, opts CoderdOptions) (*Coderd, error) {
	if err := opts.Backoff.validate(); err != nil {
		return nil, fmt.Errorf("coderd options: %w", err)
	}
	if opts.CallbackTimeout < 0 {
		return nil, fmt.Errorf("coderd options: %w", errNegativeTimeout)
	}
	c := &Coderd{
		service: agentstatsv1.NewCoderdServiceClient(conn),
		relayed: relaystream.New(agentstatsv1.NewAgentServiceClient(conn)),
		backoff: opts.Backoff.withDefaults(),
		log:     opts.Logger,

		callbackTimeout: cmp.Or(opts.CallbackTimeout, defaultCallbackTimeout),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.watches = outage.New(c.log, outage.Streams)
	c.registrar = newRegistrar(c)
	return c, nil
}

// Registered is what registering did.
type Registered struct {
	// Superseded agents were removed, as the request has newer ones with the same
	// identity.
	Superseded []uuid.UUID
	// Stale agents of the request were ignored: newer ones are known.
	Stale []uuid.UUID
	// Refused registrations have no effect. Each says of which agent it is, and which
	// field is why.
	Refused []*agentstatsv1.RegistrationRefusal
}

// Register makes agents known, and workspaces. Of a workspace with agents it changes what
// they are labelled by, too. It returns when that is durable. A registration that is not
// valid is refused alone, and logged: that is no error. A large set is sent in parts;
// after an error the parts before it have taken effect.
func (c *Coderd) Register(ctx context.Context, agents []*agentstatsv1.AgentRegistration, workspaces []*agentstatsv1.Workspace) (Registered, error) {
	var done Registered
	set := parts.SetOf(agents, workspaces)
	for agents, workspaces := range set.Parts() {
		resp, err := c.service.RegisterAgents(ctx, &agentstatsv1.RegisterAgentsRequest{Agents: agents, Workspaces: workspaces})
		if err != nil {
			return done, fmt.Errorf("register agents: %w", err)
		}
		done.Superseded = appendIDs(done.Superseded, resp.GetSupersededIds())
		done.Stale = appendIDs(done.Stale, resp.GetStaleIds())
		done.Refused = append(done.Refused, set.Explain(resp.GetRefused())...)
	}
	c.logRefused(done.Refused, int64(len(done.Refused)))
	return done, nil
}

// logRefused logs that registrations were refused, and the first one.
func (c *Coderd) logRefused(refused []*agentstatsv1.RegistrationRefusal, count int64) {
	if len(refused) == 0 {
		return
	}
	first := refused[0]
	agentID, _ := uuid.FromBytes(first.GetAgentId())
	workspaceID, _ := uuid.FromBytes(first.GetWorkspaceId())
	c.log.Warn("registrations are refused", "refused", count, "first_agent", agentID, "first_workspace", workspaceID,
		"field", first.GetField(), "problem", first.GetMessage())
}

// Deregister removes agents, and workspaces with all their agents. Their series vanish at
// once, and their stored metadata. Ids that are not known are no error. It returns when
// that is durable, and how many agents were known. A large set is sent in parts.
func (c *Coderd) Deregister(ctx context.Context, agentIDs, workspaceIDs []uuid.UUID) (int64, error) {
	var deregistered int64
	deregister := func(req *agentstatsv1.DeregisterAgentsRequest) error {
		resp, err := c.service.DeregisterAgents(ctx, req)
		if err != nil {
			return fmt.Errorf("deregister agents: %w", err)
		}
		deregistered += resp.GetDeregistered()
		return nil
	}
	for ids := range slices.Chunk(agentIDs, parts.MaxMessages) {
		if err := deregister(&agentstatsv1.DeregisterAgentsRequest{AgentIds: idBytes(ids)}); err != nil {
			return deregistered, err
		}
	}
	for ids := range slices.Chunk(workspaceIDs, parts.MaxMessages) {
		if err := deregister(&agentstatsv1.DeregisterAgentsRequest{WorkspaceIds: idBytes(ids)}); err != nil {
			return deregistered, err
		}
	}
	return deregistered, nil
}

// SyncOptions are the knobs of a sync.
type SyncOptions struct {
	// Force applies the set even if more than half of all agents go.
	Force bool
	// KeepWorkspaces stay, with all their agents, also if the set does not have them.
	KeepWorkspaces []uuid.UUID
	// ReadAt is when the reading of the set began, by the clock of this process. What is
	// registered later stays. Zero: when Sync was called.
	ReadAt time.Time
}

// Sync replaces the whole set of registrations by this one, at once and only if
// all of it was sent. It is FAILED_PRECONDITION if more than half of all agents
// would go, unless it is forced. Registrations that are not valid are refused alone, as
// by Register. What is known of their agents stays.
//
// Agents that are registered while it runs stay, and with ReadAt those that were registered
// since then, in whichever instance of coderd. Without it, those that were registered after
// the set was read and before the call are removed.
func (c *Coderd) Sync(ctx context.Context, agents []*agentstatsv1.AgentRegistration, workspaces []*agentstatsv1.Workspace, opts SyncOptions) (*agentstatsv1.SyncAgentsResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.service.SyncAgents(ctx)
	if err != nil {
		return nil, fmt.Errorf("sync agents: %w", err)
	}
	send := func(req *agentstatsv1.SyncAgentsRequest) error {
		// After EOF the reason comes from CloseAndRecv.
		if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("sync agents: %w", err)
		}
		return nil
	}
	set := parts.SetOf(agents, workspaces)
	for agents, workspaces := range set.Parts() {
		if err := send(&agentstatsv1.SyncAgentsRequest{Agents: agents, Workspaces: workspaces}); err != nil {
			return nil, err
		}
	}
	for ids := range slices.Chunk(opts.KeepWorkspaces, parts.MaxMessages) {
		if err := send(&agentstatsv1.SyncAgentsRequest{KeptWorkspaceIds: idBytes(ids)}); err != nil {
			return nil, err
		}
	}
	complete := &agentstatsv1.SyncAgentsRequest{Complete: true, Force: opts.Force}
	if !opts.ReadAt.IsZero() {
		complete.ReadAge = durationpb.New(max(0, time.Since(opts.ReadAt)))
	}
	if err := send(complete); err != nil {
		return nil, err
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return nil, fmt.Errorf("sync agents: %w", err)
	}
	c.logRefused(set.Explain(resp.GetRefused()), resp.GetRefusedCount())
	return resp, nil
}

// Relay makes an Agent for an agent that cannot dial the service itself, and has no other
// relay meanwhile. For agents that connect to coderd again and again, and to several
// ones, use Relays. Its sessions run over coderd's connection, with coderd's credential.
// Relayed sessions share streams, up to 2,000 on each. There is one session at a time
// for each agent. A second one supersedes the first. A slow agent does not delay others.
// The options must have no credentials. With a Registration the agent need not be
// registered before.
func (c *Coderd) Relay(agentID uuid.UUID, opts AgentOptions) (*Agent, error) {
	if opts.Credentials != nil {
		return nil, errors.New("relay an agent: want no credentials, the connection has those of coderd")
	}
	registration := &relayedRegistration{registrar: c.registrar, agentID: agentID}
	if err := registration.set(opts.Registration); err != nil {
		return nil, err
	}
	conn := c.relayed.Conn(agentID)
	a, err := newAgent(func() (grpc.ClientConnInterface, func(), error) { return conn, func() {}, nil }, opts)
	if err != nil {
		return nil, err
	}
	a.registration = registration
	return a, nil
}

// Metadata reads the stored metadata of agents, each named once. Those without any, and
// unknown ones, are left out. It reads up to 100 agents at once, fewer if their metadata is
// larger than the service's --max-message-bytes.
func (c *Coderd) Metadata(ctx context.Context, agentIDs ...uuid.UUID) ([]*agentstatsv1.AgentMetadata, error) {
	var agents []*agentstatsv1.AgentMetadata
	for atOnce := maxReadAgents; len(agentIDs) > 0; {
		ids := agentIDs[:min(atOnce, len(agentIDs))]
		resp, err := c.service.GetMetadata(ctx, &agentstatsv1.GetMetadataRequest{AgentIds: idBytes(ids)}, grpc.MaxCallRecvMsgSize(maxReadBytes))
		if len(ids) > 1 && isTooLarge(err) {
			atOnce = len(ids) / 2
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("get metadata: %w", err)
		}
		agents, agentIDs = append(agents, resp.GetAgents()...), agentIDs[len(ids):]
	}
	return agents, nil
}

// isTooLarge reports whether a response would be too large. A service that is busy says
// when to try again.
func isTooLarge(err error) bool {
	s := status.Convert(err)
	return s.Code() == codes.ResourceExhausted && len(s.Details()) == 0
}

// Agents yields the registered agents in the order of their ids, read page by
// page. One that has a session with any replica is connected, by a relay or by its own
// stream, as relayed says. After an error, which comes with a nil agent, it ends.
func (c *Coderd) Agents(ctx context.Context) iter.Seq2[*agentstatsv1.Agent, error] {
	return func(yield func(*agentstatsv1.Agent, error) bool) {
		req := &agentstatsv1.ListAgentsRequest{PageSize: parts.MaxMessages}
		for {
			resp, err := c.service.ListAgents(ctx, req, grpc.MaxCallRecvMsgSize(maxReadBytes))
			if err != nil {
				yield(nil, fmt.Errorf("list agents: %w", err))
				return
			}
			for _, agent := range resp.GetAgents() {
				if !yield(agent, nil) {
					return
				}
			}
			if resp.GetNextPageToken() == "" {
				return
			}
			req.PageToken = resp.GetNextPageToken()
		}
	}
}

func idBytes(ids []uuid.UUID) [][]byte {
	out := make([][]byte, len(ids))
	for i := range ids {
		out[i] = ids[i][:]
	}
	return out
}

// appendIDs appends ids of the service; those that are none are left out.
func appendIDs(ids []uuid.UUID, raw [][]byte) []uuid.UUID {
	for _, b := range raw {
		if id, err := uuid.FromBytes(b); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}
