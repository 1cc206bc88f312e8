package client

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

const (
	urlScheme = "agentstatsd"
	// defaultPort is that of the service's --grpc-address.
	defaultPort = "2113"
	// spread has calls and streams go to all addresses in turn.
	spread = `{"loadBalancingConfig": [{"round_robin": {}}]}`
)

// urlParameters are those that the query of a URL may have.
var urlParameters = []string{"balancer", "ca_file", "cert_file", "key_file", "plaintext", "server_name", "token", "token_file"}

// DialURL is Dial with one text, as an operator writes it in one option:
//
//	agentstatsd://stats.example.com:2113?token_file=/etc/coder/agentstatsd-token
//	agentstatsd://stats-0:2113,stats-1:2113?token_file=/etc/coder/agentstatsd-token&ca_file=/etc/coder/ca.pem
//	agentstatsd://localhost?plaintext=true&token_file=data/coderd-token
//
// Without a port it is 2113. The parameters, all optional and each at most once:
//
//   - token_file is a file with the token, read anew for each call; token is the token
//     itself, which whoever sees the URL sees.
//   - ca_file, cert_file and key_file are the TLSFiles, read anew for each connection.
//     server_name is the name in the service's certificate, if that is not the host's.
//   - plaintext=true is without TLS, for loopback only; plaintext=anywhere is for
//     networks that encrypt by themselves.
//   - balancer=round_robin, the default, connects to all hosts or, if there is one, to
//     all its addresses, and spreads calls and streams over these replicas. pick_first
//     connects to one of them: want it where there are many clients, as in agents.
//
// It does not connect. An error names the parameter that is wrong, and shows no token.
func DialURL(text string, extra ...grpc.DialOption) (*grpc.ClientConn, error) {
	target, err := parseURL(text)
	if err != nil {
		return nil, fmt.Errorf("agentstatsd URL: %w", err)
	}
	dial := []grpc.DialOption{grpc.WithDefaultServiceConfig(target.serviceConfig)}
	name := "dns:///" + target.hosts[0]
	if len(target.hosts) > 1 {
		// Each address has its own name, which its certificate is for.
		hosts := manual.NewBuilderWithScheme(urlScheme)
		hosts.InitialState(resolver.State{Addresses: target.addresses()})
		dial = append(dial, grpc.WithResolvers(hosts))
		name = urlScheme + ":///" + target.hosts[0]
	}
	return Dial(name, target.options, append(dial, extra...)...)
}

// dialTarget is what a URL says.
type dialTarget struct {
	hosts         []string // each with its port
	options       DialOptions
	serviceConfig string
}

// addresses returns the hosts for a resolver that resolves nothing.
func (t *dialTarget) addresses() []resolver.Address {
	addresses := make([]resolver.Address, len(t.hosts))
	for i, host := range t.hosts {
		addresses[i] = resolver.Address{Addr: host, ServerName: host}
	}
	return addresses
}

// parseURL is strict: what it does not know is an error. Package url does not take
// several hosts. Its errors show the text, which may have a token.
func parseURL(text string) (*dialTarget, error) {
	rest, ok := strings.CutPrefix(text, urlScheme+"://")
	if !ok {
		return nil, fmt.Errorf("want %s://host:port", urlScheme)
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	switch {
	case strings.Contains(text, "#"):
		return nil, errors.New("want no fragment (#); in a value # is %23")
	case strings.Contains(rest, "@"):
		return nil, errors.New("want no user and no password before the host; the token is in the file that token_file names")
	case path != "":
		return nil, errors.New("want no path after the host; parameters begin with ?")
	}
	hosts, err := hostsOf(authority)
	if err != nil {
		return nil, err
	}
	parameters, err := parametersOf(query)
	if err != nil {
		return nil, err
	}
	target := &dialTarget{hosts: hosts}
	if target.serviceConfig, err = balancerOf(parameters["balancer"]); err != nil {
		return nil, err
	}
	target.options, err = dialOptionsOf(parameters, hosts)
	return target, err
}

// hostsOf returns the hosts of a list, each with a port.
func hostsOf(list string) ([]string, error) {
	var hosts []string
	for _, part := range strings.Split(list, ",") {
		host, port := part, defaultPort
		if i := strings.LastIndexByte(part, ':'); i >= 0 && !strings.HasSuffix(part, "]") {
			host, port = part[:i], part[i+1:]
		}
		if bare, ok := strings.CutPrefix(host, "["); ok {
			host = strings.TrimSuffix(bare, "]")
			if address, err := netip.ParseAddr(host); err != nil || !address.Is6() || host == bare {
				return nil, fmt.Errorf("host: want an IPv6 address in brackets, got %q", shown(part))
			}
		} else if strings.ContainsFunc(host, func(r rune) bool { return !strings.ContainsRune(hostCharacters, r) }) {
			return nil, fmt.Errorf("host: want a name, an IPv4 address or an IPv6 address in brackets, got %q", shown(part))
		}
		if host == "" {
			return nil, fmt.Errorf("host: want %s://host:port, got no host", urlScheme)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("port: want 1 to 65535, got %q", shown(port))
		}
		address := net.JoinHostPort(host, port)
		if slices.Contains(hosts, address) {
			return nil, fmt.Errorf("host: want each once, got %q again", address)
		}
		hosts = append(hosts, address)
	}
	return hosts, nil
}

// shown returns a host or a port as an error shows it: without the value of a parameter,
// which may be a token, where the ? before the parameters was forgotten.
func shown(part string) string {
	if name, _, ok := strings.Cut(part, "="); ok {
		return name + "=..."
	}
	return part
}

// hostCharacters are those of names and IPv4 addresses. Container networks have names
// with underscores.
const hostCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._"

// parametersOf returns the parameters of a query, all of which are known. A value of
// one that is not known, which may be a token, is not in the error.
func parametersOf(query string) (map[string]string, error) {
	parameters := make(map[string]string)
	for _, part := range strings.Split(query, "&") {
		if part == "" {
			continue
		}
		name, encoded, _ := strings.Cut(part, "=")
		if !slices.Contains(urlParameters, name) {
			return nil, fmt.Errorf("parameter %q: unknown, want one of %s", name, strings.Join(urlParameters, ", "))
		}
		if _, twice := parameters[name]; twice {
			return nil, fmt.Errorf("parameter %s: want it once", name)
		}
		// A plus sign is one: paths and tokens have no blanks written so.
		value, err := url.PathUnescape(encoded)
		if err != nil {
			return nil, fmt.Errorf("parameter %s: want %% followed by two hexadecimal digits; a %% itself is %%25", name)
		}
		if value == "" {
			return nil, fmt.Errorf("parameter %s: is empty", name)
		}
		parameters[name] = value
	}
	return parameters, nil
}

func balancerOf(value string) (serviceConfig string, err error) {
	switch cmp.Or(value, "round_robin") {
	case "round_robin":
		return spread, nil
	case "pick_first":
		return shuffled, nil
	}
	return "", fmt.Errorf("parameter balancer: want round_robin or pick_first, got %q", value)
}

// dialOptionsOf checks what Dial would refuse, too, as its errors do not name the
// parameters.
func dialOptionsOf(parameters map[string]string, hosts []string) (DialOptions, error) {
	opts := DialOptions{Token: parameters["token"], TokenFile: parameters["token_file"]}
	if opts.Token != "" && opts.TokenFile != "" {
		return opts, errors.New("parameters token and token_file: want one of them")
	}
	if i := unprintable(opts.Token); i >= 0 {
		return opts, fmt.Errorf("parameter token: has a character that a header cannot have, at byte %d: want printable ASCII", i+1)
	}
	var err error
	if opts.Plaintext, err = plaintextOf(parameters["plaintext"], hosts); err != nil {
		return opts, err
	}
	if opts.Plaintext {
		for _, name := range []string{"ca_file", "cert_file", "key_file", "server_name"} {
			if parameters[name] != "" {
				return opts, fmt.Errorf("parameter %s: want it with TLS only, but plaintext=%s", name, parameters["plaintext"])
			}
		}
		return opts, nil
	}
	opts.TLSFiles, err = tlsFilesOf(parameters)
	return opts, err
}

func tlsFilesOf(parameters map[string]string) (TLSFiles, error) {
	files := TLSFiles{
		CA: parameters["ca_file"], Cert: parameters["cert_file"], Key: parameters["key_file"],
		ServerName: parameters["server_name"],
	}
	switch {
	case files.Cert != "" && files.Key == "":
		return files, errors.New("parameter cert_file: want key_file with it, got none")
	case files.Key != "" && files.Cert == "":
		return files, errors.New("parameter key_file: want cert_file with it, got none")
	}
	// Each file is read alone, so that the error can say whose it is.
	if _, err := (TLSFiles{CA: files.CA}).Config(); err != nil {
		return files, fmt.Errorf("parameter ca_file: %w", err)
	}
	if _, err := files.Config(); err != nil {
		return files, fmt.Errorf("parameters cert_file and key_file: %w", err)
	}
	return files, nil
}

func plaintextOf(value string, hosts []string) (bool, error) {
	switch value {
	case "", "false":
		return false, nil
	case "anywhere":
		return true, nil
	case "true":
		for _, host := range hosts {
			if !isLoopback(host) {
				return false, fmt.Errorf("parameter plaintext: want a host on loopback, got %s: tokens would cross its network in the clear; "+
					"where the network encrypts by itself, want plaintext=anywhere", host)
			}
		}
		return true, nil
	}
	return false, fmt.Errorf("parameter plaintext: want true, false or anywhere, got %q", value)
}

// isLoopback reports whether an address with a port is on this machine.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}
