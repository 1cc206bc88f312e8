package operator

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coder/serpent"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// agentNames says what an agent is named by.
const agentNames = "An agent is named by OWNER/WORKSPACE.AGENT, by OWNER/WORKSPACE if the workspace has one agent, or by its id."

// oneArgument requires one argument that is no flag. It is not repeated: what stands there
// by mistake can be a password.
func oneArgument(what string) serpent.MiddlewareFunc {
	return func(next serpent.HandlerFunc) serpent.HandlerFunc {
		return func(inv *serpent.Invocation) error {
			if n := len(inv.Args); n != 1 {
				return fmt.Errorf("%s takes %s, got %d arguments: see --help", inv.Command.Name(), what, n)
			}
			return next(inv)
		}
	}
}

func agentCommand() *serpent.Command {
	c := &connection{}
	return &serpent.Command{
		Use:   "agent NAME",
		Short: "Show all that is known of one agent.",
		Long: agentNames + " Its session, series and newest metadata are those of the replica that it is connected to; sessions before and refusals " +
			"those of all.\n\n  agentstatsd agent ada/dev" + exitCodes,
		Options:    c.options(),
		Middleware: oneArgument("one agent"),
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			agent, err := a.describe(inv.Context(), inv.Args[0])
			if err != nil {
				return err
			}
			if c.json {
				err = a.printMessage(inv.Stdout, agent)
			} else {
				err = print(inv.Stdout, agentText(agent, time.Now()))
			}
			if err != nil {
				return err
			}
			return a.partial(agent.GetSession() == nil)
		},
	}
}

// describe returns what the replicas know of the agent that name means.
func (a *asked) describe(ctx context.Context, name string) (*agentstatsv1.DescribeAgentResponse, error) {
	answers, err := askAll(ctx, a, func(ctx context.Context, r *replica) (*agentstatsv1.DescribeAgentResponse, error) {
		return r.admin.DescribeAgent(ctx, &agentstatsv1.DescribeAgentRequest{Agent: name})
	})
	if err != nil {
		return nil, err
	}
	return mergeDescriptions(answers), nil
}

// agentText returns what is known of an agent, for people.
func agentText(a *agentstatsv1.DescribeAgentResponse, now time.Time) string {
	s := a.GetSummary()
	parts := []string{fieldsText([][2]string{
		{"agent", agentName(s.GetOwner(), s.GetWorkspace(), s.GetName())},
		{"id", s.GetId()},
		{"status", strings.Trim(s.GetStatus()+", "+s.GetLifecycle(), ", ")},
		{"template", strings.TrimSpace(s.GetTemplate() + " " + s.GetTemplateVersion())},
		{"organization", a.GetOrganization()},
		{"workspace id", s.GetWorkspaceId()},
		{"build", a.GetBuildId()},
		{"parent", a.GetParentId()},
		{"made", ago(now, a.GetCreatedAt())},
		{"last seen", cmp.Or(ago(now, s.GetLastSeenAt()), "never by the replicas that were asked")},
		{"replica", strings.TrimSpace(s.GetReplica() + " " + s.GetReplicaUrl())},
		{"session", sessionText(a.GetSession(), now)},
		{"series", optionalNumber(s.Series)},
		{"refused", number(s.GetRefused())},
		{"declared keys", strings.Join(a.GetDeclaredMetadataKeys(), ", ")},
	})}
	parts = append(parts, metadataText(a, now), seriesText(a.GetSeries()), refusedText(a.GetRefused(), now), appsText(a.GetApps()),
		sessionsText(a.GetLastSessions(), now))
	return joinParts(parts)
}

// joinParts joins the tables that are there, with a line between them.
func joinParts(parts []string) string {
	var there []string
	for _, part := range parts {
		if part != "" {
			there = append(there, part)
		}
	}
	return strings.Join(there, "\n")
}

// fieldsText returns names and values below one another, without those that are empty.
func fieldsText(fields [][2]string) string {
	t := newTable()
	for _, f := range fields {
		if f[1] != "" {
			t.row(f[0], f[1])
		}
	}
	return t.String()
}

func sessionText(s *agentstatsv1.AgentSession, now time.Time) string {
	if s == nil {
		return ""
	}
	text := fmt.Sprintf("opened %s, instance %s, epoch %s, received up to %s, durable up to %s",
		ago(now, s.GetOpenedAt()), s.GetInstance(), s.GetEpoch(), number(s.GetReceivedSequence()), number(s.GetDurableSequence()))
	if s.GetRelayed() {
		text += ", relayed"
	}
	if v := s.GetVersion(); v != "" {
		text += ", version " + v
	}
	return text
}

// metadataText returns the table of an agent's metadata, and why values are missing;
// empty without both.
func metadataText(a *agentstatsv1.DescribeAgentResponse, now time.Time) string {
	problem := ""
	if p := a.GetMetadataProblem(); p != "" {
		problem = "stored metadata is not known: " + shown(p) + "\n"
	}
	if len(a.GetMetadata()) == 0 {
		return problem
	}
	t := newTable("METADATA", "VALUE", "ERROR", "COLLECTED", "PENDING")
	for _, e := range a.GetMetadata() {
		pending := ""
		if e.GetPending() {
			pending = "a newer one"
		}
		t.row(e.GetKey(), e.GetValue(), e.GetError(), ago(now, e.GetCollectedAt()), pending)
	}
	return t.String() + problem
}

func seriesText(families []*agentstatsv1.NamedCount) string {
	if len(families) == 0 {
		return ""
	}
	t := newTable("FAMILY", "SERIES")
	for _, f := range families {
		t.row(f.GetName(), number(f.GetCount()))
	}
	return t.String()
}

func refusedText(refused []*agentstatsv1.Refused, now time.Time) string {
	if len(refused) == 0 {
		return ""
	}
	t := newTable("REFUSED", "ITEMS", "LAST", "PROBLEM", "NAMES")
	for _, r := range refused {
		t.row(r.GetReason(), number(r.GetCount()), ago(now, r.GetAt()), r.GetProblem(), strings.Join(r.GetNames(), " "))
	}
	return t.String()
}

func appsText(apps []*agentstatsv1.AgentApp) string {
	if len(apps) == 0 {
		return ""
	}
	t := newTable("APP", "NAME", "HEALTH")
	for _, a := range apps {
		t.row(a.GetSlug(), a.GetDisplayName(), a.GetHealth())
	}
	return t.String()
}

func sessionsText(sessions []*agentstatsv1.AgentSession, now time.Time) string {
	if len(sessions) == 0 {
		return ""
	}
	t := newTable("SESSION BEFORE", "ENDED", "BY", "INSTANCE", "VERSION", "RECEIVED", "DURABLE")
	for _, s := range sessions {
		t.row("opened "+ago(now, s.GetOpenedAt()), ago(now, s.GetEndedAt()), s.GetEnd(), s.GetInstance(), s.GetVersion(),
			number(s.GetReceivedSequence()), number(s.GetDurableSequence()))
	}
	return t.String()
}
