// Package simulate runs a fleet of agents against a service, and a coderd that
// registers them, rebuilds their workspaces and pushes its metrics, over the
// client that real ones use: for demos, for load and for tests. All that it
// hands to the service is accounted for.
package simulate
