package targets

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
)

// A coderd behind a proxy with a certificate and authentication of its own is scraped as
// Prometheus would. A secret that is replaced is read for the next scrape.
func TestHTTPConfig(t *testing.T) {
	for name, authentication := range map[string]string{
		"bearer": "authorization: {credentials_file: secret}",
		"basic":  "basic_auth: {username: scraper, password_file: secret}",
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				const address = "coderd-0:2112"
				s := newSetup(t)
				p := newProcess(100)
				p.requests.Add(3)
				ca := s.serveTLS(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					user, password, _ := r.BasicAuth()
					if r.Header.Get("Authorization") != "Bearer right-secret" && (user != "scraper" || password != "right-secret") {
						w.WriteHeader(http.StatusUnauthorized)
						return
					}
					p.handler().ServeHTTP(w, r)
				}))
				dir := t.TempDir()
				write := func(name, text string) string {
					path := filepath.Join(dir, name)
					require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
					return path
				}
				write("ca.pem", string(ca))
				write("secret", "wrong-secret")
				path := write("http.yaml", authentication+"\ntls_config: {ca_file: ca.pem, server_name: example.com}\n")
				b := s.start(Options{URLs: []string{"https://" + address + "/"}, HTTPConfigFile: path})
				time.Sleep(time.Second)
				synctest.Wait()
				require.Equal(t, 1, b.scrapes(address, outcomeStatus), b.Warnings())
				write("secret", "right-secret")
				time.Sleep(interval)
				synctest.Wait()
				s.requireServed("coderd_test_total", "coderd_test_total 3")
				require.Equal(t, 1, b.scrapes(address, outcomePushed))
				require.NotContains(t, b.log.String(), "-secret")

				write("ca.pem", "none")
				time.Sleep(interval)
				synctest.Wait()
				require.Equal(t, 1, b.scrapes(address, outcomeUnreachable), b.Warnings())
			})
		})
	}
}

// A configuration that cannot be used is refused at the start.
func TestHTTPConfigIsChecked(t *testing.T) {
	conn, err := client.Dial("127.0.0.1:1", client.DialOptions{Plaintext: true})
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	for text, want := range map[string]string{
		"authorisation: {}":  "field authorisation not found",
		"basic_auth: marked": "cannot unmarshal !!str (a value) into",
		"basic_auth: {username: a}\nbearer_token: marked":    "at most one of",
		"tls_config: {ca_file: none.pem}":                    "none.pem",
		"tls_config: {ca_file: /dev/null, cert_file: a.pem}": "cert",
	} {
		path := filepath.Join(t.TempDir(), "http.yaml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := New(conn, Options{URLs: []string{first}, HTTPConfigFile: path}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "HTTP configuration of targets (--coderd-metrics-http-config-file): ")
		require.NotContains(t, fmt.Sprint(err), "marked")
	}
}
