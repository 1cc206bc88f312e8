package agentapi

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestRefusalMessageIsBounded(t *testing.T) {
	long := strings.Repeat("é", 5000)
	names := make([]string, 100)
	for i := range names {
		names[i] = long
	}
	own := ownRefusals([]agent.Refusal{{Kind: agent.RefusedStore, Reason: "r", Message: long, Names: names, Count: 100}})
	require.Len(t, names[0], 10000, "the names are copies")
	m := refusalMessage(&fleet.Refusal{Sequence: 5, Refusal: own[0]})
	require.Equal(t, agentstatsv1.RefusalCode_REFUSAL_CODE_STORE, m.GetCode())
	require.Len(t, m.GetNames(), agent.MaxRefusalNames)
	require.Len(t, m.GetNames()[0], contract.MaxNameBytes)
	require.Len(t, m.GetMessage(), contract.MaxRefusalText)
	require.Equal(t, int64(100), m.GetCount())
}

func TestRefusalCodesAreWhole(t *testing.T) {
	require.Len(t, refusalCodes, len(agentstatsv1.RefusalCode_name)-1)
}
