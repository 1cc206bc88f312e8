package grpcserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestAuthentication(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	header := func(values ...string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), values...)
	}
	agentStream := func(ctx context.Context) error {
		c, err := s.Agents().Connect(ctx)
		require.NoError(t, err)
		_ = c.Send(edgetest.Hello(edgetest.Session{})) // the answer says why it did not go
		_, err = c.Recv()
		return err
	}
	coderdCall := func(ctx context.Context) error {
		_, err := s.Coderd().ListAgents(ctx, &pb.ListAgentsRequest{})
		return err
	}
	coderdStream := func(ctx context.Context) error {
		w, err := s.Coderd().WatchMetadata(ctx, &pb.WatchMetadataRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
		require.NoError(t, err)
		_, err = w.Recv()
		return err
	}
	for _, c := range []struct {
		name         string
		ctx          context.Context
		agent        codes.Code
		coderd       codes.Code
		agentReason  string
		coderdReason string
	}{
		{"nothing", t.Context(), codes.Unauthenticated, codes.Unauthenticated, "missing", "missing"},
		{"an agent's token", edgetest.As(t.Context(), edgetest.Token(1)), codes.OK, codes.PermissionDenied, "", "forbidden"},
		{"an unknown token", edgetest.As(t.Context(), "x"), codes.Unauthenticated, codes.Unauthenticated, "unknown", "unknown"},
		{"coderd's token", s.AsCoderd(), codes.PermissionDenied, codes.OK, "forbidden", ""},
		{"the start of coderd's token", edgetest.As(t.Context(), edgetest.CoderdToken[:10]), codes.Unauthenticated, codes.Unauthenticated, "unknown", "unknown"},
		{"another scheme", header("authorization", "Basic "+edgetest.Token(1)), codes.Unauthenticated, codes.Unauthenticated, "malformed", "malformed"},
		{"no token", header("authorization", "Bearer "), codes.Unauthenticated, codes.Unauthenticated, "malformed", "malformed"},
		{"a long token", edgetest.As(t.Context(), strings.Repeat("x", 2000)), codes.Unauthenticated, codes.Unauthenticated, "malformed", "malformed"},
		{"two tokens", header("authorization", "Bearer "+edgetest.Token(1), "authorization", "Bearer "+edgetest.CoderdToken), codes.Unauthenticated, codes.Unauthenticated, "malformed", "malformed"},
		{"lower case", header("authorization", "bearer "+edgetest.Token(1)), codes.OK, codes.PermissionDenied, "", "forbidden"},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := func(call func(context.Context) error, want codes.Code, reason string) {
				t.Helper()
				before := 0.0
				if reason != "" {
					before = s.Counter("agentstatsd_auth_failures_total", reason)
				}
				ctx, cancel := context.WithCancel(c.ctx)
				defer cancel()
				err := call(ctx)
				require.Equal(t, want, status.Code(err), "%v", err)
				if reason != "" {
					require.Equal(t, before+1, s.Counter("agentstatsd_auth_failures_total", reason))
				}
			}
			check(agentStream, c.agent, c.agentReason)
			check(coderdCall, c.coderd, c.coderdReason)
			check(coderdStream, c.coderd, c.coderdReason)
		})
	}
	require.Equal(t, 1, strings.Count(s.Log.String(), "was not let in"), "one line for a host")

	// Open to anyone: health and reflection.
	_, err := healthpb.NewHealthClient(s.Conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := reflectionpb.NewServerReflectionClient(s.Conn).ServerReflectionInfo(ctx)
	require.NoError(t, err)
	require.NoError(t, r.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}))
	resp, err := r.Recv()
	require.NoError(t, err)
	var services []string
	for _, service := range resp.GetListServicesResponse().GetService() {
		services = append(services, service.GetName())
	}
	require.Subset(t, services, []string{"agentstats.v1.AgentService", "agentstats.v1.CoderdService", "grpc.health.v1.Health"})
}

// Each method lets in those that it is for, and nobody else.
func TestMethodsAreForOneCredential(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	const (
		agents = iota
		coderd
		pushers
		readers
	)
	credentials := []struct {
		name  string
		token string
		may   []int
		code  codes.Code // of all other methods
	}{
		{"nothing", "", nil, codes.Unauthenticated},
		{"an unknown token", "x", nil, codes.Unauthenticated},
		{"an agent's", edgetest.Token(1), []int{agents}, codes.PermissionDenied},
		{"coderd's", edgetest.CoderdToken, []int{coderd, pushers, readers}, codes.PermissionDenied},
		{"the operator's", edgetest.OperatorToken, []int{readers}, codes.PermissionDenied},
		{"the one to push", edgetest.PushToken, []int{pushers}, codes.PermissionDenied},
		{"the start of the one to push", edgetest.PushToken[:10], nil, codes.Unauthenticated},
	}
	methods := 0
	for _, service := range []grpc.ServiceDesc{pb.AgentService_ServiceDesc, pb.CoderdService_ServiceDesc} {
		var names []string
		for _, m := range service.Methods {
			names = append(names, m.MethodName)
		}
		for _, m := range service.Streams {
			names = append(names, m.StreamName)
		}
		for _, name := range names {
			methods++
			method := "/" + service.ServiceName + "/" + name
			who := coderd
			switch method {
			case pb.AgentService_Connect_FullMethodName:
				who = agents
			case pb.CoderdService_PushMetrics_FullMethodName:
				who = pushers
			case pb.CoderdService_ListAgents_FullMethodName, pb.CoderdService_WatchAgents_FullMethodName,
				pb.CoderdService_GetMetadata_FullMethodName, pb.CoderdService_WatchMetadata_FullMethodName:
				who = readers
			}
			for _, c := range credentials {
				ctx, cancel := context.WithCancel(t.Context())
				if c.token != "" {
					ctx = edgetest.As(ctx, c.token)
				}
				stream, err := s.Conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
				require.NoError(t, err)
				_ = stream.SendMsg(&pb.ListAgentsRequest{}) // empty, whatever is wanted
				_ = stream.CloseSend()
				code := status.Code(stream.RecvMsg(&pb.DeregisterAgentsResponse{}))
				if slices.Contains(c.may, who) {
					require.NotContains(t, []codes.Code{codes.Unauthenticated, codes.PermissionDenied}, code, "%s with %s", method, c.name)
				} else {
					require.Equal(t, c.code, code, "%s with %s", method, c.name)
				}
				cancel()
			}
		}
	}
	require.Equal(t, 12, methods)
}

func TestLogOfStrangersIsBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		for range 5 {
			s.Open(edgetest.As(t.Context(), "x")).RequireEnd(codes.Unauthenticated, "unknown token")
		}
		time.Sleep(time.Minute)
		s.Open(edgetest.As(t.Context(), "x")).RequireEnd(codes.Unauthenticated, "unknown token")
		require.Equal(t, 2, strings.Count(s.Log.String(), "was not let in"))
		require.Contains(t, s.Log.String(), "suppressed=4")
		require.NotContains(t, s.Log.String(), "Bearer")
	})
}

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{t, key, cert}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) issue(name string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, key.Public(), a.key)
	require.NoError(a.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestClientCertificate(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	for _, c := range []struct {
		name string
		cert []tls.Certificate
		san  string
		want codes.Code
	}{
		{"coderd's name", []tls.Certificate{ours.issue("Coderd.example.com")}, "coderd.example.com", codes.OK},
		{"another name", []tls.Certificate{ours.issue("agent.example.com")}, "coderd.example.com", codes.Unauthenticated},
		{"no certificate", nil, "coderd.example.com", codes.Unauthenticated},
		{"another authority", []tls.Certificate{theirs.issue("coderd.example.com")}, "coderd.example.com", codes.Unavailable},
		{"no name configured", []tls.Certificate{ours.issue("")}, "", codes.Unauthenticated},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := edgetest.Start(t, edgetest.Settings{
				Server: grpcserver.Options{
					CoderdClientSAN: c.san,
					Credentials: credentials.NewTLS(&tls.Config{
						Certificates: []tls.Certificate{ours.issue("service")},
						ClientCAs:    ours.pool(), ClientAuth: tls.VerifyClientCertIfGiven,
					}),
				},
				Dial: []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
					RootCAs: ours.pool(), ServerName: "service", Certificates: c.cert,
				}))},
			})
			_, err := s.Coderd().ListAgents(t.Context(), &pb.ListAgentsRequest{})
			require.Equal(t, c.want, status.Code(err), "%v", err)
			if c.want == codes.OK {
				_, err = s.Coderd().ListAgents(edgetest.As(t.Context(), "a token"), &pb.ListAgentsRequest{})
				require.Equal(t, codes.Unauthenticated, status.Code(err), "a token counts before the certificate")
				relayed := s.OpenRelay(t.Context()).Open(t.Context(), t, 9)
				require.NoError(t, relayed.Send(edgetest.Hello(edgetest.Session{})))
				relayed.RequireEnd(codes.NotFound, "agent_id: no such agent is registered")
			}
		})
	}
}

// What is wrong with a credential is said, but not the credential.
func TestMalformedCredentials(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	for want, values := range map[string][]string{
		"authorization: want it once, got it 2 times":                 {"Bearer a", "Bearer b"},
		"authorization: want Bearer and a token":                      {"Basic hunter2"},
		"authorization: want a token of at most 1024 bytes, got 1025": {"Bearer " + strings.Repeat("x", 1025)},
	} {
		ctx := t.Context()
		for _, v := range values {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
		}
		_, err := s.Coderd().ListAgents(ctx, &pb.ListAgentsRequest{})
		edgetest.RequireCode(t, err, codes.Unauthenticated, want)
	}
}
