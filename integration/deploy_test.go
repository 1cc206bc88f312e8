package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/bcrypt"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

const (
	kubernetesDir    = "../deploy/kubernetes"
	prometheusConfig = "../deploy/prometheus/prometheus.yml"
)

// kubeconform checks a manifest against the schemas in the tree.
type kubeconform string

func buildKubeconform(t *testing.T) kubeconform {
	t.Helper()
	cmd := exec.Command("go", "tool", "-modfile=tools/go.mod", "-n", "kubeconform")
	cmd.Dir = ".."
	path, err := cmd.Output()
	require.NoError(t, err)
	return kubeconform(strings.TrimSpace(string(path)))
}

func (k kubeconform) check(manifest []byte) (string, error) {
	cmd := exec.Command(string(k), "-strict",
		"-schema-location", filepath.Join(kubernetesDir, "schemas", "{{.ResourceKind}}{{.KindSuffix}}.json"), "-")
	cmd.Stdin = bytes.NewReader(manifest)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// chartFile is what the chart makes of one of its sets of values.
func chartFile(values string) string {
	return filepath.Join("../deploy/helm/testdata/golden", values+".yaml")
}

// certificateFiles are a certificate for 127.0.0.1 that signs itself, as a Secret of
// cert-manager has it.
func certificateFiles(t *testing.T) (files, *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	roots := x509.NewCertPool()
	roots.AddCert(writeCertificate(t, dir))
	made := make(files)
	for _, name := range []string{"tls.crt", "tls.key"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		made[name] = string(text)
	}
	made["ca.crt"] = made["tls.crt"]
	return made, roots
}

// The rest of a token, which is 32 bytes or more.
const tokenText = "token of 32 bytes or thereabouts: "

// What the chart makes of one pod starts the service: its arguments, its environment, its
// configuration, its volumes; and the probes pass, also where scrapes need TLS and a
// password.
func TestServiceRunsAsDeployed(t *testing.T) {
	beside(t)
	for name, file := range map[string]string{
		"single": chartFile("single"), "single-full": chartFile("single-full"), "single-plaintext": chartFile("single-plaintext"), "plain manifest": "../deploy/kubernetes/single.yaml",
	} {
		t.Run(name, func(t *testing.T) {
			certificate, roots := certificateFiles(t)
			hash, err := bcrypt.GenerateFromPassword([]byte("hunter2"), bcrypt.MinCost)
			require.NoError(t, err)
			web := maps.Clone(certificate)
			web["web-config.yml"] = "tls_server_config: {cert_file: tls.crt, key_file: tls.key}\nbasic_auth_users: {prometheus: " + string(hash) + "}\n"
			r := readRelease(t, file, map[string]files{
				"agentstatsd-tls":          certificate,
				"agentstatsd-coderd-token": {"token": tokenText + "coderd"},
				"coderd-ca":                {"ca.crt": certificate["ca.crt"]},
				"agentstatsd-web":          web,
				"proxies":                  {"token": tokenText + "proxies"},
			})
			p := newPod(t, r, "agentstatsd")
			p.start(t)
			p.waitReady(t)

			secure := name != "single-plaintext"
			requireServes(t, p, secure, roots)
			require.NoFileExists(t, filepath.Join(p.dirs["data"], "data", "coderd-token"), "the mounted token is used")
			info, err := os.Stat(filepath.Join(p.dirs["data"], "data"))
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
			if name == "single-full" {
				require.Equal(t, http.StatusUnauthorized, statusOf(t, anyServer, "https://"+p.ports["http-metrics"]+"/metrics"))
				req, err := http.NewRequest(http.MethodGet, "https://"+p.ports["http-metrics"]+"/metrics", nil)
				require.NoError(t, err)
				req.SetBasicAuth("prometheus", "hunter2")
				resp, err := anyServer.Do(req)
				require.NoError(t, err)
				body, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				require.Contains(t, string(body), `agentstatsd_limit{what="agents"} 5e+06`, "what the ConfigMap says is in force")
			} else {
				require.Equal(t, http.StatusOK, statusOf(t, http.DefaultClient, "http://"+p.ports["http-metrics"]+"/metrics"))
			}
			if name == "single-plaintext" {
				resp, err := http.Post("http://"+p.ports["http-metrics"]+"/-/reload", "", nil)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				require.Equal(t, http.StatusOK, resp.StatusCode, "as the sidecar asks")
			}
			forced, _ := p.stop()
			require.False(t, forced)
		})
	}
}

// anyServer asks whoever answers.
var anyServer = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

// requireServes: the gRPC listener has the certificate of the Secret, or none.
func requireServes(t *testing.T, p *pod, secure bool, roots *x509.CertPool) {
	t.Helper()
	conn, err := tls.Dial("tcp", p.ports["grpc"], &tls.Config{RootCAs: roots, NextProtos: []string{"h2"}})
	if !secure {
		require.ErrorContains(t, err, "first record does not look like a TLS handshake")
		return
	}
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// What the chart makes of replicas runs over PostgreSQL, and over NATS where it says so, and
// they know of each other.
func TestReplicasRunAsDeployed(t *testing.T) {
	beside(t)
	for name, file := range map[string]string{"replicated": chartFile("replicated"), "replicated-full": chartFile("replicated-full"), "plain manifest": "../deploy/kubernetes/replicated.yaml"} {
		t.Run(name, func(t *testing.T) {
			certificate, roots := certificateFiles(t)
			url := postgrestest.Start(t).CreateDatabase(t)
			r := readRelease(t, file, map[string]files{
				"agentstatsd-tls":          certificate,
				"agentstatsd-coderd-token": {"token": tokenText + "coderd"},
				"agentstatsd-database":     {"url": url, "uri": url},
				"agentstatsd-nats":         {"url": startNATS(t)},
			})
			pods := []*pod{newPod(t, r, "agentstatsd"), newPod(t, r, "agentstatsd")}
			for _, p := range pods {
				p.start(t)
			}
			for _, p := range pods {
				p.waitReady(t)
				requireServes(t, p, true, roots)
				require.Eventually(t, func() bool {
					return strings.Contains(textAt(t, "http://"+p.ports["http-metrics"]+"/metrics"), "\nagentstatsd_replicas_live 2\n")
				}, 30*time.Second, 50*time.Millisecond)
				require.Equal(t, name != "replicated-full", strings.Contains(p.log.tail(64<<10), `"pubsub":"database"`), "where notifications go")
			}
		})
	}
}

// What the chart makes of a bridge is ready, finds the service of the same release or the one
// that it was given, and verifies it.
func TestBridgeRunsAsDeployed(t *testing.T) {
	beside(t)
	coder := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(coder.Close)
	certificate, _ := certificateFiles(t)
	service := readRelease(t, chartFile("bridge"), map[string]files{"agentstatsd-tls": certificate})
	s := newPod(t, service, "agentstatsd")
	s.start(t)
	s.waitReady(t)
	token := service.secrets["agentstatsd-coderd-token"]["token"]
	hash, err := bcrypt.GenerateFromPassword([]byte("hunter2"), bcrypt.MinCost)
	require.NoError(t, err)
	for name, file := range map[string]string{"bridge": chartFile("bridge"), "bridge-alone": chartFile("bridge-alone"), "plain manifest": "../deploy/kubernetes/bridge.yaml"} {
		t.Run(name, func(t *testing.T) {
			r := readRelease(t, file, map[string]files{
				"agentstatsd-tls":          certificate,
				"agentstatsd-coderd-token": {"token": token},
				"agentstatsd-api-token":    {"token": "api token"},
				"stats":                    {"token": token},
				"stats-ca":                 {"ca.crt": certificate["ca.crt"]},
				"bridge-tls":               certificate,
				"bridge-web":               {"web-config.yml": "basic_auth_users: {prometheus: " + string(hash) + "}\n"},
			})
			workload := "agentstatsd-bridge"
			p := newPod(t, r, workload,
				"agentstatsd.coder.svc:2113", s.ports["grpc"], "stats.example.com:2113", s.ports["grpc"],
				"http://coder.coder.svc", coder.URL, "dns+http://coder-metrics.coder.svc:2112/", coder.URL)
			before := strings.Count(s.log.tail(64<<10), "coderd has connected")
			p.start(t)
			p.waitReady(t)
			if name == "bridge-alone" { // it dials the service for an agent, and has no other reason
				require.Equal(t, http.StatusUnauthorized, statusOf(t, anyServer, "http://"+p.ports["http-metrics"]+"/metrics"))
				conn, err := tls.Dial("tcp", p.ports["http-agents"], &tls.Config{InsecureSkipVerify: true})
				require.NoError(t, err)
				require.NoError(t, conn.Close())
			} else {
				require.Eventually(t, func() bool {
					return strings.Count(s.log.tail(64<<10), "coderd has connected") > before
				}, 30*time.Second, 50*time.Millisecond)
				require.Equal(t, http.StatusNotFound, statusOf(t, http.DefaultClient, "http://"+p.ports["http-agents"]+"/"), "coderd's answer")
			}
		})
	}
}

// statusOf returns the status of an answer.
func statusOf(t *testing.T, client *http.Client, url string) int {
	t.Helper()
	resp, err := client.Get(url)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode
}

// textAt returns what is served at a URL.
func textAt(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

// writeCertificate writes tls.crt and tls.key, as a Secret of type
// kubernetes.io/tls is mounted, for 127.0.0.1.
func writeCertificate(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "agentstatsd"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	for file, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: der},
		"tls.key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o440))
	}
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return certificate
}

// Prometheus takes its configuration, scrapes the default address with it, and
// as the ServiceMonitor says.
func TestPrometheusConfiguration(t *testing.T) {
	cfg, err := config.LoadFile(prometheusConfig, false, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	jobs, err := cfg.GetScrapeConfigs()
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	job := jobs[0]
	require.Equal(t, "/metrics", job.MetricsPath)
	require.Equal(t, "http", job.Scheme)
	require.Len(t, job.ServiceDiscoveryConfigs, 1)
	targets := job.ServiceDiscoveryConfigs[0].(discovery.StaticConfig)
	require.Len(t, targets, 1)
	require.Len(t, targets[0].Targets, 1)
	require.Equal(t, "localhost:2112", string(targets[0].Targets[0]["__address__"]))

	require.Equal(t, []config.ScrapeProtocol{config.PrometheusProto, config.PrometheusText0_0_4}, job.ScrapeProtocols)
	require.True(t, *job.ScrapeNativeHistograms)
	require.True(t, *job.AlwaysScrapeClassicHistograms)
	text, err := os.ReadFile(filepath.Join(kubernetesDir, "servicemonitor.yaml"))
	require.NoError(t, err)
	var object struct {
		Spec struct {
			ScrapeProtocols         []string `yaml:"scrapeProtocols"`
			ScrapeNativeHistograms  bool     `yaml:"scrapeNativeHistograms"`
			ScrapeClassicHistograms bool     `yaml:"scrapeClassicHistograms"`
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &object))
	monitor := object.Spec
	require.Equal(t, []string{"PrometheusProto", "PrometheusText0.0.4"}, monitor.ScrapeProtocols)
	require.True(t, monitor.ScrapeNativeHistograms)
	require.True(t, monitor.ScrapeClassicHistograms)
}
