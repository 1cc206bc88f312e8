package stateparts

import (
	"errors"
	"strings"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
)

// Parts of a state, as the column agent_states.part names them.
const (
	PartLifecycle = "lifecycle"
	// The newest start: when it began, and how it ended.
	PartStarted = "started"
	PartReady   = "ready"
	PartNetwork = "network"
	// PartAppHealth is followed by the id of the app. Each has a row and an order of
	// its own, so that what two replicas write comes together here.
	PartAppHealth = "app_health/"
)

// Set decodes a part into the state that it is of.
func Set(st *agent.State, part string, order agent.Order, data []byte) error {
	if text, is := strings.CutPrefix(part, PartAppHealth); is {
		app, err := uuid.Parse(text)
		if err != nil {
			return err
		}
		var health agent.AppHealth
		if err := Decode(data, &health); err != nil {
			return err
		}
		st.SetAppHealth(app, health, order)
		return nil
	}
	switch part {
	case PartLifecycle:
		st.LifecycleOrder = order
		var l Lifecycle
		if err := Decode(data, &l); err != nil {
			return err
		}
		st.Lifecycle = agent.Lifecycle(l)
	case PartStarted:
		var s Started
		if err := Decode(data, &s); err != nil {
			return err
		}
		st.SetStarted(s.StartedAt, order)
	case PartReady:
		var r Ready
		if err := Decode(data, &r); err != nil {
			return err
		}
		st.SetReady(agent.Startup(r), order)
	case PartNetwork:
		st.NetworkOrder = order
		var n Network
		if err := Decode(data, &n); err != nil {
			return err
		}
		st.Network = n.State()
	default:
		return errors.New("the part is unknown")
	}
	return nil
}
