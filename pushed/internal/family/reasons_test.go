package family

import (
	"maps"
	"slices"
	"testing"

	"github.com/coder/agentstatsd/internal/reasonstest"
	"github.com/coder/agentstatsd/metrics"
)

// A fresh process serves a counter for each reason.
func TestReasonsForgetNone(t *testing.T) {
	all := slices.Concat(slices.Collect(maps.Values(Reasons))...)
	// Families and series are refused for this one.
	twice := slices.Index(all, metrics.ReasonForwardedSeries)
	reasonstest.Require(t, slices.Delete(all, twice, twice+1))
}
