// Package simulate runs a fleet of agents, and a coderd that registers them,
// against a service, over the client that real ones use: for demos, for load
// and for tests. All that it hands to the service is accounted for.
package simulate
