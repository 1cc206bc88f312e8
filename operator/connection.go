package operator

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/coder/serpent"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/addresses"
	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/secrets"
)

const (
	// defaultPort is that of the service's --grpc-address.
	defaultPort    = "2113"
	defaultTimeout = 10 * time.Second
	// maxReplicas bounds the addresses that are dialed: a name that has more is none of
	// a service.
	maxReplicas = 64
	// maxAnswerBytes bounds an answer: 10,000 rows of cardinality, with values as long as
	// labels may have, take some 11 MB.
	maxAnswerBytes = 32 << 20
)

// Variables of the service that say where its tokens are. Within its container the
// commands need no flags.
const (
	envOperatorToken = "AGENTSTATSD_OPERATOR_TOKEN_FILE"
	envCoderdToken   = "AGENTSTATSD_CODERD_TOKEN_FILE"
)

// connection says which replicas are asked, and how. Its fields are set by its options.
type connection struct {
	targets            []string
	tls, plaintext     bool
	caFile, serverName string
	tokenFile, dataDir string
	timeout            time.Duration
	json               bool
	// changes: the commands that change something need coderd's token.
	changes bool
	// lookup finds the addresses of a name; nil: by the system.
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// options returns the flags of a connection behind those of the command itself.
func (c *connection) options(own ...serpent.Option) serpent.OptionSet {
	group := &serpent.Group{Name: "Connection", Description: "Which replicas are asked, and how."}
	return append(own, serpent.OptionSet{
		{
			Flag: "json", Default: "false", Value: serpent.BoolOf(&c.json),
			Description: "Print one JSON document. Its fields stay what they are, new ones may be added.",
		},
		{
			Flag: "address", Env: "AGENTSTATSD_ADDRESS", Default: "127.0.0.1:" + defaultPort, Value: serpent.StringArrayOf(&c.targets), Group: group,
			Description: "The gRPC addresses of the replicas, host:port or dns:///host:port, as a list or several times. Without a port it is " + defaultPort +
				". Of a name all addresses are dialed, each for a replica.",
		},
		{
			Flag: "token-file", Value: serpent.StringOf(&c.tokenFile), Group: group,
			Description: "A file with a token. Empty: that of $" + envOperatorToken + " or $" + envCoderdToken + ", as the service has them, " +
				"else coderd-token in --data-dir.",
		},
		{
			Flag: "data-dir", Env: "AGENTSTATSD_DATA_DIR", Default: "data", Value: serpent.StringOf(&c.dataDir), Group: group,
			Description: "The service's data directory. Only the token that the service has made there is read.",
		},
		{
			Flag: "tls", Default: "false", Value: serpent.BoolOf(&c.tls), Group: group,
			Description: "Dial with TLS on loopback, too. Beyond loopback it is used without this.",
		},
		{
			Flag: "ca-file", Value: serpent.StringOf(&c.caFile), Group: group,
			Description: "Certificates that the service's is verified against, PEM; implies --tls. Empty: the system's.",
		},
		{
			Flag: "server-name", Value: serpent.StringOf(&c.serverName), Group: group,
			Description: "The name in the service's certificate; implies --tls. Empty: the host of the address.",
		},
		{
			Flag: "plaintext", Default: "false", Value: serpent.BoolOf(&c.plaintext), Group: group,
			Description: "Dial beyond loopback without TLS. The token then crosses that network in the clear.",
		},
		{
			Flag: "timeout", Default: defaultTimeout.String(), Value: optiontable.Positive(&c.timeout), Group: group,
			Description: "Time that a replica has for each answer.",
		},
	}...)
}

// address is one that is dialed.
type address struct {
	// target is what it comes from; host its host, which a certificate is for.
	target, host string
	dial         string // host:port, without a name
	loopback     bool
}

// resolve returns all addresses of the targets, each once.
func (c *connection) resolve(ctx context.Context) ([]address, error) {
	lookup := c.lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupNetIP
	}
	var all []address
	for _, target := range c.targets {
		host, port, err := splitTarget(target)
		if err != nil {
			return nil, fmt.Errorf("--address %q: %w", target, err)
		}
		ips := []netip.Addr{}
		if ip, err := netip.ParseAddr(host); err == nil {
			ips = append(ips, ip)
		} else if ips, err = lookup(ctx, "ip", host); err != nil {
			return nil, coded(exitNotAsked, "--address %s: look up: %w", target, err)
		}
		for _, ip := range ips {
			ip = ip.Unmap()
			a := address{target: target, host: host, dial: net.JoinHostPort(ip.String(), port), loopback: ip.IsLoopback()}
			if !slices.ContainsFunc(all, func(b address) bool { return a.dial == b.dial }) {
				all = append(all, a)
			}
		}
	}
	switch {
	case len(all) == 0:
		return nil, errors.New("--address: want at least one")
	case len(all) > maxReplicas:
		return nil, fmt.Errorf("--address: want at most %d addresses, got %d", maxReplicas, len(all))
	}
	return all, nil
}

// splitTarget returns host and port of a target.
func splitTarget(target string) (host, port string, err error) {
	name := strings.TrimPrefix(strings.TrimPrefix(target, "dns://"), "/")
	if strings.Contains(name, "/") {
		return "", "", errors.New("want host:port or dns:///host:port")
	}
	if bare := strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"); !strings.Contains(name, ":") || isIPv6(bare) {
		name = net.JoinHostPort(bare, defaultPort)
	}
	if err := addresses.Check(name); err != nil {
		return "", "", fmt.Errorf("want host:port or dns:///host:port: %w", err)
	}
	if host, port, err = net.SplitHostPort(name); host == "" {
		return "", "", errors.New("want host:port or dns:///host:port, got no host")
	}
	return host, port, err
}

func isIPv6(text string) bool {
	ip, err := netip.ParseAddr(text)
	return err == nil && ip.Is6()
}

// tokenPath returns the file of the token. environ are the variables of the process.
func (c *connection) tokenPath(environ serpent.Environ) string {
	path := cmp.Or(c.tokenFile, environ.Get(envOperatorToken))
	if c.changes {
		path = c.tokenFile
	}
	return cmp.Or(path, environ.Get(envCoderdToken), c.dataDir+"/coderd-token")
}

// dialOptions returns how an address is dialed.
func (c *connection) dialOptions(a address, token string) (client.DialOptions, error) {
	if c.plaintext && (c.tls || c.caFile != "" || c.serverName != "") {
		return client.DialOptions{}, errors.New("--plaintext: want no --tls, --ca-file and --server-name with it")
	}
	opts := client.DialOptions{Token: token}
	if c.plaintext || a.loopback && !c.tls && c.caFile == "" && c.serverName == "" {
		opts.Plaintext = true
		return opts, nil
	}
	opts.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmp.Or(c.serverName, a.host)}
	if c.caFile == "" {
		return opts, nil
	}
	text, _, err := secrets.ReadFile(c.caFile)
	if err != nil {
		return opts, fmt.Errorf("--ca-file: %w", err)
	}
	if opts.TLS.RootCAs, _, err = secrets.ParseCAs(c.caFile, text); err != nil {
		return opts, fmt.Errorf("--ca-file: %w", err)
	}
	return opts, nil
}

// replica is an address and who answers there.
type replica struct {
	address
	conn  *grpc.ClientConn
	admin agentstatsv1.AdminServiceClient
	// self is how it is, as it says itself. It is nil if it was not reached, or is of a
	// version that does not say it.
	self *agentstatsv1.ReplicaStatus
	// others are the other replicas, as it knows them.
	others []*agentstatsv1.ReplicaStatus
	// err is why it was not reached.
	err error
}

// dial makes a connection to each address. It reaches nobody yet.
func (c *connection) dial(ctx context.Context, environ serpent.Environ) ([]*replica, error) {
	path := c.tokenPath(environ)
	token, _, err := secrets.ReadToken(path)
	if err != nil {
		return nil, coded(exitNotAsked, "read the token: %w: give --token-file, the file of the service's --operator-token-file or --coderd-token-file", err)
	}
	c.tokenFile = path
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	all, err := c.resolve(ctx)
	if err != nil {
		return nil, err
	}
	var replicas []*replica
	for _, a := range all {
		opts, err := c.dialOptions(a, token)
		if err == nil {
			r := &replica{address: a}
			if r.conn, err = client.Dial("passthrough:///"+a.dial, opts, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes))); err == nil {
				r.admin = agentstatsv1.NewAdminServiceClient(r.conn)
				replicas = append(replicas, r)
				continue
			}
		}
		closeAll(replicas)
		return nil, err
	}
	return replicas, nil
}

func closeAll(replicas []*replica) {
	for _, r := range replicas {
		_ = r.conn.Close()
	}
}

// label names the replica for people.
func (r *replica) label() string { return cmp.Or(r.self.GetName(), r.dial) }
