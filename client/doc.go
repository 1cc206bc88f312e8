// Package client is the Go SDK of agentstatsd: an agent's stream of telemetry, and
// coderd's side of the service.
//
// An [Agent] keeps one session with the service, for as long as its Run lasts. It
// reconnects with full jitter, and adds what a broken stream lost to what it sends
// next. It keeps no more than the newest value of each thing. Behind a load
// balancer of several replicas [NewDialingAgent] makes it. A [Coderd] registers
// agents, relays for those that cannot dial themselves, and reads and watches what
// they reported. A [Pusher] pushes coderd's own metric families.
//
// None of them logs by itself: see the Logger of their options.
package client
