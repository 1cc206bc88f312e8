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
	entry := func(workspace byte, usedAt int) *agentstatsv1.AgentStats {
		id := uuid.UUID{workspace}
		return &agentstatsv1.AgentStats{WorkspaceId: id[:], LastUsedAt: timestamppb.New(at(usedAt))}
	}
	use := func(workspace byte, usedAt int) client.WorkspaceUse {
		return client.WorkspaceUse{WorkspaceID: uuid.UUID{workspace}, At: at(usedAt)}
	}
	for _, c := range []struct {
		name    string
		now     int
		entries []*agentstatsv1.AgentStats
		want    []client.WorkspaceUse
	}{
		{"nothing", 0, nil, nil},
		{"idle, and bad", 0, []*agentstatsv1.AgentStats{{WorkspaceId: make([]byte, 16)}, {WorkspaceId: []byte{1}, LastUsedAt: timestamppb.New(began)}}, nil},
		{"two agents of one workspace", 10, []*agentstatsv1.AgentStats{entry(2, 9), entry(1, 8), entry(1, 7)}, []client.WorkspaceUse{use(1, 8), use(2, 9)}},
		{"within the interval", 20, []*agentstatsv1.AgentStats{entry(1, 15)}, nil},
		{"another one does not wait", 69, []*agentstatsv1.AgentStats{entry(3, 60)}, []client.WorkspaceUse{use(3, 60)}},
		{"a session that ended is told", 70, nil, []client.WorkspaceUse{use(1, 15)}},
		{"once", 200, nil, nil},
		{"an older use of one that is forgotten", 201, []*agentstatsv1.AgentStats{entry(1, 190)}, []client.WorkspaceUse{use(1, 190)}},
		{"an older use", 300, []*agentstatsv1.AgentStats{entry(1, 180), entry(1, 290)}, []client.WorkspaceUse{use(1, 290)}},
	} {
		require.Equal(t, c.want, a.Add(at(c.now), c.entries), c.name)
	}
}
