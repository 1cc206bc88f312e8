// Package simulate runs a fleet of agents and a coderd against a service, for demos,
// load and tests. The coderd registers the agents, rebuilds their workspaces and pushes
// metrics. Both use package client, as real ones do. A summary counts all that was sent
// and acked. Beside that it has agents that speak Coder's own protocol, to a bridge or to
// coderd itself.
package simulate
