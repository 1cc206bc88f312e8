package aggregator

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/metrics"
)

// No sample may have a label of the identity: a series would have it twice.
func TestIdentityLabelsAreReserved(t *testing.T) {
	for _, name := range IdentityLabels() {
		require.Equal(t, metrics.ReasonReservedLabel, metrics.CheckLabel(name, "v"), name)
	}
}
