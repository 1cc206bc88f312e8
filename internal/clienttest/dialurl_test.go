package clienttest

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// tokens is a CoderdService that remembers the tokens of its callers, and the names
// that they want of certificates.
type tokens struct {
	agentstatsv1.UnimplementedCoderdServiceServer

	mu    sync.Mutex
	got   []string
	names map[string]int
}

func (s *tokens) ListAgents(ctx context.Context, _ *agentstatsv1.ListAgentsRequest) (*agentstatsv1.ListAgentsResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	p, _ := peer.FromContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, md.Get("authorization")...)
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		s.names[info.State.ServerName]++
	}
	return &agentstatsv1.ListAgentsResponse{}, nil
}

// hosts returns how many names of hosts were asked for.
func (s *tokens) hosts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.names)
}

// Calls go in turn to all hosts, each of which is verified by its own name.
func TestDialURLSpreads(t *testing.T) {
	ca := newAuthority(t)
	server := &tokens{names: make(map[string]int)}
	certificates := make(map[string]*tls.Certificate)
	for i, name := range []string{"stats-0", "stats-1"} {
		ca.write(t, name, int64(i+2))
		pair, err := tls.LoadX509KeyPair(ca.path(name+".crt"), ca.path(name+".key"))
		require.NoError(t, err)
		certificates[name] = &pair
	}
	n := newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterCoderdServiceServer(s, server) }, grpc.Creds(credentials.NewTLS(&tls.Config{
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return certificates[hello.ServerName], nil },
	})))
	defer n.stop()

	var mu sync.Mutex
	dialed := make(map[string]bool)
	conn, err := client.DialURL("agentstatsd://stats-0,stats-1:4000?token=s3cr%65t+&ca_file="+ca.path("ca.crt"),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dialed[address] = true
			return n.dial(ctx, address)
		}))
	require.NoError(t, err)
	defer closeConn(t, conn)
	service := agentstatsv1.NewCoderdServiceClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for server.hosts() < 2 { // the second connection may take longer
		_, err := service.ListAgents(ctx, &agentstatsv1.ListAgentsRequest{}, grpc.WaitForReady(true))
		require.NoError(t, err, "calls reach both hosts")
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	require.Equal(t, "Bearer s3cret+", server.got[0])
	require.Equal(t, map[string]bool{"stats-0:2113": true, "stats-1:4000": true}, dialed)
}

// A URL with one host is resolved, and wants the certificate of server_name.
func TestDialURLServerName(t *testing.T) {
	ca := newAuthority(t)
	ca.write(t, "service", 2)
	pair, err := tls.LoadX509KeyPair(ca.path("service.crt"), ca.path("service.key"))
	require.NoError(t, err)
	server := &tokens{names: make(map[string]int)}
	n := newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterCoderdServiceServer(s, server) },
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}})))
	defer n.stop()
	for query, want := range map[string]codes.Code{"": codes.Unavailable, "&server_name=service": codes.OK} {
		for _, balancer := range []string{"round_robin", "pick_first"} {
			conn, err := client.DialURL("agentstatsd://127.0.0.1/?ca_file="+ca.path("ca.crt")+query+"&balancer="+balancer,
				grpc.WithContextDialer(n.dial))
			require.NoError(t, err)
			_, err = agentstatsv1.NewCoderdServiceClient(conn).ListAgents(t.Context(), &agentstatsv1.ListAgentsRequest{})
			require.Equal(t, want, status.Code(err), err)
			require.NoError(t, conn.Close())
		}
	}
}

func TestDialURLErrors(t *testing.T) {
	ca := newAuthority(t)
	ca.write(t, "coderd", 2)
	const secret = "hunter2hunter2hunter2"
	for text, want := range map[string]string{
		"":                                                   "want agentstatsd://host:port",
		"stats:2113":                                         "want agentstatsd://host:port",
		"https://stats:2113?token=" + secret:                 "want agentstatsd://host:port",
		"agentstatsd://":                                     "host: want agentstatsd://host:port, got no host",
		"agentstatsd://:2113":                                "got no host",
		"agentstatsd://a,,b":                                 "got no host",
		"agentstatsd://a,b,a:2113":                           `want each once, got "a:2113" again`,
		"agentstatsd://a:0":                                  `port: want 1 to 65535, got "0"`,
		"agentstatsd://a:http":                               `port: want 1 to 65535, got "http"`,
		"agentstatsd://a:":                                   `port: want 1 to 65535, got ""`,
		"agentstatsd://::1":                                  `IPv6 address in brackets, got "::1"`,
		"agentstatsd://[a]:1":                                `want an IPv6 address in brackets, got "[a]:1"`,
		"agentstatsd://a b":                                  `got "a b"`,
		"agentstatsd://a&token=" + secret:                    `got "a&token=..."`,
		"agentstatsd://a:2113&token=" + secret:               `port: want 1 to 65535, got "2113&token=..."`,
		"agentstatsd://[::1&token=" + secret:                 `got "[::1&token=..."`,
		"agentstatsd://a/b":                                  `want no path after the host`,
		"agentstatsd://a#b":                                  "want no fragment",
		"agentstatsd://coderd:" + secret + "@a":              "want no user and no password",
		"agentstatsd://a?tokn=" + secret:                     `parameter "tokn": unknown, want one of balancer, ca_file`,
		"agentstatsd://a?" + "token":                         "parameter token: is empty",
		"agentstatsd://a?token_file=":                        "parameter token_file: is empty",
		"agentstatsd://a?token=x&token=" + secret:            "parameter token: want it once",
		"agentstatsd://a?token=%zz" + secret:                 "parameter token: want % followed by two hexadecimal digits",
		"agentstatsd://a?token=" + secret + "%0A":            "parameter token: has a character that a header cannot have, at byte 22",
		"agentstatsd://a?token_file=/x&token=" + secret:      "parameters token and token_file: want one of them",
		"agentstatsd://a?balancer=grpclb":                    `parameter balancer: want round_robin or pick_first, got "grpclb"`,
		"agentstatsd://a?plaintext=yes":                      `parameter plaintext: want true, false or anywhere, got "yes"`,
		"agentstatsd://localhost,10.0.0.1?plaintext=true":    "parameter plaintext: want a host on loopback, got 10.0.0.1:2113",
		"agentstatsd://localhost?plaintext=true&ca_file=/x":  "parameter ca_file: want it with TLS only, but plaintext=true",
		"agentstatsd://a?plaintext=anywhere&server_name=b":   "parameter server_name: want it with TLS only, but plaintext=anywhere",
		"agentstatsd://a?cert_file=" + ca.path("coderd.crt"): "parameter cert_file: want key_file with it",
		"agentstatsd://a?key_file=" + ca.path("coderd.key"):  "parameter key_file: want cert_file with it",
		"agentstatsd://a?ca_file=" + ca.path("none"):         "parameter ca_file: read CA certificates: open " + ca.path("none"),
		"agentstatsd://a?cert_file=" + ca.path("none") + "&key_file=" + ca.path("coderd.key"): "parameters cert_file and key_file: read client certificate: open " + ca.path("none"),
	} {
		conn, err := client.DialURL(text)
		if err == nil {
			require.NoError(t, conn.Close())
		}
		require.ErrorContains(t, err, want, text)
		require.True(t, strings.HasPrefix(err.Error(), "agentstatsd URL: "), err)
		require.NotContains(t, err.Error(), "hunter2")
	}
	for _, text := range []string{
		"agentstatsd://stats.example.com",
		"agentstatsd://[2001:db8::1],[::1]:1?token_file=/x&plaintext=false",
		"agentstatsd://localhost,127.0.0.2:80,[::1]?plaintext=true&token=" + secret,
		"agentstatsd://mesh_1:2113/?plaintext=anywhere",
		"agentstatsd://a?cert_file=" + ca.path("coderd.crt") + "&key_file=" + ca.path("coderd.key"),
	} {
		conn, err := client.DialURL(text)
		require.NoError(t, err, text)
		require.NoError(t, conn.Close())
	}
}
