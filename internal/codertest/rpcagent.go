package codertest

import (
	"context"
	"net/url"

	"github.com/coder/agentstatsd/simulate/coderagent"
)

// An agent's side is that of simulated agents.
type (
	// Message is a message of whichever type, encoded.
	Message = coderagent.Message
	// Encoding leaves messages as they are.
	Encoding = coderagent.Encoding
	// DialOptions are how an agent connects.
	DialOptions = coderagent.DialOptions
	// Session is an agent's connection to a coderd, or to what is before it.
	Session = coderagent.Session
	// Node is an agent's view of its network.
	Node = coderagent.Node
)

// Dial connects as an agent does. addr is the host and port.
func Dial(ctx context.Context, addr, token string, opts DialOptions) (*Session, error) {
	return coderagent.Dial(ctx, &url.URL{Scheme: "http", Host: addr}, token, opts)
}
