package agent

// Series is one series that the service computes of an agent or a workspace.
type Series struct {
	// Family is the name of a documented family.
	Family string
	// Labels are all labels of the series, in the order of the catalogue.
	Labels []Label
	Value  float64
}

// SeriesKey names whose series the service computes: those of an agent, or of a
// workspace. One id may be both.
type SeriesKey struct {
	// Workspace is true if ID is a workspace's.
	Workspace bool
	ID        ID
}

// KeySeries are all series of a key.
type KeySeries struct {
	Key    SeriesKey
	Series []Series
}

// Status is an agent's presence, named as in the label status.
type Status string

// The statuses of an agent.
const (
	StatusConnecting   Status = "connecting"
	StatusConnected    Status = "connected"
	StatusDisconnected Status = "disconnected"
	StatusTimeout      Status = "timeout"
)
