package adminapi

import (
	"cmp"
	"context"
	"encoding/hex"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// MetadataReader reads the stored metadata of agents, ordered by agent and key. store.Store
// is one. It reads at least one agent.
type MetadataReader interface {
	MetadataWithin(ctx context.Context, ids []agent.ID, limit int) (rows []agent.Metadata, left []agent.ID, err error)
}

// Pending knows the metadata that waits for the database. batcher.Batcher is one.
type Pending interface {
	// PendingKeys returns the keys of an agent with a value that is not stored yet.
	PendingKeys(id agent.ID) []string
}

const (
	// maxDescriptions bounds those that are made at once. With all the keys that can be
	// declared the values of one take some 8 MB.
	maxDescriptions = 4
	// metadataTimeout bounds the wait for the database. The rest is in memory.
	metadataTimeout = 5 * time.Second
	// maxFamilies of an agent are named.
	maxFamilies = 100
	// maxValueBytes are shown whole, of all values of an agent. Of the others a few are.
	maxValueBytes = 1 << 20
	fewValueBytes = 100
)

// DescribeAgent implements agentstatsv1.AdminServiceServer. It has the values of metadata,
// which callers with a credential may see. The page blanks them.
func (s *Service) DescribeAgent(ctx context.Context, req *agentstatsv1.DescribeAgentRequest) (*agentstatsv1.DescribeAgentResponse, error) {
	info, err := s.findAgent(req.GetAgent())
	if err != nil {
		return nil, err
	}
	select {
	case s.describing <- struct{}{}:
		defer func() { <-s.describing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	reg := info.Registration
	resp := &agentstatsv1.DescribeAgentResponse{
		Summary: s.summary(&info), Organization: reg.Workspace.Organization,
		BuildId: optionalID(reg.Workspace.Build.ID), CreatedAt: timestamppb.New(reg.CreatedAt), ParentId: optionalID(reg.Parent),
		DeclaredMetadataKeys: reg.MetadataKeys, Apps: appMessages(&info), Series: s.familiesOf(reg.ID),
	}
	open, before := s.Fleet.Sessions(reg.ID)
	if open != nil {
		resp.Session = sessionMessage(open)
	}
	for i := range before {
		resp.LastSessions = append(resp.LastSessions, sessionMessage(&before[i]))
	}
	if last, found := s.Refusals.Of(reg.ID); found {
		resp.Refused = refusedMessages(last.Refusals)
	}
	resp.Metadata, err = s.metadataOf(ctx, reg.ID)
	if err != nil {
		// The text of the error is for the log, as Failure has it.
		resp.MetadataProblem = status.Convert(s.server.Failure(ctx, "read the metadata of an agent", err)).Message()
	}
	return resp, ctx.Err()
}

func appMessages(info *fleet.Info) (messages []*agentstatsv1.AgentApp) {
	for i := range info.Registration.Apps {
		app := &info.Registration.Apps[i]
		messages = append(messages, &agentstatsv1.AgentApp{
			Slug: app.Slug, DisplayName: app.DisplayName, Health: string(cmp.Or(info.State.AppHealth[app.ID], app.Health)),
		})
	}
	return messages
}

func sessionMessage(d *fleet.SessionDetails) *agentstatsv1.AgentSession {
	m := &agentstatsv1.AgentSession{
		Epoch: strconv.FormatInt(d.Epoch, 10), Instance: hex.EncodeToString(d.Instance[:]), OpenedAt: timestamppb.New(d.OpenedAt),
		End: d.End, Relayed: d.Relayed, Version: d.Version,
		ReceivedSequence: float64(d.Received), DurableSequence: float64(d.Durable),
	}
	if !d.EndedAt.IsZero() {
		m.EndedAt = timestamppb.New(d.EndedAt)
	}
	return m
}

// familiesOf returns the series of an agent by family, at most maxFamilies.
func (s *Service) familiesOf(id agent.ID) (messages []*agentstatsv1.NamedCount) {
	families := s.Series.FamiliesOf(id)
	for _, f := range families[:min(len(families), maxFamilies)] {
		messages = append(messages, &agentstatsv1.NamedCount{Name: f.Family, Count: float64(f.Series)})
	}
	return messages
}

// metadataOf returns the stored metadata of an agent, and the keys that wait to be stored.
// After an error it has the latter only.
func (s *Service) metadataOf(ctx context.Context, id agent.ID) (messages []*agentstatsv1.AgentMetadataEntry, err error) {
	pending := make(map[string]bool)
	for _, key := range s.Pending.PendingKeys(id) {
		pending[key] = true
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	rows, _, err := s.Metadata.MetadataWithin(ctx, []agent.ID{id}, 1)
	room := maxValueBytes
	for i := range rows {
		row := &rows[i]
		if room -= len(row.Value) + len(row.Error); room < 0 {
			row.Value, row.Error = agent.ShortenText(row.Value, fewValueBytes), agent.ShortenText(row.Error, fewValueBytes)
		}
		messages = append(messages, &agentstatsv1.AgentMetadataEntry{
			Key: row.Key, Value: row.Value, Error: row.Error, CollectedAt: timestamppb.New(row.CollectedAt), Pending: pending[row.Key],
		})
		delete(pending, row.Key)
	}
	for key := range pending {
		messages = append(messages, &agentstatsv1.AgentMetadataEntry{Key: key, Pending: true})
	}
	slices.SortFunc(messages, func(a, b *agentstatsv1.AgentMetadataEntry) int { return cmp.Compare(a.GetKey(), b.GetKey()) })
	return messages, err
}

// optionalID returns an id as a text; empty: it is zero.
func optionalID(id agent.ID) string {
	if id == (agent.ID{}) {
		return ""
	}
	return id.String()
}
