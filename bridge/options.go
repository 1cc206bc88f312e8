package bridge

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net/url"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/client"
)

// Options are the knobs of a Bridge. A zero field takes its default.
type Options struct {
	// Upstream is the URL of coderd, of http or https. Required.
	Upstream *url.URL
	// UpstreamTLS is that of a coderd with https; nil: the system's certificates verify it.
	UpstreamTLS *tls.Config
	// DrainDelay is the time between saying that the bridge is not ready and refusing new
	// connections, so that load balancers know; 0: 5 s. Below 0: none.
	DrainDelay time.Duration
	// DrainTimeout is the time over which open connections are closed; 0: 60 s.
	DrainTimeout time.Duration
	// CloseTimeout bounds the time to deliver what agents said, after the last connection;
	// 0: 10 s.
	CloseTimeout time.Duration
	// DropForwarded has coderd not get what requests say of whom they come from: clients reach
	// the bridge themselves, without a proxy before it that says so.
	DropForwarded bool
	// MaxConnections bounds agents' connections, each of which has two descriptors; 0:
	// 10,000. Further ones are answered 503.
	MaxConnections int
	// MaxDecoderBytes bounds the memory of all decoders; 0: 256 MiB.
	MaxDecoderBytes int64
	// MaxAgents bounds the agents that are relayed; 0: 50,000.
	MaxAgents int
	// Backoff bounds the waits between two sessions of an agent with the service.
	Backoff client.Backoff
	// HTTPError is called with each line of net/http's error log; nil: nobody is told.
	HTTPError func(line string)
	// Connected is called with each agent that connects. It must not block. nil: nobody is
	// told.
	Connected func(agentID, workspaceID uuid.UUID)
	// Unknown is called with each connected agent that the service does not know, again
	// and again. It must not block. nil: nobody is told.
	Unknown func(agentID, workspaceID uuid.UUID)
}

func (o Options) withDefaults() Options {
	o.DrainDelay = cmp.Or(o.DrainDelay, 5*time.Second)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, time.Minute)
	o.CloseTimeout = cmp.Or(o.CloseTimeout, 10*time.Second)
	o.MaxDecoderBytes = cmp.Or(o.MaxDecoderBytes, 256<<20)
	o.MaxAgents = cmp.Or(o.MaxAgents, 50_000)
	return o
}

func (o Options) validate() error {
	switch {
	case o.CloseTimeout < 0:
		return fmt.Errorf("close timeout: want at least 0, got %s", o.CloseTimeout)
	case o.MaxDecoderBytes < 1<<20:
		return fmt.Errorf("max decoder bytes: want at least %d, got %d", 1<<20, o.MaxDecoderBytes)
	}
	return nil
}
