// Package client is the Go SDK of agentstatsd: an agent's stream of telemetry, and
// coderd's side of the service.
//
// An [Agent] keeps one session with the service, for as long as its Run lasts. It
// sends what is due together, reconnects with full jitter, and sends again what a
// broken stream may have lost. Its memory is bounded. Behind a load
// balancer of several replicas [NewDialingAgent] makes it. A [Coderd] registers
// agents, and reads and watches what they reported. Its [Relays] relay for agents that
// cannot dial themselves. A [Pusher] pushes coderd's own metric families.
//
// None of them logs by itself: see the Logger of their options.
package client
