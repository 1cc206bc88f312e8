package web

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/handshake"
)

// hello is a handler of small responses.
var hello = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })

// pair writes a certificate for "service" and its key.
func pair(t *testing.T, dir string, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{"service"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.crt"), cert, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(cert))
	return pool
}

func configFile(t *testing.T, dir, text string) string {
	t.Helper()
	path := filepath.Join(dir, "web.yml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func load(t *testing.T, path string, log io.Writer) *Config {
	t.Helper()
	c, err := LoadConfig(path, slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	return c
}

const withTLS = "tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n"

// A body that never comes keeps nobody waiting.
func TestRequestsWithBodiesAreRefused(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		lis := start(t, hello, Options{}, nil)
		for _, header := range []string{"Content-Length: 1000", "Transfer-Encoding: chunked", "Content-Length: 99999999999"} {
			began := time.Now()
			c := lis.dial("10.0.0.1:1")
			resp := raw(t, c, "GET / HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n")
			require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
			require.True(t, resp.Close)
			_, err := io.Copy(io.Discard, c)
			require.NoError(t, err)
			require.LessOrEqual(t, time.Since(began), 2*bodyTimeout, "and its connection is closed")
			c.Close()
		}
		c := lis.dial("10.0.0.1:1")
		require.Equal(t, http.StatusOK, raw(t, c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").StatusCode)
		c.Close()
	})
}

// Clients that say nothing, or say it slowly, are closed.
func TestSlowRequestsEnd(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		lis := start(t, hello, Options{}, nil)
		for _, text := range []string{"", "GET / HTTP/1.1\r\nHost: x\r\nX-A: "} {
			c := lis.dial("10.0.0.1:1")
			began := time.Now()
			_, _ = io.WriteString(c, text)
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				_, _ = io.Copy(io.Discard, c)
			}()
			for range 60 {
				time.Sleep(time.Second)
				if _, err := io.WriteString(c, "a"); err != nil {
					break
				}
			}
			<-closed
			require.LessOrEqual(t, time.Since(began), 15*time.Second)
			c.Close()
		}
	})
}

// One connection too many takes the place of one on which nothing is asked, and never
// of one that is being served.
func TestConnectionsAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		opts    Options
		address string
	}{
		"of an address": {Options{MaxConnsPerAddress: 3}, "10.0.0.1:9"},
		"in all":        {Options{MaxConns: 3}, "10.0.0.2:9"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				var log bytes.Buffer
				lis := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/wait" {
						<-release
					}
					hello(w, r)
				}), c.opts, &log)
				isClosed := func(c net.Conn) bool {
					if c.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
						return true
					}
					_, err := c.Read(make([]byte, 1))
					return errors.Is(err, io.EOF)
				}
				busy := lis.dial("10.0.0.1:1")
				go func() { _, _ = io.WriteString(busy, "GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") }()
				synctest.Wait()
				idle := lis.dial("10.0.0.1:2")
				require.Equal(t, http.StatusOK, raw(t, idle, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").StatusCode)
				silent := lis.dial("10.0.0.1:3")
				time.Sleep(time.Second)

				fresh := lis.dial(c.address)
				require.Equal(t, http.StatusOK, raw(t, fresh, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").StatusCode)
				require.True(t, isClosed(silent), "whoever asks nothing goes first")
				require.False(t, isClosed(idle))
				time.Sleep(time.Second)

				second := lis.dial(c.address)
				require.Equal(t, http.StatusOK, raw(t, second, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").StatusCode)
				require.True(t, isClosed(idle), "then whoever was idle the longest")

				for i := range 10 {
					go func() { _ = lis.dial(fmt.Sprintf("10.0.0.1:%d", 20+i)) }()
					synctest.Wait()
				}
				require.Equal(t, 1, strings.Count(log.String(), "connections of HTTP are closed to stay within a limit"), "a line a minute")
				close(release)
				resp := raw(t, busy, "")
				require.Equal(t, http.StatusOK, resp.StatusCode, "whoever is served goes on")
				for _, c := range []net.Conn{busy, idle, silent, fresh, second} {
					c.Close()
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

func TestPrefixOf(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3:99":            "10.1.2.3/32",
		"[::ffff:10.1.2.3]:99":   "10.1.2.3/32",
		"[2001:db8:1:2:3::4]:99": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:99":      "fe80::/64",
		"nonsense":               "invalid Prefix",
	} {
		require.Equal(t, want, prefixOf(text).String())
	}
}

// Over one connection of HTTP/2, streams that are not read lose their slots too, and
// end by a reset.
func TestStalledStreamsOfHTTP2(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		conf := &tls.Config{RootCAs: pair(t, dir, 1)}
		scrapes := scrapesOf(t, large(), 4)
		lis := start(t, scrapes, Options{Config: load(t, configFile(t, dir, withTLS), io.Discard), WriteTimeout: time.Minute}, nil)
		good := lis.client("10.0.0.1:1", conf)
		bad := lis.client("10.0.0.1:2", conf)
		_, size := readScrape(t, good, "https")
		require.Equal(t, largeBytes, size)
		var bodies []io.Closer
		for range 4 {
			resp, err := bad.Get("https://service/metrics")
			if err != nil {
				break
			}
			require.Equal(t, 2, resp.ProtoMajor)
			bodies = append(bodies, resp.Body)
			if len(bodies) == 3 {
				break // strangers have no more
			}
		}
		for range 10 {
			status, size := readScrape(t, good, "https")
			require.Equal(t, []int{200, largeBytes}, []int{status, size})
		}
		third := lis.client("10.0.0.3:1", conf)
		status, size := readScrape(t, third, "https")
		require.Equal(t, []int{200, largeBytes}, []int{status, size}, "a stranger is served after a stalled one")
		for _, b := range bodies {
			b.Close()
		}
		for _, c := range []*http.Client{good, bad, third} {
			c.CloseIdleConnections()
		}
		time.Sleep(time.Minute)
	})
}

// A renewed pair is served; one that does not fit changes nothing.
func TestPairOfTheHTTPListenerIsReloaded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		roots := pair(t, dir, 1)
		var logged bytes.Buffer
		conf := load(t, configFile(t, dir, withTLS), &logged)
		require.True(t, conf.TLS())
		lis := start(t, hello, Options{Config: conf}, nil)
		serial := func() int64 {
			c := lis.client("10.0.0.1:1", &tls.Config{RootCAs: roots})
			defer c.CloseIdleConnections()
			resp, err := c.Get("https://service/")
			require.NoError(t, err)
			defer resp.Body.Close()
			return resp.TLS.PeerCertificates[0].SerialNumber.Int64()
		}
		require.EqualValues(t, 1, serial())
		oldKey, err := os.ReadFile(filepath.Join(dir, "tls.key"))
		require.NoError(t, err)
		newRoots := pair(t, dir, 2)
		newKey, err := os.ReadFile(filepath.Join(dir, "tls.key"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.key"), oldKey, 0o600))
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, serial())
		require.Contains(t, logged.String(), "is not that of the certificate")
		configFile(t, dir, "tls_server_config: [")
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, serial())
		configFile(t, dir, "")
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, serial())
		require.Contains(t, logged.String(), "which needs a restart")
		configFile(t, dir, withTLS)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.key"), newKey, 0o600))
		time.Sleep(time.Minute)
		roots = newRoots
		require.EqualValues(t, 2, serial())
		require.NotContains(t, logged.String(), "BEGIN")
		time.Sleep(10 * time.Minute)
	})
}

func hashOf(t *testing.T, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	require.NoError(t, err)
	return string(hash)
}

// 30 clients guess passwords, from the scraper's own address too. Meanwhile who knows
// its password is answered at once, and a new scraper within some seconds.
func TestGuessersDoNotStarveScrapers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		path := configFile(t, t.TempDir(), "basic_auth_users:\n  prom: "+hashOf(t, "correct horse")+"\n")
		lis := start(t, hello, Options{Config: load(t, path, io.Discard), MaxConnsPerAddress: 200}, nil)
		ask := func(c *http.Client, user, password string) int {
			r, err := http.NewRequest(http.MethodGet, "http://service/metrics", nil)
			require.NoError(t, err)
			if user != "" {
				r.SetBasicAuth(user, password)
			}
			resp, err := c.Do(r)
			if err != nil {
				return 0
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			return resp.StatusCode
		}
		good := lis.client("10.0.0.1:1", nil)
		require.Equal(t, http.StatusUnauthorized, ask(good, "", ""))
		require.Equal(t, http.StatusOK, ask(good, "prom", "correct horse"))
		var stop atomic.Bool
		guesses := make([]atomic.Int64, 30)
		done := make(chan struct{})
		for i := range guesses {
			go func() {
				defer func() { done <- struct{}{} }()
				c := lis.client(fmt.Sprintf("10.0.0.1:%d", 100+i), nil)
				defer c.CloseIdleConnections()
				for j := 0; !stop.Load(); j++ {
					user := "prom"
					if i == 0 && j == 0 {
						user = "root" // does not exist
					}
					if code := ask(c, user, fmt.Sprint("guess", i, j)); code == http.StatusOK {
						t.Error("a guess was right")
					}
					guesses[i].Add(1)
				}
			}()
		}
		for i := range 3 {
			time.Sleep(time.Second)
			began := time.Now()
			require.Equal(t, http.StatusOK, ask(good, "prom", "correct horse"))
			require.Zero(t, time.Since(began))
			fresh := lis.client(fmt.Sprintf("10.0.0.1:%d", 1000+i), nil)
			require.Equal(t, http.StatusOK, ask(fresh, "prom", "correct horse"))
			fresh.CloseIdleConnections()
		}
		stop.Store(true)
		for range guesses {
			<-done
		}
		total := int64(0)
		for i := range guesses {
			total += guesses[i].Load()
		}
		require.LessOrEqual(t, total, int64(30*10), "a wrong one takes a second")
		good.CloseIdleConnections()
		time.Sleep(time.Minute)
	})
}

// The newest guess of an address goes first, addresses take turns, and the line is
// bounded.
func TestGuessesWaitInLine(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newPasswords()
		require.True(t, p.await(t.Context(), address(1)))
		order := make(chan int, 10*maxGuesses)
		for i := range 3 {
			go func() {
				if p.await(t.Context(), address(1)) {
					order <- i
				}
			}()
			synctest.Wait()
		}
		go func() {
			if p.await(t.Context(), address(2)) {
				order <- 100
			}
		}()
		synctest.Wait()
		var got []int
		for range 4 {
			p.finish(address(1))
			synctest.Wait()
			got = append(got, <-order)
		}
		require.Equal(t, []int{100, 2, 1, 0}, got)
		for range 2 * maxGuesses {
			go func() {
				if !p.await(t.Context(), address(1)) {
					order <- -1
				}
			}()
			synctest.Wait()
		}
		require.Len(t, order, maxGuesses)
		time.Sleep(guessWait + time.Millisecond)
		require.Len(t, order, 2*maxGuesses)
		p.finish(address(1))
		p.mu.Lock()
		defer p.mu.Unlock()
		require.Empty(t, p.waiting)
		require.False(t, p.checking)
	})
}

func TestRateLimitCountsWhoIsNotKnown(t *testing.T) {
	path := configFile(t, t.TempDir(), "basic_auth_users:\n  prom: "+hashOf(t, "correct horse")+"\nrate_limit:\n  interval: 1h\n  burst: 2\n"+
		"http_server_config:\n  headers:\n    X-Frame-Options: deny\n")
	bubble.Test(t, func(t *testing.T) {
		lis := start(t, hello, Options{Config: load(t, path, io.Discard)}, nil)
		c := lis.client("10.0.0.1:1", nil)
		var codes []int
		for _, password := range []string{"correct horse", "wrong", "wrong", "correct horse"} {
			r, err := http.NewRequest(http.MethodGet, "http://service/", nil)
			require.NoError(t, err)
			r.SetBasicAuth("prom", password)
			resp, err := c.Do(r)
			require.NoError(t, err)
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			require.Equal(t, "deny", resp.Header.Get("X-Frame-Options"))
			codes = append(codes, resp.StatusCode)
		}
		require.Equal(t, []int{200, 401, 429, 200}, codes)
		c.CloseIdleConnections()
		time.Sleep(time.Minute)
	})
}

// What is wrong with the file is said without showing what may be secret in it.
func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	pair(t, dir, 1)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "garbage"), []byte("garbage"), 0o600))
	for text, want := range map[string]string{
		"basic_auth_users:\n  prom: hunter2hunter2\n":                                           `web.yml: basic_auth_users: that of "prom" is no bcrypt hash`,
		"basic_auth_users: hunter2hunter2\n":                                                    "web.yml: yaml: unmarshal errors:\n  line 1: cannot unmarshal !!str (a value) into map",
		"nonsense: 1\n":                                                                         "field nonsense not found",
		"tls_server_config:\n  cert_file: tls.crt\n":                                            "tls_server_config needs a certificate and a key",
		"tls_server_config:\n  cert_file: tls.key\n  key_file: tls.crt\n":                       "they are swapped",
		"tls_server_config:\n  cert_file: none\n  key_file: tls.key\n":                          "none: no such file",
		withTLS + "  client_ca_file: garbage\n  client_auth_type: RequireAndVerifyClientCert\n": "garbage holds no certificate in PEM",
		withTLS + "  client_auth_type: Nonsense\n":                                              "tls_server_config: invalid ClientAuth: Nonsense",
		withTLS + "  min_version: TLS99\n":                                                      "unknown TLS version: TLS99",
		"http_server_config:\n  headers:\n    X-Evil: x\n":                                      `http_server_config.headers: "X-Evil" cannot have the value "x"`,
	} {
		_, err := LoadConfig(configFile(t, dir, text), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "hunter")
	}
	_, err := LoadConfig(filepath.Join(dir, "missing.yml"), slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "missing.yml: no such file")
	require.False(t, (*Config)(nil).TLS())
}

func TestErrorLog(t *testing.T) {
	var out bytes.Buffer
	logged := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	gate, err := handshake.New(handshake.Options{}, "prometheus", prometheus.NewRegistry(), logged)
	require.NoError(t, err)
	l := newErrorLog(logged, gate)
	l.Printf("http: TLS handshake error from %s: %v", "10.0.0.1:99", "tls: no")
	l.Printf("http: TLS handshake error from %s: %v", "[::1]:99", "tls: no: more")
	l.Printf("http: panic serving 10.0.0.1:99: a bug\nstack")
	l.Printf("http: Accept error: too many open files; retrying in 5ms")
	require.Equal(t, strings.Join([]string{
		`level=WARN msg="TLS handshakes failed" handshakes=1 listener=prometheus reason=other peer=10.0.0.1 error="tls: no"`,
		`level=ERROR msg="an HTTP handler panicked" panics=1 peer=10.0.0.1 panic="a bug\nstack"`,
		`level=WARN msg="HTTP server" errors=1 error="http: Accept error: too many open files; retrying in 5ms"`,
	}, "\n")+"\n", out.String())
}
