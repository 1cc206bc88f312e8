package store

import (
	"testing"

	"github.com/coder/agentstatsd/store/storetest"
)

// testContract runs the contract on the stores that open makes, each of a
// database of its own.
func testContract(t *testing.T, open func(testing.TB, Options) *Store) {
	storetest.Run(t, func(t testing.TB, opts storetest.Options) storetest.Store {
		return open(t, Options{TouchInterval: opts.TouchInterval, RemovalsKept: opts.RemovalsKept, NamedKept: opts.NamedKept})
	})
}

// What the tests of one database share with the contract.
var (
	id            = storetest.ID
	registration  = storetest.Registration
	register      = storetest.Register
	apply         = storetest.Apply
	registrations = storetest.Registrations
	row           = storetest.Row
	upsert        = storetest.Upsert
	saveStates    = storetest.SaveStates
	saveSessions  = storetest.SaveSessions
	push          = storetest.Push
	allPushes     = storetest.Pushes
)
