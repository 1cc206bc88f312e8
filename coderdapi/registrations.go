package coderdapi

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Limits of registrations, as the contract states them.
const (
	maxRegisteredAtOnce = 10_000
	maxAgentName        = 64
	maxName             = 256
	maxSlug             = 128
)

// maxAhead is how far ahead of this service's clock a registration's times may be.
// Clocks and time zones that are wrong differ by less than a day. A build with a
// time years ahead would be the newest of its labels for that long.
const maxAhead = 24 * time.Hour

const (
	// ageMargin is more than a message takes from its sender to its handler, mostly.
	ageMargin = time.Second
	// maxAge bounds ages, so that times do not overflow. An agent is seldom connected for
	// longer than its workspace runs.
	maxAge = 10 * 365 * 24 * time.Hour
)

// problem is the first field of a registration that breaks the contract.
type problem struct {
	field, text string
}

func (p *problem) Error() string { return p.field + ": " + p.text }

// in returns the problem with the path of the message that contains its field.
func (p *problem) in(field string, args ...any) *problem {
	p.field = fmt.Sprintf(field, args...) + p.field
	return p
}

func problemf(field, format string, args ...any) *problem {
	return &problem{field, fmt.Sprintf(format, args...)}
}

// setOf converts a set of registrations. One that breaks the contract is refused alone.
func (s *Service) setOf(agents []*agentstatsv1.AgentRegistration, workspaces []*agentstatsv1.Workspace) fleet.Set {
	set := fleet.Set{
		Agents:     make([]agent.Registration, 0, len(agents)),
		Workspaces: make([]agent.Workspace, 0, len(workspaces)),
	}
	now := time.Now()
	for _, pb := range agents {
		reg, err := s.boundedRegistrationOf(pb, now)
		gotAt, badAge := readAt("age", pb.GetAge())
		if err == nil {
			err = badAge
		}
		if err != nil {
			set.Refused = append(set.Refused, refusalOf(pb.GetId(), pb.GetWorkspace(), err))
			continue
		}
		if !gotAt.IsZero() {
			if set.GotAt == nil {
				set.GotAt = make(map[agent.ID]time.Time)
			}
			set.GotAt[reg.ID] = gotAt
		}
		set.Agents = append(set.Agents, reg)
	}
	for _, pb := range workspaces {
		w, err := workspaceOf(pb, now)
		if err != nil {
			set.Refused = append(set.Refused, refusalOf(nil, pb, err))
			continue
		}
		set.Workspaces = append(set.Workspaces, w)
	}
	return set
}

// refusalOf names what a refused registration is of, as far as that is valid.
func refusalOf(agentID []byte, w *agentstatsv1.Workspace, err *problem) agent.RegistrationRefusal {
	refusal := agent.RegistrationRefusal{Field: err.field, Problem: err.text}
	// An id that is none is zero.
	refusal.Agent, _ = optionalID("", agentID)
	refusal.Workspace, _ = optionalID("", w.GetId())
	return refusal
}

// maxRefusalsSent bounds the refusals of a response. It is below 500 KB then.
const maxRefusalsSent = 1000

// refusalMessages converts the first refusals.
func refusalMessages(refused []agent.RegistrationRefusal) []*agentstatsv1.RegistrationRefusal {
	var messages []*agentstatsv1.RegistrationRefusal
	for i := range refused[:min(len(refused), maxRefusalsSent)] {
		r := &refused[i]
		messages = append(messages, &agentstatsv1.RegistrationRefusal{
			AgentId: contract.OptionalID(&r.Agent), WorkspaceId: contract.OptionalID(&r.Workspace),
			Field: r.Field, Message: r.Problem,
		})
	}
	return messages
}

// answerRegistrations logs what was refused of a call, and has it paced as one without
// a result if that is more than half.
func (s *Service) answerRegistrations(ctx context.Context, total int, refused []agent.RegistrationRefusal) {
	if 2*len(refused) <= total {
		reservationFrom(ctx).markAnswered()
	}
	if len(refused) > 0 {
		s.refusedRegistrations.Log(ctx, s.log, slog.LevelWarn, "refused", len(refused), "registrations of coderd are refused",
			"first_agent", refused[0].Agent, "first_workspace", refused[0].Workspace, "field", refused[0].Field, "problem", refused[0].Problem)
	}
}

func (s *Service) boundedRegistrationOf(pb *agentstatsv1.AgentRegistration, now time.Time) (agent.Registration, *problem) {
	if n, limit := proto.Size(pb), s.opts.Load().MaxRegistrationBytes; n > limit {
		return agent.Registration{}, problemf("", "want at most %d bytes (%s), got %d", limit, flagRegistrationBytes, n)
	}
	return registrationOf(pb, s.opts.Load().MaxDeclaredKeys, now)
}

func registrationOf(pb *agentstatsv1.AgentRegistration, maxDeclaredKeys int, now time.Time) (agent.Registration, *problem) {
	r := agent.Registration{Name: pb.GetName(), MetadataKeys: pb.GetMetadataKeys()}
	var err *problem
	if r.ID, err = idOf("id", pb.GetId()); err != nil {
		return r, err
	}
	if text := contract.TextProblem(r.Name, 1, maxAgentName); text != "" {
		return r, &problem{"name", text}
	}
	if r.CreatedAt, err = requiredTime("created_at", pb.GetCreatedAt(), now); err != nil {
		return r, err
	}
	if r.ConnectionTimeout, err = durationOf("connection_timeout", pb.GetConnectionTimeout()); err != nil {
		return r, err
	}
	if r.TokenHash, err = tokenHashOf(pb.GetTokenSha256()); err != nil {
		return r, err
	}
	if pb.GetWorkspace() == nil {
		return r, problemf("workspace", "want it, got none")
	}
	if r.Workspace, err = workspaceOf(pb.GetWorkspace(), now); err != nil {
		return r, err.in("workspace.")
	}
	if r.Apps, err = appsOf(pb.GetApps()); err != nil {
		return r, err
	}
	if n := len(r.MetadataKeys); n > maxDeclaredKeys {
		return r, problemf("metadata_keys", "want at most %d (%s), got %d", maxDeclaredKeys, flagDeclaredKeys, n)
	}
	for i, key := range r.MetadataKeys {
		if text := contract.TextProblem(key, 1, agent.MaxMetadataKeyBytes); text != "" {
			return r, &problem{fmt.Sprintf("metadata_keys[%d]", i), text}
		}
	}
	if r.Parent, err = optionalID("parent_id", pb.GetParentId()); err != nil {
		return r, err
	}
	if r.Observed, err = observationOf(pb.GetObserved(), now); err != nil {
		return r, err.in("observed.")
	}
	return r, nil
}

func observationOf(pb *agentstatsv1.Observation, now time.Time) (o agent.Observation, err *problem) {
	if pb == nil {
		return o, nil
	}
	if o.At, err = requiredTime("at", pb.GetAt(), now); err != nil {
		return o, err
	}
	if o.At.After(now) {
		o.At = now
	}
	known := false
	if o.Status, known = agentStatuses[pb.GetStatus()]; !known {
		return o, problemf("status", "unknown status %d", pb.GetStatus())
	}
	if l := pb.GetLifecycle(); l != nil {
		if o.Lifecycle.State, known = contract.LifecycleStates[l.GetState()]; !known {
			return o, problemf("lifecycle.state", "unknown lifecycle state %d", l.GetState())
		}
		at, invalid := contract.TimeOf(l.GetChangedAt())
		if invalid != nil {
			return o, &problem{"lifecycle.changed_at", invalid.Error()}
		}
		o.Lifecycle.ChangedAt = at
	}
	network, invalid := contract.NetworkOf(pb.GetNetwork())
	if invalid != nil {
		field, text, _ := strings.Cut(invalid.Error(), ": ")
		return o, &problem{field, text}
	}
	o.Network = network
	return o, nil
}

// tokenHashOf converts the hash of a token; zero: the agent has none.
func tokenHashOf(b []byte) (hash [32]byte, _ *problem) {
	if len(b) == 0 {
		return hash, nil
	}
	if len(b) != len(hash) {
		return hash, problemf("token_sha256", "want %d bytes or none, got %d", len(hash), len(b))
	}
	copy(hash[:], b)
	if hash == [32]byte{} {
		return hash, problemf("token_sha256", "want a hash, or none at all, got %d bytes of 0", len(hash))
	}
	return hash, nil
}

func workspaceOf(pb *agentstatsv1.Workspace, now time.Time) (agent.Workspace, *problem) {
	w := agent.Workspace{
		Name:          pb.GetName(),
		OwnerUsername: pb.GetOwnerUsername(),
		Organization:  pb.GetOrganizationName(),
		Template:      agent.Template{Name: pb.GetTemplate().GetName(), Version: pb.GetTemplate().GetVersion()},
	}
	var err *problem
	if w.ID, err = idOf("id", pb.GetId()); err != nil {
		return w, err
	}
	if w.OwnerID, err = optionalID("owner_id", pb.GetOwnerId()); err != nil {
		return w, err
	}
	if pb.GetTemplate() == nil {
		return w, problemf("template", "want it, got none")
	}
	if w.Template.ID, err = optionalID("template.id", pb.GetTemplate().GetId()); err != nil {
		return w, err
	}
	for _, c := range []struct {
		field, text string
		lo          int
	}{
		{"name", w.Name, 1},
		{"owner_username", w.OwnerUsername, 1},
		{"template.name", w.Template.Name, 1},
		{"template.version", w.Template.Version, 0},
		{"organization_name", w.Organization, 0},
	} {
		if text := contract.TextProblem(c.text, c.lo, maxName); text != "" {
			return w, &problem{c.field, text}
		}
	}
	if w.Template.Version == "" {
		w.Template.Version = agent.UnknownVersion
	}
	if pb.GetBuild() == nil {
		return w, nil
	}
	if w.Build, err = buildOf(pb.GetBuild(), now); err != nil {
		return w, err.in("build.")
	}
	return w, nil
}

var transitions = map[agentstatsv1.Build_Transition]agent.Transition{
	agentstatsv1.Build_TRANSITION_UNSPECIFIED: "",
	agentstatsv1.Build_TRANSITION_START:       "start",
	agentstatsv1.Build_TRANSITION_STOP:        "stop",
	agentstatsv1.Build_TRANSITION_DELETE:      "delete",
}

func buildOf(pb *agentstatsv1.Build, now time.Time) (agent.Build, *problem) {
	b := agent.Build{IsPrebuild: pb.GetIsPrebuild()}
	var err *problem
	if b.ID, err = idOf("id", pb.GetId()); err != nil {
		return b, err
	}
	if b.CreatedAt, err = requiredTime("created_at", pb.GetCreatedAt(), now); err != nil {
		return b, err
	}
	known := false
	if b.Transition, known = transitions[pb.GetTransition()]; !known {
		return b, problemf("transition", "unknown transition %d", pb.GetTransition())
	}
	return b, nil
}

func appsOf(apps []*agentstatsv1.App) ([]agent.App, *problem) {
	if len(apps) > contract.MaxApps {
		return nil, problemf("apps", "want at most %d, got %d", contract.MaxApps, len(apps))
	}
	var out []agent.App
	seen := make(map[agent.ID]struct{}, len(apps))
	for i, pb := range apps {
		id, err := idOf("id", pb.GetId())
		if err != nil {
			return nil, err.in("apps[%d].", i)
		}
		if _, twice := seen[id]; twice {
			return nil, problemf(fmt.Sprintf("apps[%d].id", i), "want each app once, got %s again", id)
		}
		seen[id] = struct{}{}
		if text := contract.TextProblem(pb.GetSlug(), 0, maxSlug); text != "" {
			return nil, &problem{fmt.Sprintf("apps[%d].slug", i), text}
		}
		if text := contract.TextProblem(pb.GetDisplayName(), 0, maxName); text != "" {
			return nil, &problem{fmt.Sprintf("apps[%d].display_name", i), text}
		}
		health, known := contract.AppHealths[pb.GetHealth()]
		if !known {
			return nil, problemf(fmt.Sprintf("apps[%d].health", i), "unknown health %d", pb.GetHealth())
		}
		out = append(out, agent.App{ID: id, Slug: pb.GetSlug(), DisplayName: pb.GetDisplayName(), Health: health})
	}
	return out, nil
}

func idOf(field string, b []byte) (agent.ID, *problem) {
	id, err := uuid.FromBytes(b)
	if err != nil {
		return id, problemf(field, "want 16 bytes, got %d", len(b))
	}
	if id == uuid.Nil {
		return id, problemf(field, "want a UUID that is not zero")
	}
	return id, nil
}

// optionalID converts an id that may be absent; zero: it is.
func optionalID(field string, b []byte) (agent.ID, *problem) {
	if len(b) == 0 {
		return agent.ID{}, nil
	}
	return idOf(field, b)
}

// idsOf converts a list of ids, of which there may be at most limit.
func idsOf(field string, list [][]byte, limit int) ([]agent.ID, *problem) {
	if len(list) > limit {
		return nil, problemf(field, "want at most %d, got %d", limit, len(list))
	}
	ids := make([]agent.ID, len(list))
	for i, b := range list {
		id, err := idOf("", b)
		if err != nil {
			return nil, err.in("%s[%d]", field, i)
		}
		ids[i] = id
	}
	return ids, nil
}

func requiredTime(field string, t *timestamppb.Timestamp, now time.Time) (time.Time, *problem) {
	at, err := contract.TimeOf(t)
	if err != nil {
		return at, &problem{field, err.Error()}
	}
	if at.IsZero() {
		return at, problemf(field, "want it, got none")
	}
	if at.Sub(now) > maxAhead {
		return at, problemf(field, "want at most %v after the service's clock (%s), got %s",
			maxAhead, now.UTC().Format(time.RFC3339), at.Format(time.RFC3339))
	}
	return at, nil
}

func durationOf(field string, d *durationpb.Duration) (time.Duration, *problem) {
	if d == nil {
		return 0, nil
	}
	if d.CheckValid() != nil || d.AsDuration() < 0 {
		return 0, problemf(field, "want at least 0 s, got %d s and %d ns", d.GetSeconds(), d.GetNanos())
	}
	return d.AsDuration(), nil
}

// readAt returns when what has the age was read, or earlier; zero: no age is given.
func readAt(field string, age *durationpb.Duration) (time.Time, *problem) {
	if age == nil {
		return time.Time{}, nil
	}
	d, err := durationOf(field, age)
	if err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(-min(d, maxAge) - ageMargin), nil
}
