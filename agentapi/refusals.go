package agentapi

import (
	"context"
	"log/slog"
	"unique"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Refusals knows what agents are refused. refusals.Refusals is one. It touches memory
// only, and retains nothing of what it is handed.
type Refusals interface {
	// Refused notes what an agent was refused; version is its own, empty: not known.
	Refused(id agent.ID, version string, refused []agent.Refusal)
	// Expired notes what of an agent has expired, which is routine.
	Expired(id agent.ID, expired agent.Refusal)
}

// Reasons of refusals that end a stream, or keep one from being opened.
const (
	reasonBrokenMessage = "broken_message"
	reasonLimit         = "limit"
	reasonTimeout       = "timeout"
)

// maxVersionBytes bounds the version of an agent.
const maxVersionBytes = 64

// versionOf returns the version that an agent says of itself. Equal ones share memory.
func versionOf(hello *agentstatsv1.Hello) string {
	return unique.Make(agent.ShortenText(hello.GetVersion(), maxVersionBytes)).Value()
}

// noteRefused notes what was refused of a request, 0: of any.
func (c *connection) noteRefused(sequence int64, refused []agent.Refusal) {
	c.tapRefused(sequence, refused)
	if len(refused) > 0 && c.service.Refusals != nil {
		c.service.Refusals.Refused(c.who.Agent, c.version, refused)
	}
}

// noteStored notes what the database refused, which it does after the request was handled.
func (c *connection) noteStored(sent []fleet.Refusal) {
	var refused []agent.Refusal
	for i := range sent {
		if sent[i].Kind == agent.RefusedStore && sent[i].First == 0 {
			refused = append(refused, sent[i].Refusal)
		}
	}
	c.noteRefused(0, refused)
}

// noteEnd notes that a stream of an agent was refused, or ended, for what the agent did.
func (s *Service) noteEnd(id agent.ID, err error) { s.noteEndOf(id, "", err) }

// noteEndOf is noteEnd of an agent whose version may be known.
func (s *Service) noteEndOf(id agent.ID, version string, err error) {
	if err == nil || s.Refusals == nil || id == (agent.ID{}) {
		return
	}
	refusal := agent.Refusal{Kind: agent.RefusedLimit, Message: status.Convert(err).Message(), Count: 1}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.FailedPrecondition:
		refusal.Kind, refusal.Reason = agent.RefusedInvalid, reasonBrokenMessage
	case codes.ResourceExhausted:
		refusal.Reason = reasonLimit
	case codes.DeadlineExceeded:
		refusal.Reason = reasonTimeout
		s.Refusals.Expired(id, refusal)
		return
	default:
		return
	}
	s.Refusals.Refused(id, version, []agent.Refusal{refusal})
}

// logSession logs that a session has opened, or how it ended.
func (c *connection) logSession(text string, session *fleet.Session, attrs ...slog.Attr) {
	log, ctx := c.service.log, context.Background()
	if !log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs = append([]slog.Attr{
		slog.String("agent", c.who.Agent.String()), slog.Int64("epoch", session.Info().Epoch), slog.Bool("relayed", c.who.Token == ""),
	}, attrs...)
	log.LogAttrs(ctx, slog.LevelDebug, text, attrs...)
}
