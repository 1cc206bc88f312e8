package notification

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

func TestDecodeIsTheInverseOfEncode(t *testing.T) {
	id := rapid.Custom(func(t *rapid.T) agent.ID {
		return agent.ID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
	})
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]Kind{Registrations, States, Sessions, Request}).Draw(t, "kind")
		from := id.Draw(t, "from")
		var want []agent.SessionRecord
		if kind == Sessions {
			for range rapid.IntRange(0, 5).Draw(t, "records") {
				want = append(want, agent.SessionRecord{
					Agent:       id.Draw(t, "agent"),
					Incarnation: rapid.Int64().Draw(t, "incarnation"),
					Epoch:       rapid.Int64().Draw(t, "epoch"),
					Replica:     from,
					Open:        rapid.Bool().Draw(t, "open"),
					Reported:    rapid.Bool().Draw(t, "reported"),
					Relayed:     rapid.Bool().Draw(t, "relayed"),
				})
			}
		}
		gotKind, gotFrom, got, err := Decode(Encode(kind, from, want))
		require.NoError(t, err)
		require.Equal(t, kind, gotKind)
		require.Equal(t, from, gotFrom)
		require.Equal(t, want, got)
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(Sessions, agent.ID{1}, []agent.SessionRecord{{Agent: agent.ID{2}, Epoch: 3}}))
	f.Add(Encode(Registrations, agent.ID{1}, nil))
	f.Fuzz(func(t *testing.T, payload []byte) {
		kind, from, records, err := Decode(payload)
		if err != nil {
			return
		}
		_, _, again, err := Decode(Encode(kind, from, records))
		require.NoError(t, err)
		require.Equal(t, records, again)
	})
}
