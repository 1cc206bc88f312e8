package aggregator

import (
	"testing"

	"github.com/coder/agentstatsd/internal/reasonstest"
)

// A fresh process serves a counter for each reason.
func TestRefusalReasonsForgetNone(t *testing.T) {
	reasonstest.Require(t, refusalReasons)
}
