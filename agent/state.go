package agent

import "time"

// State is the newest that an agent said of itself, beside stats and metadata.
// Each part carries its own order; a part with the zero order was never said.
type State struct {
	Agent          ID
	Lifecycle      Lifecycle
	LifecycleOrder Order
	// Startup is the part of the lifecycle that outlasts later states.
	Startup Startup
	// AppHealth is the newest health of each app that the agent reported.
	// AppHealthOrder has the order of each of them.
	AppHealth      map[ID]AppHealth
	AppHealthOrder map[ID]Order
	Network        Network
	NetworkOrder   Order
}

// SetAppHealth takes in the health of one app, if its order is above the known
// one, and returns whether it is.
func (s *State) SetAppHealth(app ID, health AppHealth, order Order) bool {
	if order.Compare(s.AppHealthOrder[app]) <= 0 {
		return false
	}
	if s.AppHealth == nil {
		s.AppHealth = make(map[ID]AppHealth)
	}
	if s.AppHealthOrder == nil {
		s.AppHealthOrder = make(map[ID]Order)
	}
	s.AppHealth[app], s.AppHealthOrder[app] = health, order
	return true
}

// Lifecycle is the state of an agent's life and when it was reached.
type Lifecycle struct {
	// State as upstream writes it, like "start_timeout".
	State     LifecycleState
	ChangedAt time.Time
}

// Startup is how the agent's newest start went. Its order is that of the
// lifecycle.
type Startup struct {
	// StartedAt is when the agent began to start; zero: it did not.
	StartedAt time.Time
	// ReadyAt is when the start ended, in whichever way; zero: it did not.
	ReadyAt time.Time
	// Result is ready, start_timeout or start_error; empty while ReadyAt is zero.
	Result LifecycleState
}

// After returns what l, the newest of the agent, makes of the startup.
func (s Startup) After(l Lifecycle) Startup {
	switch l.State {
	case LifecycleStarting:
		return Startup{StartedAt: l.ChangedAt}
	case LifecycleReady, LifecycleStartTimeout, LifecycleStartError:
		if s.StartedAt.IsZero() {
			s.StartedAt = l.ChangedAt
		}
		s.ReadyAt, s.Result = l.ChangedAt, l.State
	}
	return s
}

// LifecycleState is a state of an agent's life.
type LifecycleState string

// The states of an agent's life, named as in the label lifecycle_state.
const (
	LifecycleCreated         LifecycleState = "created"
	LifecycleStarting        LifecycleState = "starting"
	LifecycleStartTimeout    LifecycleState = "start_timeout"
	LifecycleStartError      LifecycleState = "start_error"
	LifecycleReady           LifecycleState = "ready"
	LifecycleShuttingDown    LifecycleState = "shutting_down"
	LifecycleShutdownTimeout LifecycleState = "shutdown_timeout"
	LifecycleShutdownError   LifecycleState = "shutdown_error"
	LifecycleOff             LifecycleState = "off"
)

// AppHealth is the health of an app, named as in the label health.
type AppHealth string

// The healths of an app.
const (
	AppHealthDisabled     AppHealth = "disabled"
	AppHealthInitializing AppHealth = "initializing"
	AppHealthHealthy      AppHealth = "healthy"
	AppHealthUnhealthy    AppHealth = "unhealthy"
)

// Network is an agent's view of the tailnet.
type Network struct {
	// NodeID is the agent's tailnet node; 0: unknown.
	NodeID uint64
	// PreferredRegion is a region's id; 0: none.
	PreferredRegion int64
	Regions         []Region
}

// Region is one DERP region.
type Region struct {
	ID   int64
	Name string
	// Latency is the round trip to it; negative: not measured.
	Latency time.Duration
}
