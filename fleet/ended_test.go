package fleet

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// The open session and those before are known, until the agent is removed.
func TestSessionsOfAnAgent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{}, registration(1, 1, 1))
		open, before := p.Sessions(nid(1))
		require.Nil(t, open)
		require.Empty(t, before)

		began := time.Now()
		first := connectTo(t, p, 1, Hello{Instance: instanceID(1), Ordinal: 1, Version: "v2"})
		time.Sleep(time.Second)
		require.NoError(t, first.Receive(time.Now(), 7, func(Request) {}))
		second := connectTo(t, p, 1, Hello{Instance: instanceID(2), Relayed: true})
		open, before = p.Sessions(nid(1))
		require.Equal(t, &SessionDetails{Epoch: second.Info().Epoch, Instance: instanceID(2), Relayed: true, OpenedAt: began.Add(time.Second)}, open)
		require.Equal(t, []SessionDetails{{
			Epoch: first.Info().Epoch, Instance: instanceID(1), Version: "v2", OpenedAt: began, EndedAt: began.Add(time.Second),
			End: "takeover", Received: 7, Durable: 7,
		}}, before)

		second.Close(EndGoodbye)
		open, before = p.Sessions(nid(1))
		require.Nil(t, open)
		require.Equal(t, []string{"goodbye", "takeover"}, []string{before[0].End, before[1].End})

		p.store.fail(errors.New("down"))
		_, err := p.Deregister(t.Context(), ids(1), nil)
		require.Error(t, err)
		p.store.fail(nil)
		_, before = p.Sessions(nid(1))
		require.Len(t, before, 2, "it is still registered")
		_, err = p.Deregister(t.Context(), ids(1), nil)
		require.NoError(t, err)
		_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		_, before = p.Sessions(nid(1))
		require.Empty(t, before)
	})
}
