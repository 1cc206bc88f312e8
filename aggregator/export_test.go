package aggregator

import "github.com/coder/agentstatsd/agent"

// SetState is SetStates of one key.
func (a *Aggregator) SetState(key agent.SeriesKey, series []agent.Series) error {
	return a.SetStates([]agent.KeySeries{{Key: key, Series: series}})
}
