package librarylog

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/grpclog"
)

// What gRPC's library says is in our log, without the files that it quotes.
func TestLogOfGRPC(t *testing.T) {
	var out bytes.Buffer
	var log grpclog.LoggerV2 = newGRPC(slog.New(slog.NewTextHandler(&out, nil)))
	log.Infof("[core] %s", "connected")
	require.Empty(t, out.String(), "its routine is for debugging")
	log.Warningf("tls.X509KeyPair(%q, %q) failed: %v\n", "a certificate", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "mismatch")
	require.NotContains(t, out.String(), "c2VjcmV0")
	require.Contains(t, out.String(), "level=WARN")
	require.Contains(t, out.String(), "(a private key)")
	require.Contains(t, out.String(), "failed: mismatch")
	log.Errorln("Serve failed", "because")
	require.Contains(t, out.String(), `level=ERROR msg="gRPC's library has a message" component=grpc messages=1 message="Serve failed because"`)
	for range 100 {
		log.Warningln("again")
		log.Error("again")
	}
	require.NotContains(t, out.String(), "again", "a warning and an error a minute")
}
