package integration

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// TestChangeReachesReplicas registers 1,000 agents with one of three replicas that know many.
// Watchers at all replicas see them soon; how soon is logged.
func TestChangeReachesReplicas(t *testing.T) {
	const change = 1000
	agents, rounds := 2*change, 2
	if *soak {
		agents, rounds = 200*change, 10
	}
	beside(t)
	r := startReplicas(t, 3, false, "--max-agents", "300000", "--max-registrations-bytes", "2GiB")
	coderds := make([]*client.Coderd, len(r.services))
	for i, s := range r.services {
		conn, err := client.Dial(s.grpcAddr, client.DialOptions{TokenFile: r.tokenFile, Plaintext: true})
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		coderds[i], err = client.NewCoderd(conn, client.CoderdOptions{})
		require.NoError(t, err)
	}
	register := func(set []*agentstatsv1.AgentRegistration) {
		t.Helper()
		answer, err := coderds[0].Register(t.Context(), set, nil)
		require.NoError(t, err)
		require.Empty(t, answer.Refused)
	}
	for registered := 0; registered < agents; registered += change {
		register(registrations(registered, change))
	}
	for range rounds {
		set := registrations(agents, change)
		ctx, cancel := context.WithCancel(t.Context())
		var watching, synced sync.WaitGroup
		seen := make([]time.Time, len(coderds))
		for i, coderd := range coderds {
			synced.Add(1)
			watching.Go(func() { seen[i] = seeAll(ctx, coderd, set, sync.OnceFunc(synced.Done)) })
		}
		synced.Wait()
		began := time.Now()
		register(set)
		registered := time.Since(began)
		patience := time.AfterFunc(time.Minute, cancel)
		watching.Wait()
		patience.Stop()
		cancel()
		agents += change
		require.NotContains(t, seen, time.Time{}, "all replicas know %d agents", agents)
		t.Logf("of %d agents, the last 1,000 are registered after %v and known to all replicas after %v",
			agents, registered.Round(time.Millisecond), slices.MaxFunc(seen, time.Time.Compare).Sub(began).Round(time.Millisecond))
	}
}

// seeAll watches agents until all of them are known, and returns when they were; zero: ctx ended
// before. It calls synced when it watches.
func seeAll(ctx context.Context, coderd *client.Coderd, set []*agentstatsv1.AgentRegistration, synced func()) (at time.Time) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ids := make([]uuid.UUID, len(set))
	for i := range set {
		ids[i] = uuid.UUID(set[i].GetId())
	}
	seen := make(map[string]struct{}, len(set))
	_ = coderd.WatchAgents(ctx, ids, func(answer *agentstatsv1.WatchAgentsResponse) {
		if answer.GetSynced() {
			synced()
		}
		for _, a := range answer.GetAgents() {
			seen[string(a.GetAgentId())] = struct{}{}
		}
		if len(seen) == len(set) && at.IsZero() {
			at = time.Now()
			cancel()
		}
	})
	return at
}

// registrations returns n agents, each of a workspace of its own, from the one with a number on.
func registrations(from, n int) []*agentstatsv1.AgentRegistration {
	created, template := timestamppb.New(time.Now().Add(-time.Hour)), uuid.NewSHA1(uuid.NameSpaceOID, []byte("template"))
	all := make([]*agentstatsv1.AgentRegistration, n)
	for i := range all {
		id := func(kind string) []byte {
			id := uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, kind, from+i))
			return id[:]
		}
		token := sha256.Sum256(fmt.Append(nil, "token", from+i))
		all[i] = &agentstatsv1.AgentRegistration{
			Id: id("agent"), Name: "main", CreatedAt: created, TokenSha256: token[:],
			Workspace: &agentstatsv1.Workspace{
				Id: id("workspace"), Name: fmt.Sprint("workspace-", from+i), OwnerId: id("owner"), OwnerUsername: fmt.Sprint("owner-", from+i),
				Template:         &agentstatsv1.Template{Id: template[:], Name: "docker", Version: "v1"},
				OrganizationName: "coder",
				Build:            &agentstatsv1.Build{Id: id("build"), CreatedAt: created, Transition: agentstatsv1.Build_TRANSITION_START},
			},
		}
	}
	return all
}
