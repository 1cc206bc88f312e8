package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/protobuf/proto"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// The scraper's credentials where it needs some.
const (
	goodUser     = "prometheus"
	goodPassword = "correct horse battery staple"
)

// scrapers reach the HTTP listener.
var scrapers = []attack{
	{name: "slow readers", prepare: fill, run: slowReaders(attackerDialer, 200, "")},
	{name: "slow readers of gzip", prepare: fill, run: slowReaders(attackerDialer, 200, "Accept-Encoding: gzip\r\n")},
	// As many as one address may have, and the scraper of that address besides.
	{name: "slow readers of the scraper's address", prepare: fill, run: slowReaders(new(net.Dialer), 120, "")},
	{name: "slow headers", run: func(ctx context.Context, at target) (int64, error) {
		return openConnections(ctx, at.HTTP, 4000, []byte("GET / HTTP/1.1\r\nHost: x\r\nX-A: "))
	}},
	{name: "silent HTTP connections", run: func(ctx context.Context, at target) (int64, error) {
		return openConnections(ctx, at.HTTP, 4000, nil)
	}},
	{name: "many scrapes", run: func(ctx context.Context, at target) (int64, error) {
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 10 * time.Second}
		return repeat(ctx, 64, func() error { return getAll(ctx, client, at.url("/metrics"), "", "") })
	}},
	{name: "many status pages", prepare: fill, run: func(ctx context.Context, at target) (int64, error) {
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 10 * time.Second}
		pages := []string{
			"/status", "/status/agents?page_size=1000", "/status/cardinality?by=agent&limit=10000", "/status/cardinality?cost=1&what_if_labels=username",
			"/api/v1/status/replicas", "/status/config",
		}
		var n atomic.Int64
		return repeat(ctx, 64, func() error {
			return getAll(ctx, client, at.url(pages[n.Add(1)%int64(len(pages))]), "", "")
		})
	}},
}

// scrapersTLS reach it with TLS, and so over HTTP/2.
var scrapersTLS = []attack{
	{name: "garbage for TLS", run: func(ctx context.Context, at target) (int64, error) { return garbage(ctx, at.HTTP) }},
	{name: "slow readers of one connection", prepare: fill, run: slowStreams},
}

// guessers guess passwords.
var guessers = []attack{
	{name: "guessed passwords", run: func(ctx context.Context, at target) (int64, error) {
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 30 * time.Second}
		return repeat(ctx, 64, func() error {
			_ = getAll(ctx, client, at.url("/metrics"), goodUser, rand.Text()) // answered late, if at all
			return nil
		})
	}},
}

func getAll(ctx context.Context, client *http.Client, url, user, password string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// fill makes a scrape larger than what the buffers of connections take.
func fill(_ context.Context, at target) error {
	ctx := context.Background() // the sessions stay open
	conn, err := at.dial()
	if err != nil {
		return err
	}
	for a := range at.Agents {
		s, err := openSession(ctx, conn, at.First+a)
		if err != nil {
			return err
		}
		report := &pb.Stats{}
		for i := range 600 {
			report.Metrics = append(report.Metrics, gauge(fmt.Sprintf("fill_%d", i%50), "a", fmt.Sprintf("%d-%s", i, strings.Repeat("x", 1000))))
		}
		if proto.Size(report) > megabyte {
			return fmt.Errorf("a report of %d bytes", proto.Size(report))
		}
		if err := s.Send(&pb.ConnectRequest{Sequence: 1, Stats: report, AckNow: true}); err != nil {
			return err
		}
		if _, err := s.Recv(); err != nil {
			return err
		}
	}
	return nil
}

// slowReaders ask for scrapes on so many connections and read none. Those of one address
// that are more than it may have take the places of others that are idle: also the
// scraper's, between two scrapes, if they have its address.
func slowReaders(dialer *net.Dialer, connections int, header string) func(ctx context.Context, at target) (int64, error) {
	return func(ctx context.Context, at target) (int64, error) {
		var all []net.Conn
		defer func() { closeAll(all) }()
		var asked int64
		for ctx.Err() == nil {
			if len(all) < connections {
				c, err := dialer.DialContext(ctx, "tcp", at.HTTP)
				if err != nil {
					pause(ctx, 50*time.Millisecond)
					continue
				}
				_ = c.(*net.TCPConn).SetReadBuffer(4096)
				all = append(all, c)
			}
			c := all[int(asked)%len(all)]
			_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n"+header+"\r\n")
			asked++
			pause(ctx, 5*time.Millisecond)
		}
		return asked, nil
	}
}

// slowStreams ask for scrapes on streams of few HTTP/2 connections and read
// nothing of the answers.
func slowStreams(ctx context.Context, at target) (int64, error) {
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	var asked int64
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.url("/metrics"), nil)
		if err != nil {
			return asked, err
		}
		go func() {
			resp, err := transport.RoundTrip(req)
			if err != nil {
				return
			}
			<-ctx.Done()
			_ = resp.Body.Close()
		}()
		asked++
		pause(ctx, 5*time.Millisecond)
	}
	return asked, nil
}

// webTLS returns the options of an HTTP listener with TLS.
func webTLS(t *testing.T) []string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certFile := tempFile(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	keyFile := tempFile(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}))
	config := fmt.Sprintf("tls_server_config:\n  cert_file: %s\n  key_file: %s\n", certFile, keyFile)
	return []string{"--web-config-file", tempFile(t, "web.yml", []byte(config))}
}

// webPassword returns the options of an HTTP listener with a password.
func webPassword(t *testing.T) []string {
	hash, err := bcrypt.GenerateFromPassword([]byte(goodPassword), 10)
	require.NoError(t, err)
	return []string{"--web-config-file", tempFile(t, "web.yml", fmt.Appendf(nil, "basic_auth_users:\n  %s: %s\n", goodUser, hash))}
}
