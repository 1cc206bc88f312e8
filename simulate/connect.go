package simulate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"google.golang.org/grpc"

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
)

// connections are what the agents and coderd talk over.
type connections struct {
	coderd *grpc.ClientConn
	agents []*grpc.ClientConn
}

// connect makes the connections; they connect when they are first used.
func connect(o Options, log *slog.Logger) (*connections, error) {
	n, err := countConnections(o.Agents, o.Connections, maxOpenFiles())
	if err != nil {
		return nil, err
	}
	if n < o.Agents && o.Connections == 0 {
		log.Warn("agents share connections, as the limit of open files is low", "agents", o.Agents, "connections", n, "limit", maxOpenFiles())
	}
	c := &connections{}
	if c.coderd, err = client.Dial(o.Target, o.Dial, o.GRPC...); err != nil {
		return nil, err
	}
	// An agent has a token of its own, and is not coderd.
	dial := client.DialOptions{TLS: withoutCertificate(o.Dial.TLS), Plaintext: o.Dial.Plaintext}
	for i := range n {
		opts := []grpc.DialOption{grpc.WithReadBufferSize(agentBufferBytes), grpc.WithWriteBufferSize(agentBufferBytes)}
		if n > portsPerAddress && isLoopback(o.Target) {
			opts = append(opts, grpc.WithContextDialer(dialerFrom(i/portsPerAddress)))
		}
		conn, err := client.Dial(o.Target, dial, append(opts, o.GRPC...)...)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.agents = append(c.agents, conn)
	}
	return c, nil
}

func (c *connections) close() error {
	err := c.coderd.Close()
	for _, conn := range c.agents {
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

// dialerFrom dials from the n-th loopback address.
func dialerFrom(n int) func(context.Context, string) (net.Conn, error) {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte((n+1)>>8), byte(n+1))}}
	return func(ctx context.Context, address string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp4", address)
	}
}
