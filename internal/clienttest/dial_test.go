package clienttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// authority signs certificates and writes them to files.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{dir: t.TempDir()}
	a.write(t, "ca", 1)
	return a
}

// write writes name.crt and name.key.
func (a *authority) write(t *testing.T, name string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		cert.IsCA, cert.BasicConstraintsValid = true, true
		parent, signer = cert, key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), signer)
	require.NoError(t, err)
	if a.cert == nil {
		a.cert, err = x509.ParseCertificate(der)
		require.NoError(t, err)
		a.key = key
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	writePEM(t, a.path(name+".crt"), "CERTIFICATE", der)
	writePEM(t, a.path(name+".key"), "PRIVATE KEY", keyDER)
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// asked is a CoderdService that remembers who called.
type asked struct {
	agentstatsv1.UnimplementedCoderdServiceServer
	peers chan *peer.Peer
}

func (a asked) ListAgents(ctx context.Context, _ *agentstatsv1.ListAgentsRequest) (*agentstatsv1.ListAgentsResponse, error) {
	p, _ := peer.FromContext(ctx)
	a.peers <- p
	return &agentstatsv1.ListAgentsResponse{}, nil
}

func TestDialTLS(t *testing.T) {
	ca := newAuthority(t)
	ca.write(t, "service", 2)
	ca.write(t, "coderd", 3)
	pair, err := tls.LoadX509KeyPair(ca.path("service.crt"), ca.path("service.key"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	server := asked{peers: make(chan *peer.Peer, 1)}
	n := newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterCoderdServiceServer(s, server) }, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	defer n.stop()

	config, err := client.TLSFiles{CA: ca.path("ca.crt"), Cert: ca.path("coderd.crt"), Key: ca.path("coderd.key"), ServerName: "service"}.Config()
	require.NoError(t, err)
	for _, serial := range []int64{3, 4} {
		ca.write(t, "coderd", serial)
		// A token goes over TLS without further ado.
		conn, err := client.Dial("passthrough:///x", client.DialOptions{TLS: config, Token: "secret"}, grpc.WithContextDialer(n.dial))
		require.NoError(t, err)
		_, err = agentstatsv1.NewCoderdServiceClient(conn).ListAgents(t.Context(), &agentstatsv1.ListAgentsRequest{})
		require.NoError(t, err)
		info := (<-server.peers).AuthInfo.(credentials.TLSInfo)
		require.Equal(t, serial, info.State.PeerCertificates[0].SerialNumber.Int64(), "the certificate is read anew")
		require.NoError(t, conn.Close())
	}

	// Without TLS in the options the system's roots count, not none.
	conn, err := client.Dial("passthrough:///service", client.DialOptions{}, grpc.WithContextDialer(n.dial))
	require.NoError(t, err)
	_, err = agentstatsv1.NewCoderdServiceClient(conn).ListAgents(t.Context(), &agentstatsv1.ListAgentsRequest{})
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, "certificate")
	require.NoError(t, conn.Close())
}

// The service gets a certificate of another authority: a connection trusts it once that is
// in the file. A file that cannot be used changes nothing.
func TestDialReadsAuthoritiesAnew(t *testing.T) {
	before, ca := newAuthority(t), newAuthority(t)
	ca.write(t, "service", 2)
	pair, err := tls.LoadX509KeyPair(ca.path("service.crt"), ca.path("service.key"))
	require.NoError(t, err)
	server := asked{peers: make(chan *peer.Peer, 10)}
	n := newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterCoderdServiceServer(s, server) },
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}})))
	defer n.stop()
	file := filepath.Join(t.TempDir(), "ca.pem")
	write := func(from string) {
		text, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, text, 0o600))
	}
	write(before.path("ca.crt"))
	opened := make(chan net.Conn, 10)
	dialer := grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := n.dial(ctx, address)
		opened <- conn
		return conn, err
	})
	conn, err := client.DialURL("agentstatsd://127.0.0.1?server_name=service&ca_file="+file, dialer)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	call := func(opts ...grpc.CallOption) error {
		_, err := agentstatsv1.NewCoderdServiceClient(conn).ListAgents(t.Context(), &agentstatsv1.ListAgentsRequest{}, opts...)
		return err
	}
	require.ErrorContains(t, call(), "certificate signed by unknown authority")

	write(ca.path("ca.crt"))
	conn.ResetConnectBackoff()
	require.NoError(t, call(grpc.WaitForReady(true)))

	write(ca.path("ca.key"))
	for len(opened) > 0 {
		_ = (<-opened).Close()
	}
	require.True(t, conn.WaitForStateChange(t.Context(), connectivity.Ready))
	require.NoError(t, call(grpc.WaitForReady(true)))
	require.NotEmpty(t, opened, "another connection")
}

// Connections to a name with several addresses spread over them, and one that
// cannot be reached is passed over. gRPC dials the next address, too, when one has not
// answered for 250 ms, which no machine is slow enough for in a bubble.
func TestDialSpreads(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, n, _ := startFake(t)
		addresses := []resolver.Address{{Addr: "a"}, {Addr: "b"}, {Addr: "gone"}}
		name := manual.NewBuilderWithScheme("several")
		name.InitialState(resolver.State{Addresses: addresses})
		reached := make(map[string]int)
		const dials = 60
		for range dials {
			conn, err := client.Dial("several:///service", client.DialOptions{Plaintext: true}, grpc.WithResolvers(name),
				grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
					if address == "gone" {
						return nil, errors.New("refused")
					}
					reached[address]++
					return n.dial(ctx, address)
				}))
			require.NoError(t, err)
			stream, err := agentstatsv1.NewAgentServiceClient(conn).Connect(t.Context())
			require.NoError(t, err)
			require.NoError(t, stream.CloseSend())
			require.NoError(t, conn.Close())
		}
		fake.locked(func() { fake.violations = nil })
		require.Equal(t, dials, reached["a"]+reached["b"])
		require.Greater(t, reached["a"], 5)
		require.Greater(t, reached["b"], 5)
	})
}

func TestTLSFilesErrors(t *testing.T) {
	ca := newAuthority(t)
	for _, test := range []struct {
		files client.TLSFiles
		want  string
	}{
		{client.TLSFiles{CA: ca.path("none")}, "read CA certificates: open"},
		{client.TLSFiles{CA: ca.path("ca.key")}, "has none"},
		{client.TLSFiles{Cert: ca.path("ca.crt")}, "both the certificate and the key are needed"},
		{client.TLSFiles{Cert: ca.path("ca.crt"), Key: ca.path("none")}, "read client certificate: open"},
	} {
		_, err := test.files.Config()
		require.ErrorContains(t, err, test.want)
	}
	_, err := client.Dial("x", client.DialOptions{Plaintext: true, TLS: &tls.Config{MinVersion: tls.VersionTLS12}})
	require.ErrorContains(t, err, "both plaintext and TLS")
	_, err = client.Dial("x", client.DialOptions{Token: "a", TokenFile: "b"})
	require.ErrorContains(t, err, "both a token and a token file")
}

func TestTokens(t *testing.T) {
	fake, n, conn := startFake(t)
	// open returns why a session did not open.
	open := func(conn *grpc.ClientConn, creds credentials.PerRPCCredentials) error {
		states := make(chan client.State, 10)
		agent, err := client.NewAgent(conn, client.AgentOptions{
			Credentials: creds,
			OnState:     func(s client.State) { states <- s },
		})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		defer func() { require.NoError(t, stop()) }()
		require.Equal(t, client.Connecting, (<-states).Connection)
		return (<-states).Err
	}
	// Without TLS the token is not shown, unless that is allowed.
	err := open(conn, client.Token("secret", false))
	require.ErrorContains(t, err, "cannot send secure credentials on an insecure connection")

	path := filepath.Join(t.TempDir(), "token")
	plaintext, err := client.Dial("passthrough:///x", client.DialOptions{Plaintext: true, TokenFile: path}, grpc.WithContextDialer(n.dial))
	require.NoError(t, err)
	defer closeConn(t, plaintext)
	require.ErrorContains(t, open(plaintext, nil), "read token: open")
	require.NoError(t, os.WriteFile(path, []byte("\n"), 0o600))
	require.ErrorContains(t, open(plaintext, nil), "is empty")
	for content, want := range map[string]string{
		"\xef\xbb\xbftoken": "at byte 1: want one line of printable ASCII",
		"token\ntoken":      "at byte 6: want one line of printable ASCII",
		"t\x00o\x00k\x00":   "at byte 2: want one line of printable ASCII",
	} {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		err := open(plaintext, nil)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "token\n")
	}
	for _, token := range []string{"first", "second"} {
		require.NoError(t, os.WriteFile(path, []byte(token+"\n"), 0o600))
		require.NoError(t, open(plaintext, nil))
	}
	fake.locked(func() {
		var tokens []string
		for _, md := range fake.headers {
			tokens = append(tokens, md.Get("authorization")...)
		}
		require.Equal(t, []string{"Bearer first", "Bearer second"}, tokens)
	})
}
