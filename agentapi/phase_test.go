package agentapi

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// A connection never goes back to an earlier phase: what closes it may come while its
// handler is still in an earlier one.
func TestPhaseOnlyAdvances(t *testing.T) {
	phases := []phase{phaseHandshake, phaseOpen, phaseGoodbye, phaseLastAck, phaseClosed}
	for i, from := range phases {
		for j, to := range phases {
			c := &connection{phase: from}
			c.advanceLocked(to)
			require.Equal(t, phases[max(i, j)].String(), c.phase.String(), "%v to %v", from, to)
		}
	}
	require.Equal(t, []string{"handshake", "open", "goodbye", "last ack", "closed"},
		[]string{phaseHandshake.String(), phaseOpen.String(), phaseGoodbye.String(), phaseLastAck.String(), phaseClosed.String()})
	require.Equal(t, "phase(9)", phase(9).String())
}

// Nothing but the status is due before the settings are, and only the first status is.
func TestDueByPhase(t *testing.T) {
	c := &connection{due: due{drain: true}}
	require.Zero(t, c.takeDueLocked(), "the session is not open")
	c.closeLocked(context.Canceled)
	c.closeLocked(nil)
	require.Equal(t, due{drain: true, close: true, closeErr: context.Canceled}, c.due)
}
