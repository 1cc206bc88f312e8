package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/simulate"
)

// certificates are issued by one authority, over and over.
type certificates struct {
	t      *testing.T
	dir    string
	key    *ecdsa.PrivateKey
	ca     *x509.Certificate
	serial int64
	age    time.Duration // of those that are issued
	life   time.Duration // that is left to them
}

func newCertificates(t *testing.T) *certificates {
	t.Helper()
	c := &certificates{t: t, dir: t.TempDir(), age: time.Hour, life: time.Hour}
	var err error
	c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	require.NoError(t, err)
	c.ca, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	c.write("ca.pem", "CERTIFICATE", der)
	c.renew()
	return c
}

func (c *certificates) path(name string) string { return filepath.Join(c.dir, name) }

func (c *certificates) write(name, kind string, der []byte) {
	require.NoError(c.t, os.WriteFile(c.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// renew writes another certificate and its key, one after the other.
func (c *certificates) renew() {
	c.serial++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(c.t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1000 + c.serial), DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-c.age), NotAfter: time.Now().Add(c.life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, c.ca, key.Public(), c.key)
	require.NoError(c.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(c.t, err)
	c.write("tls.crt", "CERTIFICATE", der)
	c.write("tls.key", "PRIVATE KEY", keyDER)
}

// untilDone calls f over and over, with a pause, until done is closed.
func untilDone(group *sync.WaitGroup, done <-chan struct{}, pause time.Duration, f func()) {
	group.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(pause):
				f()
			}
		}
	})
}

// TestReloadUnderLoad reloads a service all the time: right files, wrong ones, renewed
// certificates and tokens. Meanwhile agents report over TLS, new connections are made, and
// Prometheus scrapes. Nothing of that fails, and no stream breaks.
func TestReloadUnderLoad(t *testing.T) {
	beside(t)
	const oldToken, newToken = "the-old-token-of-coderd", "the-new-token-of-coderd"
	certs := newCertificates(t)
	file, tokens, simulated := certs.path("config.yaml"), certs.path("tokens"), certs.path("simulated")
	write := func(path, text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	write(file, "agents:\n  max_agents: 1000\n")
	write(tokens, "old: "+oldToken+"\n")
	write(simulated, oldToken)
	s := newService(t, "--config", file, "--coderd-token-file", tokens, "--web-enable-lifecycle",
		"--tls-cert-file", certs.path("tls.crt"), "--tls-key-file", certs.path("tls.key"), "--report-interval", "1s")
	s.start(t)
	sim := runSimulation(t, "--target", strings.Replace(s.grpcAddr, "127.0.0.1", "localhost", 1), "--coderd-token-file", simulated,
		"--tls-ca-file", certs.path("ca.pem"), "--agents", "50", "--metadata-interval", "1s", "--json")

	roots := x509.NewCertPool()
	roots.AddCert(certs.ca)
	var handshakes, scrapes, failed atomic.Int64
	serials := make(map[string]bool)
	var group sync.WaitGroup
	done := make(chan struct{})
	untilDone(&group, done, 10*time.Millisecond, func() {
		conn, err := tls.Dial("tcp", s.grpcAddr, &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: []string{"h2"}})
		if err != nil {
			t.Errorf("handshake: %v", err)
			failed.Add(1)
			return
		}
		serials[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		handshakes.Add(1)
		_ = conn.Close()
	})
	untilDone(&group, done, 20*time.Millisecond, func() {
		resp, err := s.get("/metrics")
		if err != nil {
			t.Errorf("scrape: %v", err)
			return
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("scrape: %s, %v", resp.Status, err)
		}
		scrapes.Add(1)
	})
	reload := func() (code int, changed int) {
		t.Helper()
		resp, err := http.Post("http://"+s.httpAddr+"/-/reload", "", nil)
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		var o struct{ Changed []any }
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&o))
		return resp.StatusCode, len(o.Changed)
	}

	began := time.Now()
	for i := 0; time.Since(began) < 4*time.Second; i++ {
		certs.renew()
		write(file, fmt.Sprintf("agents:\n  max_agents: %d\n  series_ttl: %ds\n  max_series: %d\nmetadata:\n  flush_interval: %dms\nlogging:\n  level: warn\n",
			1000+i, 100+i, 100_000+i, 200+i))
		code, changed := reload()
		require.Equal(t, http.StatusOK, code)
		require.GreaterOrEqual(t, changed, 4)
		write(file, "agents:\n  max_agents: many\n")
		require.NoError(t, s.cmd.Process.Signal(syscall.SIGHUP))
		code, _ = reload()
		require.Equal(t, http.StatusInternalServerError, code)
		write(tokens, fmt.Sprintf("old: %s\nnew-%d: %s\n", oldToken, i, newToken))
		write(file, "agents:\n  max_agents: 900\n")
		code, _ = reload()
		require.Equal(t, http.StatusOK, code)
		time.Sleep(100 * time.Millisecond)
	}

	// Who has the new token is let in; a stream of the old one goes on as long as that is there.
	dial := func(token string) pb.CoderdServiceClient {
		config, err := client.TLSFiles{CA: certs.path("ca.pem"), ServerName: "localhost"}.Config()
		require.NoError(t, err)
		conn, err := client.Dial(s.grpcAddr, client.DialOptions{TLS: config, Token: token})
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return pb.NewCoderdServiceClient(conn)
	}
	_, err := dial(newToken).ListAgents(t.Context(), &pb.ListAgentsRequest{})
	require.NoError(t, err)
	close(done)
	group.Wait()
	require.Zero(t, failed.Load())
	require.Greater(t, handshakes.Load(), int64(50))
	require.Greater(t, scrapes.Load(), int64(20))
	require.Greater(t, len(serials), 3, "renewed certificates were used")
	require.NoError(t, sim.stop())
	var summary simulate.Summary
	require.NoError(t, json.Unmarshal(sim.stdout.Bytes(), &summary))
	require.Zero(t, summary.Reconnects, "no stream broke")
	require.Zero(t, summary.Errors)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	old := dial(oldToken)
	_, err = old.ListAgents(ctx, &pb.ListAgentsRequest{})
	require.NoError(t, err)
	go func() {
		for ctx.Err() == nil {
			if _, err := old.ListAgents(ctx, &pb.ListAgentsRequest{}); grpcstatus.Code(err) == codes.Unauthenticated {
				ended <- err
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		ended <- ctx.Err()
	}()
	write(tokens, "new: "+newToken+"\n")
	code, _ := reload()
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, codes.Unauthenticated, grpcstatus.Code(<-ended), "a removed token is none any more")
	require.NotContains(t, s.log.tail(1<<20), "BEGIN")
	require.NotContains(t, s.log.tail(1<<20), newToken)
}
