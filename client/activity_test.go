package client_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestActivity(t *testing.T) {
	a := client.NewActivity(time.Minute)
	began := time.Unix(1000, 0).UTC()
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	// used is a use of a workspace so many seconds after that.
	type used struct {
		workspace byte
		at        int
	}
	entries := func(uses []used) (all []*agentstatsv1.AgentStats) {
		for _, u := range uses {
			id := uuid.UUID{u.workspace}
			all = append(all, &agentstatsv1.AgentStats{WorkspaceId: id[:], LastUsedAt: timestamppb.New(at(u.at))})
		}
		return all
	}
	require.Empty(t, a.Add(at(0), []*agentstatsv1.AgentStats{{WorkspaceId: make([]byte, 16)}, {WorkspaceId: []byte{1}, LastUsedAt: timestamppb.New(began)}}), "idle, and bad")
	for _, c := range []struct {
		name    string
		now     int
		entries []used
		want    []used
	}{
		{"nothing", 0, nil, nil},
		{"two agents of one workspace", 10, []used{{workspace: 2, at: 9}, {workspace: 1, at: 8}, {workspace: 1, at: 7}}, []used{{workspace: 1, at: 8}, {workspace: 2, at: 9}}},
		{"within the interval", 20, []used{{workspace: 1, at: 15}}, nil},
		{"another one does not wait", 69, []used{{workspace: 3, at: 60}}, []used{{workspace: 3, at: 60}}},
		{"a session that ended is returned", 70, nil, []used{{workspace: 1, at: 15}}},
		{"once", 200, nil, nil},
		{"an older use of one that is forgotten", 201, []used{{workspace: 1, at: 190}}, []used{{workspace: 1, at: 190}}},
		{"an older use", 300, []used{{workspace: 1, at: 180}, {workspace: 1, at: 290}}, []used{{workspace: 1, at: 290}}},
	} {
		var want []client.WorkspaceUse
		for _, u := range c.want {
			want = append(want, client.WorkspaceUse{WorkspaceID: uuid.UUID{u.workspace}, At: at(u.at)})
		}
		require.Equal(t, want, a.Add(at(c.now), entries(c.entries)), c.name)
	}
}
