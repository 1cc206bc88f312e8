package simulate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	randv2 "math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// targets are what can be dialed: of each a reason why not, and how often it was
// reached. One that is silent never answers.
type targets struct {
	names   []string
	broken  map[string]error
	reached map[string]int
	last    string
}

var errSilent = errors.New("silent")

func newTargets(names ...string) *targets {
	return &targets{names: names, broken: map[string]error{}, reached: map[string]int{}}
}

func (s *targets) dial(ctx context.Context, address string) (net.Conn, error) {
	err := s.broken[address]
	if errors.Is(err, errSilent) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	s.reached[address]++
	s.last = address
	conn, _ := net.Pipe()
	return conn, nil
}

func (s *targets) balancer(seed uint64) *balancer {
	return newBalancer(s.names, s.dial, randv2.New(randv2.NewPCG(seed, 0)))
}

func (s *targets) dials(t *testing.T, b *balancer, n int) (order []string) {
	for range n {
		_, err := b.dial(t.Context(), "")
		require.NoError(t, err)
		order = append(order, s.last)
	}
	return order
}

func TestBalancerSpreads(t *testing.T) {
	s := newTargets("a", "b", "c")
	first := s.dials(t, s.balancer(1), 300)
	for _, name := range s.names {
		require.InDelta(t, 100, s.reached[name], 30, name)
	}
	require.Equal(t, first, s.dials(t, s.balancer(1), 300), "the seed decides")
	require.NotEqual(t, first, s.dials(t, s.balancer(2), 300))
}

// A target that cannot be reached is passed over by the same attempt.
func TestBalancerPassesOver(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newTargets("a", "b", "c")
		s.broken["a"], s.broken["b"] = errors.New("refused"), errSilent
		b := s.balancer(1)
		began := time.Now()
		s.dials(t, b, 30)
		require.Equal(t, map[string]int{"c": 30}, s.reached)
		require.LessOrEqual(t, time.Since(began), 30*targetTimeout)
		require.Greater(t, time.Since(began), 5*targetTimeout)

		s.broken["c"] = errors.New("reset")
		_, err := b.dial(t.Context(), "")
		require.ErrorContains(t, err, "refused")
		require.ErrorContains(t, err, "reset")
		require.ErrorIs(t, err, context.DeadlineExceeded)

		// An attempt ends with its context.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s.broken = map[string]error{"a": errSilent, "b": errSilent, "c": errSilent}
		began = time.Now()
		_, err = b.dial(ctx, "")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(began))
	})
}

// A client whose attempt gave no session, or that is moved, goes elsewhere; one
// whose session ended may come back.
func TestBalancerGoesElsewhere(t *testing.T) {
	s := newTargets("a", "b", "c")
	b := s.balancer(1)
	require.False(t, b.move(), "there is nothing to move")
	same := func(between func()) (n int) {
		for range 300 {
			before := s.last
			between()
			s.dials(t, b, 1)
			if s.last == before {
				n++
			}
		}
		return n
	}
	say := func(connections ...client.Connection) {
		for _, c := range connections {
			b.onState(client.State{Connection: c})
		}
	}
	s.dials(t, b, 1)
	require.Zero(t, same(func() { say(client.Connecting, client.Waiting) }), "no session")
	require.InDelta(t, 100, same(func() { say(client.Connecting, client.Connected, client.Waiting) }), 30, "a session")
	require.Zero(t, same(func() {
		say(client.Connecting, client.Connected)
		conn := b.conn
		require.True(t, b.move())
		_, err := conn.Write(nil)
		require.ErrorContains(t, err, "closed")
		require.False(t, b.move(), "it is broken")
		say(client.Waiting)
		require.False(t, b.move(), "it is on the way")
	}), "moved")
	say(client.Connected, client.Stopped)
	require.False(t, b.move(), "the client has left")
	b.restless = true
	s.dials(t, b, 1)
	require.Zero(t, same(func() {}), "restless")

	// There may be nowhere else.
	s.broken["a"], s.broken["b"] = errors.New("refused"), errors.New("refused")
	s.dials(t, b, 1)
	require.Equal(t, 10, len(s.dials(t, b, 10)))
	require.Equal(t, "c", s.last)
}

// secureTarget is a server with a certificate for its own name.
type secureTarget struct {
	agentstatsv1.UnimplementedCoderdServiceServer
	listener *bufconn.Listener
}

// ListAgents implements agentstatsv1.CoderdServiceServer.
func (s *secureTarget) ListAgents(context.Context, *agentstatsv1.ListAgentsRequest) (*agentstatsv1.ListAgentsResponse, error) {
	return &agentstatsv1.ListAgentsResponse{}, nil
}

// startSecure starts a server with a self-signed certificate for host, which it
// adds to roots.
func startSecure(t *testing.T, host string, roots *x509.CertPool) *secureTarget {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	require.NoError(t, err)
	cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	roots.AddCert(cert)
	s := &secureTarget{listener: bufconn.Listen(64 << 10)}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12,
	})))
	agentstatsv1.RegisterCoderdServiceServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(s.listener) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-done)
	})
	return s
}

// The certificate of each target is for its own host, unless the options name
// another.
func TestDialVerifiesTheTarget(t *testing.T) {
	roots := x509.NewCertPool()
	hosts := map[string]*secureTarget{}
	for _, host := range []string{"a.test", "b.test"} {
		hosts[host] = startSecure(t, host, roots)
	}
	reached := map[string]int{}
	call := func(b *balancer, config *tls.Config) error {
		conn, err := dial(client.DialOptions{TLS: config}, b)
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close()) }()
		_, err = agentstatsv1.NewCoderdServiceClient(conn).ListAgents(t.Context(), &agentstatsv1.ListAgentsRequest{})
		return err
	}
	connect := func(ctx context.Context, address string) (net.Conn, error) {
		host, _, _ := strings.Cut(address, ":")
		reached[host]++
		if host == "other.test" {
			host = "a.test"
		}
		return hosts[host].listener.DialContext(ctx)
	}
	b := newBalancer([]string{"a.test:1", "b.test:1"}, connect, randv2.New(randv2.NewPCG(1, 1)))
	b.restless = true
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	for range 4 {
		require.NoError(t, call(b, config))
	}
	require.Equal(t, map[string]int{"a.test": 2, "b.test": 2}, reached)

	b = newBalancer([]string{"other.test:1"}, connect, randv2.New(randv2.NewPCG(1, 1)))
	err := call(b, config)
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, "valid for a.test, not other.test")
	named := config.Clone()
	named.ServerName = "a.test"
	require.NoError(t, call(b, named))
	require.ErrorContains(t, call(b, nil), "certificate", "the system's roots")
}
