//go:build race

package aggregator

// raceEnabled: pools drop things at random.
const raceEnabled = true
