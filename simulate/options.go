package simulate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"time"

	"github.com/coder/agentstatsd/client"
)

const (
	defaultAgents           = 25
	defaultMetricsPerAgent  = 30
	defaultMetadataKeys     = 10
	defaultMetadataInterval = 10 * time.Second
	defaultDrainTimeout     = 30 * time.Second
	defaultCoderds          = 1
	defaultPushInterval     = 10 * time.Second
	defaultCheckInterval    = 2 * time.Second
	// defaultRebuilds is how often each agent is rebuilt: of 25 agents one about
	// every 20 s.
	defaultRebuilds = 500 * time.Second
	// maxDefaultRamp bounds the default time over which the agents start: 400
	// agents connect in a second.
	maxDefaultRamp = 30 * time.Second
	rampPerAgent   = time.Second / 400
	// maxMetadataKeys is how many keys a template may declare.
	maxMetadataKeys = 1024
	// maxCoderds is more than one service has.
	maxCoderds = 100
	// maxUndeclaredKeys is how many keys an agent may have whose template
	// declares none.
	maxUndeclaredKeys = 128
)

// Options are the knobs of a simulation. A zero field takes its default.
type Options struct {
	// Targets are the addresses of the service's replicas, each a host and a
	// port; at least one. Connections are spread over them as a load balancer
	// does: each goes to one at random, or to another one if that cannot be
	// reached. Certificates are to be for the host of the target, unless Dial
	// names another.
	Targets []string
	// Dial says how to reach them. Its token, or a client certificate, is
	// coderd's; agents have tokens of their own.
	Dial client.DialOptions
	// Dialer connects to an address of a target or a URL; nil: by TCP.
	Dialer func(ctx context.Context, address string) (net.Conn, error)

	// Fleet names the fleet; default "sim". Each run has the same workspaces, so it
	// supersedes agents that an earlier one kept. Fleets of other names have other
	// ones.
	Fleet string
	// Agents is the size of the fleet; default 25.
	Agents int
	// Unreachable is the number of further agents that are registered and never
	// connect, each in a workspace of its own; default: none.
	Unreachable int
	// RebuildInterval is the mean time between two rebuilds in the fleet. In a rebuild
	// the agents of a workspace shut down, and new ones of a new build replace them.
	// Default: 500 s for each agent, or, with a Journal, none, as a rebuild takes the
	// old agents' values out of the database; negative: none.
	RebuildInterval time.Duration
	// Watch has coderd watch what agents report, under the name of the fleet.
	Watch bool
	// Churn is the mean time until the connection of an agent is broken, so that
	// its next session is with another target; 0: none is. It takes at least two
	// targets, and a connection for each agent.
	Churn time.Duration
	// Coderds is the number of instances of coderd that push metrics; default 1,
	// negative: none.
	Coderds int
	// PushInterval between two snapshots of an instance, at least 1 s; default
	// 10 s, negative: no instance pushes.
	PushInterval time.Duration
	// MetricsPerAgent is the number of forwarded samples in a report; default
	// 30, negative: none.
	MetricsPerAgent int
	// MetadataKeys of each agent; default 10, negative: none, at most 1024.
	MetadataKeys int
	// MetadataChanging is how many of them have a new value each MetadataInterval, in
	// turn; default: all.
	MetadataChanging int
	// MetadataRepeated is true if agents report the other keys then, too, with the value
	// that they have, as Coder's agents do.
	MetadataRepeated bool
	// Steady agents change no state once they are ready: no health of an app and no
	// network.
	Steady bool
	// ReportInterval of each agent; default: what the service says.
	ReportInterval time.Duration
	// MetadataInterval between two values of a key; default 10 s.
	MetadataInterval time.Duration
	// Duration until the fleet stops producing; 0: until the context ends.
	Duration time.Duration
	// Ramp is the time over which the agents start; default 2.5 ms for each, at
	// most 30 s; negative: none.
	Ramp time.Duration
	// DrainTimeout bounds the wait for the last acks; default 30 s.
	DrainTimeout time.Duration
	// Keep leaves the agents registered at the end, and leaves without a
	// goodbye: their series and metadata can be looked at.
	Keep bool
	// Connections that the agents share; default: one for each agent, as real
	// agents have, as far as the limit of open files allows.
	Connections int
	// Relay has instances of coderd relay for the agents, over Connections; default 2.
	Relay bool
	// Backoff of the agents' reconnects.
	Backoff client.Backoff
	// Seed of what agents and coderd report and do, and nothing else; any number.
	Seed uint64

	// Metrics are the URLs that Prometheus scrapes the replicas at. All of them
	// together are to serve the series of each agent once; empty: that is not
	// checked. A replica that cannot be scraped serves nothing. The service must
	// show the series of single agents.
	Metrics []string
	// CheckInterval between two checks of Metrics; default 2 s.
	CheckInterval time.Duration

	// Progress is where the progress is shown; nil: nowhere. On a terminal it is a line
	// that is drawn again each second, else a line each 10 s.
	Progress io.Writer
	// Journal is where durable values are recorded; nil: nowhere. Each line is a Record
	// in JSON, written by one Write.
	Journal io.Writer
}

func (o Options) withDefaults() Options {
	o.Fleet = cmp.Or(o.Fleet, "sim")
	o.Agents = cmp.Or(o.Agents, defaultAgents)
	o.MetricsPerAgent = cmp.Or(o.MetricsPerAgent, defaultMetricsPerAgent)
	o.MetadataKeys = cmp.Or(o.MetadataKeys, defaultMetadataKeys)
	o.MetadataInterval = cmp.Or(o.MetadataInterval, defaultMetadataInterval)
	o.Ramp = cmp.Or(o.Ramp, min(maxDefaultRamp, time.Duration(o.Agents)*rampPerAgent))
	o.DrainTimeout = cmp.Or(o.DrainTimeout, defaultDrainTimeout)
	o.Coderds = cmp.Or(o.Coderds, defaultCoderds)
	o.PushInterval = cmp.Or(o.PushInterval, defaultPushInterval)
	o.CheckInterval = cmp.Or(o.CheckInterval, defaultCheckInterval)
	if o.Journal != nil {
		o.RebuildInterval = cmp.Or(o.RebuildInterval, -1)
	}
	o.RebuildInterval = cmp.Or(o.RebuildInterval, defaultRebuilds/time.Duration(max(1, o.Agents)))
	if o.PushInterval < 0 {
		o.Coderds = 0
	}
	o.Coderds = max(o.Coderds, 0)
	o.MetricsPerAgent = max(o.MetricsPerAgent, 0)
	o.MetadataKeys = max(o.MetadataKeys, 0)
	o.Ramp = max(o.Ramp, 0)
	return o
}

// validate returns what is wrong with options that have their defaults.
func (o Options) validate() error {
	for _, target := range o.Targets {
		if _, _, err := net.SplitHostPort(target); err != nil {
			return fmt.Errorf("target: want a host and a port: %w", err)
		}
	}
	for _, metrics := range o.Metrics {
		if u, err := url.Parse(metrics); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return errors.New("metrics: want URLs like http://127.0.0.1:2112/")
		}
	}
	switch {
	case len(o.Targets) == 0:
		return errors.New("targets: want at least 1")
	case o.Churn > 0 && len(o.Targets) < 2:
		return fmt.Errorf("churn: moves agents between targets: want at least 2, got %d", len(o.Targets))
	case o.Agents < 1 || o.Agents > math.MaxInt32:
		return fmt.Errorf("agents: want at least 1, got %d", o.Agents)
	case o.Unreachable < 0 || o.Unreachable > math.MaxInt32:
		return fmt.Errorf("unreachable agents: want at least 0, got %d", o.Unreachable)
	case o.Coderds > maxCoderds:
		return fmt.Errorf("coderds: want at most %d, got %d", maxCoderds, o.Coderds)
	case o.Coderds > 0 && o.PushInterval < time.Second:
		return fmt.Errorf("push interval: want at least 1s, got %s", o.PushInterval)
	case o.MetadataKeys > maxMetadataKeys:
		return fmt.Errorf("metadata keys: want at most %d, got %d", maxMetadataKeys, o.MetadataKeys)
	case len(o.Fleet) > 64:
		return fmt.Errorf("fleet: want a name of at most 64 bytes, got %d", len(o.Fleet))
	case o.Relay && o.Churn > 0:
		return errors.New("churn: agents must not be relayed")
	case o.MetadataChanging < 0 || o.MetadataChanging > o.MetadataKeys:
		return fmt.Errorf("metadata keys that change: want 0 to %d, got %d", o.MetadataKeys, o.MetadataChanging)
	case o.Connections < 0:
		return fmt.Errorf("connections: want at least 0, got %d", o.Connections)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"report interval", o.ReportInterval},
		{"metadata interval", o.MetadataInterval},
		{"duration", o.Duration},
		{"drain timeout", o.DrainTimeout},
		{"churn", o.Churn},
		{"check interval", o.CheckInterval},
	} {
		if d.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %s", d.name, d.value)
		}
	}
	return nil
}
