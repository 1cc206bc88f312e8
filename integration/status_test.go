package integration

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// statuses returns what a replica says of all, itself first.
func (s *service) statuses(t *testing.T) []*agentstatsv1.ReplicaStatus {
	t.Helper()
	resp, err := http.Get("http://" + s.httpAddr + "/api/v1/status/replicas")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var envelope struct{ Data json.RawMessage }
	require.NoError(t, json.Unmarshal(body, &envelope), "%s", body)
	answer := new(agentstatsv1.GetStatusResponse)
	require.NoError(t, protojson.Unmarshal(envelope.Data, answer), "%s", body)
	return answer.GetReplicas()
}

// waitStatuses waits until what a replica says of all is as wanted.
func (s *service) waitStatuses(t *testing.T, what string, wanted func([]*agentstatsv1.ReplicaStatus) bool) []*agentstatsv1.ReplicaStatus {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if all := s.statuses(t); wanted(all) {
			return all
		} else if time.Now().After(deadline) {
			t.Fatalf("%s: not so after a minute: %v", what, all)
		}
	}
}

// Each of three replicas answers for all. Of one that was killed it says that it is gone,
// and what it said last; without the database it says how it is itself, and what it knew.
func TestStatusOfReplicas(t *testing.T) {
	parallel(t)
	r := startReplicas(t, 3, false, "--web-external-url", "https://stats.example.com/a")
	var ids []string
	for _, s := range r.services {
		all := s.waitStatuses(t, "all are known", func(all []*agentstatsv1.ReplicaStatus) bool { return len(all) == 3 })
		ids = append(ids, all[0].GetId())
		require.Zero(t, all[0].GetAgeSeconds())
		leads := 0
		for _, one := range all {
			require.True(t, one.GetAlive(), "%v", one)
			require.Less(t, one.GetAgeSeconds(), 30.0)
			require.Positive(t, one.GetResidentBytes())
			require.Equal(t, "https://stats.example.com/a", one.GetUrl())
			if one.GetLeads() {
				leads++
			}
		}
		require.LessOrEqual(t, leads, 2, "what others said may be before a change")
	}
	find := func(all []*agentstatsv1.ReplicaStatus, id string) *agentstatsv1.ReplicaStatus {
		for _, one := range all {
			if one.GetId() == id {
				return one
			}
		}
		return nil
	}

	r.services[1].kill()
	all := r.services[0].waitStatuses(t, "one is gone", func(all []*agentstatsv1.ReplicaStatus) bool { return !find(all, ids[1]).GetAlive() })
	gone := find(all, ids[1])
	require.Positive(t, gone.GetResidentBytes(), "what it said last")
	require.False(t, gone.GetReady() || gone.GetLeads())
	require.True(t, find(all, ids[2]).GetAlive())

	for _, p := range r.database {
		p.set(resets)
	}
	all = r.services[0].waitStatuses(t, "it knows that the database is away", func(all []*agentstatsv1.ReplicaStatus) bool { return !all[0].GetReady() })
	require.Len(t, all, 3)
	aged := find(all, ids[2]).GetAgeSeconds()
	all = r.services[0].waitStatuses(t, "what is known grows older", func(all []*agentstatsv1.ReplicaStatus) bool {
		return find(all, ids[2]).GetAgeSeconds() > aged+1
	})
	require.Zero(t, all[0].GetAgeSeconds())
	require.Equal(t, ids[0], all[0].GetId())
}
