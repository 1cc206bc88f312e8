package redact

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestText(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"connect to 10.0.0.1:5432 as ada: refused", "connect to 10.0.0.1:5432 as ada: refused"},
		{"postgres://ada:s3cret@db:5432/x", "postgres://ada:xxxxx@db:5432/x"},
		{"postgres://ada:s3@cr/et@db:5432/x", "postgres://ada:xxxxx@db:5432/x"},
		{"postgres://ada@db/x?password=s3cret&sslmode=require", "postgres://ada@db/x?password=xxxxx&sslmode=require"},
		{"host=db user=ada password=s3cret dbname=x", "host=db user=ada password=xxxxx dbname=x"},
		{`host=db password='s3 cr\'et' dbname=x`, "host=db password=xxxxx dbname=x"},
		{"nats://s3cret@nats:4222", "nats://xxxxx@nats:4222"},
		{"tls://ada:s3cret@nats:4222: no route", "tls://ada:xxxxx@nats:4222: no route"},
		{"authorization: Bearer s3cret", "authorization: Bearer xxxxx"},
		{`map[authorization:[Bearer s3cret] te:[trailers]]`, "map[authorization:[Bearer xxxxx] te:[trailers]]"},
	} {
		got := Text(c.text)
		require.Equal(t, c.want, got)
		require.NotContains(t, got, "s3")
	}
}

// gRPC's library quotes a pair of files that does not fit.
func TestTextHasNoPrivateKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	body := strings.Split(text, "\n")[1]
	for _, said := range []string{
		text,
		fmt.Sprintf("tls.X509KeyPair(%q, %q) failed: mismatch", "certificate", text),
		"cut off: " + text[:80],
		strings.ReplaceAll(text, "PRIVATE KEY", "EC PRIVATE KEY"),
	} {
		got := Text(said)
		require.NotContains(t, got, body[:20], said)
		require.Contains(t, got, "(a private key)")
	}
	require.Contains(t, Text(fmt.Sprintf("tls.X509KeyPair(%q) failed: mismatch", text)), "failed: mismatch")
}
