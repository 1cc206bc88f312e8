package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
)

// Reflection is served on loopback, and beyond it only if it is asked for.
func TestReflectionBeyondLoopback(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want codes.Code
	}{
		"loopback":            {[]string{"--grpc-address", "127.0.0.1:0"}, codes.OK},
		"beyond it":           {[]string{"--grpc-address", "0.0.0.0:0", "--grpc-allow-plaintext"}, codes.Unimplemented},
		"beyond it, asked to": {[]string{"--grpc-address", "0.0.0.0:0", "--grpc-allow-plaintext", "--grpc-reflection"}, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			address := serveGRPC(t, io.Discard, tc.args...)
			conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, conn.Close()) })
			stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
			require.NoError(t, err)
			_ = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
			_, err = stream.Recv()
			require.Equal(t, tc.want, status.Code(err), "%v", err)
		})
	}
}

// serveGRPC serves gRPC alone until the test ends, and returns its address.
func serveGRPC(t *testing.T, log io.Writer, args ...string) (address string) {
	t.Helper()
	c, err := parse(t, "", nil, append(args, "--data-dir", t.TempDir(), "--prometheus-enable=false")...)
	require.NoError(t, err)
	s, err := newService(t.Context(), c, slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.api.Serve(ctx, s.grpcListener) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-served)
		s.close()
	})
	return s.grpcListener.Addr().String()
}

// lines gets the lines of a log, one at a time.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// What is no protocol is not logged. With TLS one line says that handshakes fail.
func TestGarbageIsNotLogged(t *testing.T) {
	dir := t.TempDir()
	cert, key := newAuthority(t).issue(t, 1, "agentstatsd.test")
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, cert, 0o600))
	require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	for name, args := range map[string][]string{
		"plaintext": nil,
		"TLS":       {"--tls-cert-file", certFile, "--tls-key-file", keyFile},
	} {
		t.Run(name, func(t *testing.T) {
			logged := make(lines, 300)
			address := serveGRPC(t, logged, append(args, "--grpc-address", "127.0.0.1:0")...)
			for len(logged) > 0 {
				<-logged
			}
			for range 200 {
				conn, err := net.Dial("tcp", address)
				require.NoError(t, err)
				_, err = io.WriteString(conn, "this is no handshake\r\n\r\n")
				require.NoError(t, err)
				_, _ = io.Copy(io.Discard, conn) // until the service closes it
				require.NoError(t, conn.Close())
			}
			if name == "TLS" {
				require.Contains(t, <-logged, `msg="TLS handshakes failed" component=grpcserver handshakes=1 listener=grpc reason=not_tls peer=127.0.0.1`)
			}
			require.Empty(t, logged)
		})
	}
}
