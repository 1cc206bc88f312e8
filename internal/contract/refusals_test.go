package contract

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestRefusalMessageIsBounded(t *testing.T) {
	long := strings.Repeat("é", 5000)
	names := make([]string, 100)
	for i := range names {
		names[i] = long
	}
	own := OwnRefusals([]agent.Refusal{{Kind: agent.RefusedStore, Reason: "r", Message: long, Names: names, Count: 100}})
	require.Len(t, names[0], 10000, "the names are copies")
	m := RefusalMessage(0, 5, &own[0])
	require.Equal(t, agentstatsv1.RefusalCode_REFUSAL_CODE_STORE, m.GetCode())
	require.Len(t, m.GetNames(), agent.MaxRefusalNames)
	require.Len(t, m.GetNames()[0], MaxNameBytes)
	require.Len(t, m.GetMessage(), MaxRefusalText)
	require.Equal(t, int64(100), m.GetCount())
	require.EqualValues(t, 5, m.GetSequence())
	require.EqualValues(t, 3, RefusalMessage(3, 5, &own[0]).GetFirstSequence())
}

func TestRefusalCodesAreWhole(t *testing.T) {
	require.Len(t, refusalCodes, len(agentstatsv1.RefusalCode_name)-1)
}
