package simulate

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/coder/agentstatsd/client"
)

const (
	// spareFiles are left for everything beside the agents' connections.
	spareFiles = 128
	// portsPerAddress is how many connections get one loopback address as their
	// source: Linux has about 28,000 ports for them.
	portsPerAddress = 10000
	// agentBufferBytes are read at once from an agent's connection: its acks
	// are small.
	agentBufferBytes = 4 << 10
	// relayConnections is the default number of connections of instances of coderd that
	// relay.
	relayConnections = 2
)

// connections are those of the agents and of coderd.
type connections struct {
	coderd *grpc.ClientConn
	// shared are those that the agents share; none: each has connections of its own.
	shared []*grpc.ClientConn
	// balancers decide on the agents' own connections, by number.
	balancers []*balancer
	dial      func(*balancer) (*grpc.ClientConn, error)
	// relays are instances of coderd that relay for all agents, over the shared
	// connections; none: the agents dial.
	relays []*client.Coderd
}

// connect makes the connections, which connect when they are first used.
func connect(o Options, log *slog.Logger) (*connections, error) {
	asked := o.Connections
	if o.Relay {
		asked = cmp.Or(asked, relayConnections)
	}
	n, err := countConnections(o.Agents, asked, maxOpenFiles())
	if err != nil {
		return nil, err
	}
	if n < o.Agents && o.Churn > 0 {
		return nil, fmt.Errorf("churn: agents must not share connections: %d agents have %d", o.Agents, n)
	}
	if n < o.Agents && asked == 0 {
		log.Warn("agents share connections, as the limit of open files is low", "agents", o.Agents, "connections", n, "limit", maxOpenFiles())
	}
	random := func(i int) *rand.Rand { return rand.New(rand.NewPCG(o.Seed+3, uint64(i))) }
	// When a connection of coderd breaks, its target is probably gone.
	b := newBalancer(o.Targets, o.dialer(0), random(0))
	b.restless = true
	c := &connections{}
	if c.coderd, err = dial(o.Dial, b); err != nil {
		return nil, err
	}
	// An agent has a token of its own, and is not coderd.
	opts := client.DialOptions{TLS: withoutCertificate(o.Dial.TLS), Plaintext: o.Dial.Plaintext}
	c.dial = func(b *balancer) (*grpc.ClientConn, error) {
		if o.Relay {
			return dial(o.Dial, b)
		}
		return dial(opts, b, grpc.WithReadBufferSize(agentBufferBytes), grpc.WithWriteBufferSize(agentBufferBytes))
	}
	for i := range n {
		source := 0
		if n > portsPerAddress {
			source = 1 + i/portsPerAddress
		}
		b := newBalancer(o.Targets, o.dialer(source), random(1+i))
		if n == o.Agents && !o.Relay {
			c.balancers = append(c.balancers, b)
			continue
		}
		b.restless = true
		conn, err := c.dial(b)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.shared = append(c.shared, conn)
		if !o.Relay {
			continue
		}
		relay, err := client.NewCoderd(conn, client.CoderdOptions{Backoff: o.Backoff, Logger: log})
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.relays = append(c.relays, relay)
	}
	return c, nil
}

// dial makes a connection that a balancer decides on.
func dial(opts client.DialOptions, b *balancer, extra ...grpc.DialOption) (*grpc.ClientConn, error) {
	extra = append(extra, grpc.WithContextDialer(b.dial))
	if !opts.Plaintext && (opts.TLS == nil || opts.TLS.ServerName == "") {
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if opts.TLS != nil {
			config = opts.TLS
		}
		extra = append(extra, grpc.WithTransportCredentials(balancedCredentials{credentials.NewTLS(config), b}))
	}
	return client.Dial("passthrough:///"+b.targets[0], opts, extra...)
}

// newAgent makes the client of an agent.
func (c *connections) newAgent(planned plannedAgent, opts client.AgentOptions) (*client.Agent, error) {
	number := planned.number
	if len(c.relays) > 0 {
		opts.Credentials = nil
		return c.relays[number%len(c.relays)].Relay(planned.id, opts)
	}
	if len(c.shared) > 0 {
		return client.NewAgent(c.shared[number%len(c.shared)], opts)
	}
	b := c.balancers[number]
	onState := opts.OnState
	opts.OnState = func(s client.State) {
		b.onState(s)
		onState(s)
	}
	return client.NewDialingAgent(func() (*grpc.ClientConn, error) { return c.dial(b) }, opts)
}

func (c *connections) close() error {
	err := c.coderd.Close()
	for _, conn := range c.shared {
		err = errors.Join(err, conn.Close())
	}
	return err
}

// countConnections returns how many connections agents get within a limit of
// open files; 0: there is no limit. Those that were asked for are an error if
// they do not fit.
func countConnections(agents, asked, files int) (int, error) {
	n := agents
	if asked > 0 {
		n = min(asked, agents)
	}
	most := files - spareFiles
	if files == 0 || n <= most {
		return n, nil
	}
	if asked > 0 || most < 1 {
		return 0, fmt.Errorf("connections: %d of them need %d open files, the limit is %d: raise it (ulimit -n) or let agents share connections", n, n+spareFiles, files)
	}
	return most, nil
}

func withoutCertificate(config *tls.Config) *tls.Config {
	if config == nil {
		return nil
	}
	config = config.Clone()
	config.Certificates, config.GetClientCertificate = nil, nil
	return config
}

func isLoopback(target string) bool {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Is4() && addr.IsLoopback()
}

// dialer returns how to connect to a target: a loopback one from the given
// loopback address, from 1; 0: from any.
func (o Options) dialer(source int) dialFunc {
	if o.Dialer != nil {
		return o.Dialer
	}
	anywhere := &net.Dialer{}
	if source == 0 {
		return func(ctx context.Context, address string) (net.Conn, error) {
			return anywhere.DialContext(ctx, "tcp", address)
		}
	}
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(source>>8), byte(source))}}
	return func(ctx context.Context, address string) (net.Conn, error) {
		if isLoopback(address) {
			return from.DialContext(ctx, "tcp4", address)
		}
		return anywhere.DialContext(ctx, "tcp", address)
	}
}
