package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

// authority makes certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue returns a certificate for name and its key, PEM.
func (a *authority) issue(t *testing.T, serial int64, name string) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, priv.Public(), a.key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(priv)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// TestCertificateIsReloaded renews the certificate while a connection is open. New
// connections see the new one, the old one goes on, and a broken file changes nothing.
func TestCertificateIsReloaded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		// Made in here, where the clock that certificates are checked by starts.
		ca := newAuthority(t)
		dir := t.TempDir()
		c := &config{tlsCertFile: filepath.Join(dir, "cert.pem"), tlsKeyFile: filepath.Join(dir, "key.pem")}
		write := func(cert, key []byte) {
			require.NoError(t, os.WriteFile(c.tlsCertFile, cert, 0o600))
			require.NoError(t, os.WriteFile(c.tlsKeyFile, key, 0o600))
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca.cert)

		write(ca.issue(t, 10, "agentstatsd.test"))
		watched, err := watchServerTLS(c, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		service := &service{config: c, tls: watched, log: slog.New(slog.DiscardHandler)}
		creds, err := service.grpcCredentials(prometheus.NewRegistry())
		require.NoError(t, err)
		// dial returns both ends of a new connection.
		dial := func() (client *tls.Conn, server net.Conn) {
			clientEnd, serverEnd := net.Pipe()
			handshaken := make(chan net.Conn)
			go func() {
				conn, _, err := creds.ServerHandshake(serverEnd)
				if err != nil {
					t.Errorf("server handshake: %v", err)
				}
				handshaken <- conn
			}()
			client = tls.Client(clientEnd, &tls.Config{RootCAs: roots, ServerName: "agentstatsd.test", NextProtos: []string{"h2"}})
			if err := client.Handshake(); err != nil {
				_ = clientEnd.Close()
				require.NoError(t, err)
			}
			// A pipe has no buffer: somebody must read the session ticket.
			go func() { _, _ = io.Copy(io.Discard, client) }()
			server = <-handshaken
			t.Cleanup(func() {
				_ = clientEnd.Close()
				_ = serverEnd.Close()
			})
			return client, server
		}
		serial := func() int64 {
			conn, _ := dial()
			return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
		}
		oldClient, oldServer := dial()
		require.EqualValues(t, 10, serial())

		write(ca.issue(t, 11, "agentstatsd.test"))
		time.Sleep(time.Minute)
		require.EqualValues(t, 11, serial())
		go func() { _, _ = oldClient.Write([]byte("x")) }()
		b := make([]byte, 1)
		_, err = oldServer.Read(b)
		require.NoError(t, err, "the open connection goes on")
		require.Equal(t, "x", string(b))

		write([]byte("garbage"), []byte("garbage"))
		time.Sleep(time.Minute)
		require.EqualValues(t, 11, serial(), "a broken file changes nothing")
		require.Equal(t, []string{
			"TLS of the gRPC listener: the files cannot be used, those before are: " + c.tlsCertFile + " holds no certificate in PEM",
		}, service.fileWarnings())
	})
}

func TestServerTLSErrors(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	cert, key := ca.issue(t, 1, "x")
	certFile, keyFile, bad := filepath.Join(dir, "c"), filepath.Join(dir, "k"), filepath.Join(dir, "bad")
	require.NoError(t, os.WriteFile(certFile, cert, 0o600))
	require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	require.NoError(t, os.WriteFile(bad, []byte("garbage"), 0o600))
	log := slog.New(slog.DiscardHandler)
	_, err := watchServerTLS(&config{tlsCertFile: bad, tlsKeyFile: keyFile}, log)
	require.ErrorContains(t, err, "--tls-cert-file, --tls-key-file, --tls-client-ca-file: "+bad+" holds no certificate in PEM")
	_, err = watchServerTLS(&config{tlsCertFile: certFile, tlsKeyFile: keyFile, tlsClientCAFile: bad}, log)
	require.ErrorContains(t, err, bad+" holds no certificate in PEM")
	watched, err := watchServerTLS(&config{}, log)
	require.NoError(t, err)
	creds, err := (&service{config: new(config), tls: watched}).grpcCredentials(prometheus.NewRegistry())
	require.NoError(t, err)
	require.Nil(t, creds, "plaintext")
}

// helloOnly is a connection whose client reads nothing until it is over.
type helloOnly struct {
	net.Conn
	over <-chan struct{}
}

func (h *helloOnly) Read([]byte) (int, error) {
	<-h.over
	return 0, io.EOF
}

// A client that stalls within its handshake holds nobody up.
func TestStalledHandshakeGivesWay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		dir := t.TempDir()
		c := &config{tlsCertFile: filepath.Join(dir, "cert.pem"), tlsKeyFile: filepath.Join(dir, "key.pem"), maxHandshakes: 1, handshakeTimeout: time.Minute}
		cert, key := ca.issue(t, 10, "agentstatsd.test")
		require.NoError(t, os.WriteFile(c.tlsCertFile, cert, 0o600))
		require.NoError(t, os.WriteFile(c.tlsKeyFile, key, 0o600))
		watched, err := watchServerTLS(c, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		reg := prometheus.NewRegistry()
		creds, err := (&service{config: c, tls: watched, log: slog.New(slog.DiscardHandler)}).grpcCredentials(reg)
		require.NoError(t, err)
		clientConfig := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
		serve := func() (client net.Conn, ended chan error) {
			clientEnd, serverEnd := net.Pipe()
			ended = make(chan error, 1)
			go func() {
				_, _, err := creds.ServerHandshake(serverEnd)
				ended <- err
			}()
			return clientEnd, ended
		}

		first, firstEnded := serve()
		over := make(chan struct{})
		defer close(over)
		hello := &helloOnly{first, over}
		go func() { _ = tls.Client(hello, clientConfig).Handshake() }()
		synctest.Wait()
		require.Empty(t, firstEnded)
		began := time.Now()
		second, secondEnded := serve()
		require.NoError(t, tls.Client(second, clientConfig).Handshake())
		require.NoError(t, <-secondEnded)
		require.Error(t, <-firstEnded)
		require.Less(t, time.Since(began), 2*time.Second)
		require.NoError(t, first.Close())
		require.Equal(t, 1.0, evicted(t, reg))
	})
}

// evicted returns how many handshakes gave way.
func evicted(t *testing.T, reg *prometheus.Registry) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "reason" && l.GetValue() == "evicted" {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	t.Fatal("no counter of evicted handshakes")
	return 0
}
