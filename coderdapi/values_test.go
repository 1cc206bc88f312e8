package coderdapi

import (
	"testing"

	"github.com/stretchr/testify/require"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestTransitionsAreWhole(t *testing.T) {
	require.Len(t, transitions, len(agentstatsv1.Build_Transition_name))
}
