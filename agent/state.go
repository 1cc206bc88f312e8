package agent

import (
	"cmp"
	"maps"
	"time"
)

// State is the newest that an agent said of itself, beside stats and metadata.
// Each part carries its own order; a part with the zero order was never said.
type State struct {
	Agent ID
	// Incarnation is as in Metadata.
	Incarnation    int64
	Lifecycle      Lifecycle
	LifecycleOrder Order
	// Startup is the part of the lifecycle that outlasts later states. StartedOrder is
	// the order of the newest start that began, ReadyOrder of the newest that ended. So
	// two writers, of whom each knows one of them, lose neither.
	Startup                  Startup
	StartedOrder, ReadyOrder Order
	// AppHealth is the newest health of each app that the agent reported.
	// AppHealthOrder has the order of each of them.
	AppHealth      map[ID]AppHealth
	AppHealthOrder map[ID]Order
	Network        Network
	NetworkOrder   Order
}

// Clone returns a copy that shares nothing that is changed in place.
func (s *State) Clone() State {
	c := *s
	c.AppHealth, c.AppHealthOrder = maps.Clone(s.AppHealth), maps.Clone(s.AppHealthOrder)
	return c // Network.Regions is replaced as a whole
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

// SetLifecycle takes in a lifecycle, if its order is above the known one, and what
// it says of the startup. It returns whether anything changed.
func (s *State) SetLifecycle(l Lifecycle, order Order) bool {
	if order.Compare(s.LifecycleOrder) <= 0 {
		return false
	}
	s.Lifecycle, s.LifecycleOrder = l, order
	switch l.State {
	case LifecycleStarting:
		s.SetStarted(l.ChangedAt, order)
	case LifecycleReady, LifecycleStartTimeout, LifecycleStartError:
		ready := Startup{StartedAt: s.Startup.StartedAt, ReadyAt: l.ChangedAt, Result: l.State}
		if ready.StartedAt.IsZero() {
			ready.StartedAt = l.ChangedAt
		}
		s.SetReady(ready, order)
	}
	return true
}

// SetLateStartup takes in what a lifecycle says of the newest start that lost against one
// that was reached later. It returns whether the start ended by it.
func (s *State) SetLateStartup(l Lifecycle, order Order) (ended bool) {
	known := &s.Startup
	switch l.State {
	case LifecycleStarting:
		// The start began before it ended, and so do their orders.
		if s.StartedOrder == (Order{}) && !known.ReadyAt.IsZero() && l.ChangedAt.Before(known.ReadyAt) {
			began := s.ReadyOrder
			began.Sequence--
			s.Startup.StartedAt, s.StartedOrder = l.ChangedAt, began
		}
	case LifecycleReady, LifecycleStartTimeout, LifecycleStartError:
		if l.ChangedAt.Before(known.StartedAt) || !l.ChangedAt.After(known.ReadyAt) {
			return false
		}
		return s.SetReady(Startup{StartedAt: cmp.Or(known.StartedAt, l.ChangedAt), ReadyAt: l.ChangedAt, Result: l.State}, order)
	}
	return false
}

// SetStarted takes in the beginning of a start, if its order is above the known
// one, and returns whether it is. A start that ended before is over.
func (s *State) SetStarted(at time.Time, order Order) bool {
	if order.Compare(s.StartedOrder) <= 0 {
		return false
	}
	s.Startup.StartedAt, s.StartedOrder = at, order
	if order.Compare(s.ReadyOrder) > 0 {
		s.Startup.ReadyAt, s.Startup.Result = time.Time{}, ""
	}
	return true
}

// SetReady takes in the end of a start, if its order is above the known one, and
// returns whether it is. ready.StartedAt counts if no beginning is known.
func (s *State) SetReady(ready Startup, order Order) bool {
	if order.Compare(s.ReadyOrder) <= 0 {
		return false
	}
	s.ReadyOrder = order
	if s.StartedOrder == (Order{}) {
		s.Startup.StartedAt = ready.StartedAt
	}
	if order.Compare(s.StartedOrder) > 0 {
		s.Startup.ReadyAt, s.Startup.Result = ready.ReadyAt, ready.Result
	}
	return true
}

// Merge takes in the parts of o that are newer. It returns whether anything changed,
// and whether the end of a start was among it.
func (s *State) Merge(o *State) (changed, started bool) {
	if o.LifecycleOrder.Compare(s.LifecycleOrder) > 0 {
		s.Lifecycle, s.LifecycleOrder = o.Lifecycle, o.LifecycleOrder
		changed = true
	}
	changed = s.SetStarted(o.Startup.StartedAt, o.StartedOrder) || changed
	started = s.SetReady(o.Startup, o.ReadyOrder)
	for app, health := range o.AppHealth {
		changed = s.SetAppHealth(app, health, o.AppHealthOrder[app]) || changed
	}
	if o.NetworkOrder.Compare(s.NetworkOrder) > 0 {
		s.Network, s.NetworkOrder = o.Network, o.NetworkOrder
		changed = true
	}
	return changed || started, started
}

// CurrentLifecycle returns the state of the lifecycle; LifecycleCreated if the agent
// reported none.
func (s *State) CurrentLifecycle() LifecycleState {
	return cmp.Or(s.Lifecycle.State, LifecycleCreated)
}

// StartEnded reports whether the newest start is known to have ended.
func (s *State) StartEnded() bool { return s.ReadyOrder.Compare(s.StartedOrder) > 0 }

// MaxEpoch is the highest of the epochs of the parts; 0: nothing was ever said.
func (s *State) MaxEpoch() int64 {
	epoch := max(s.LifecycleOrder.Epoch, s.StartedOrder.Epoch, s.ReadyOrder.Epoch, s.NetworkOrder.Epoch)
	for _, order := range s.AppHealthOrder {
		epoch = max(epoch, order.Epoch)
	}
	return epoch
}

// Lifecycle is the state of an agent's life and when it was reached.
type Lifecycle struct {
	// State as upstream writes it, like "start_timeout".
	State     LifecycleState
	ChangedAt time.Time
}

// Startup is how the agent's newest start went.
type Startup struct {
	// StartedAt is when the agent began to start; zero: it did not.
	StartedAt time.Time
	// ReadyAt is when the start ended, in whichever way; zero: it did not.
	ReadyAt time.Time
	// Result is ready, start_timeout or start_error; empty while ReadyAt is zero.
	Result LifecycleState
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
