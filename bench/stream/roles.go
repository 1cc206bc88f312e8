package stream

import "github.com/coder/agentstatsd/bench/process"

// Roles that children play.
var Roles = map[string]process.Role{
	"stream-discard": serveDiscard,
	"stream-senders": sendReports,
	"stream-service": serveAll,
}
