//go:build race

package batcher

// raceEnabled: pools drop things at random.
const raceEnabled = true
