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
	"fmt"
	"log/slog"
	"math/big"
	"net"
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
)

const (
	kubernetesDir    = "../deploy/kubernetes"
	prometheusConfig = "../deploy/prometheus/prometheus.yml"
)

// manifest is what the tests read of all kinds of manifests.
type manifest struct {
	Kind     string
	Metadata struct {
		Name   string
		Labels map[string]string
	}
	Spec struct {
		Replicas int
		Strategy struct{ Type string }
		// Selector is a Service's, or holds matchLabels.
		Selector  yaml.Node
		ClusterIP string `yaml:"clusterIP"`
		Ports     []struct {
			Name       string
			Port       int
			TargetPort string `yaml:"targetPort"`
		}
		ScrapeProtocols         []string `yaml:"scrapeProtocols"`
		ScrapeNativeHistograms  bool     `yaml:"scrapeNativeHistograms"`
		ScrapeClassicHistograms bool     `yaml:"scrapeClassicHistograms"`
		Endpoints               []struct{ Port, Path string }
		Template                struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				Containers []container
				Volumes    []struct {
					Name                  string
					PersistentVolumeClaim struct {
						ClaimName string `yaml:"claimName"`
					} `yaml:"persistentVolumeClaim"`
				}
			}
		}
	}
}

type container struct {
	Args  []string
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	LivenessProbe  probe `yaml:"livenessProbe"`
	ReadinessProbe probe `yaml:"readinessProbe"`
	VolumeMounts   []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

func readManifest(t *testing.T, file string) manifest {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(kubernetesDir, file))
	require.NoError(t, err)
	var m manifest
	require.NoError(t, yaml.Unmarshal(data, &m))
	return m
}

func selectorOf(t *testing.T, selector yaml.Node) map[string]string {
	t.Helper()
	var set map[string]string
	require.NoError(t, selector.Decode(&set))
	require.NotEmpty(t, set)
	return set
}

// selects reports whether the selector takes what has the labels.
func selects(selector, labels map[string]string) bool {
	for name, value := range selector {
		if labels[name] != value {
			return false
		}
	}
	return true
}

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

// Every manifest is what Kubernetes takes; a field that it would drop is found.
func TestKubernetesManifestsAreValid(t *testing.T) {
	beside(t)
	conform := buildKubeconform(t)
	files, err := filepath.Glob(filepath.Join(kubernetesDir, "*.yaml"))
	require.NoError(t, err)
	require.Len(t, files, 5)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		out, err := conform.check(data)
		require.NoError(t, err, "%s: %s", file, out)

		wrong := bytes.Replace(data, []byte("\nspec:\n"), []byte("\nspec:\n  misspelt: 1\n"), 1)
		out, err = conform.check(wrong)
		require.Error(t, err, file)
		require.Contains(t, out, "additional properties 'misspelt' not allowed", file)
	}
}

// What one manifest names, another has.
func TestKubernetesManifestsFitTogether(t *testing.T) {
	deployment := readManifest(t, "deployment.yaml")
	pod := deployment.Spec.Template
	require.Len(t, pod.Spec.Containers, 1)
	c := pod.Spec.Containers[0]
	ports := make(map[string]int)
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
	}

	// SQLite takes one process.
	require.Equal(t, 1, deployment.Spec.Replicas)
	require.Equal(t, "Recreate", deployment.Spec.Strategy.Type)
	var selector struct {
		MatchLabels map[string]string `yaml:"matchLabels"`
	}
	require.NoError(t, deployment.Spec.Selector.Decode(&selector))
	require.Equal(t, selector.MatchLabels, pod.Metadata.Labels)
	claim := readManifest(t, "persistentvolumeclaim.yaml")
	volumes := make(map[string]string)
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = v.PersistentVolumeClaim.ClaimName
	}
	for _, m := range c.VolumeMounts {
		require.Contains(t, volumes, m.Name)
	}
	require.Equal(t, claim.Metadata.Name, volumes["data"])

	grpc, metrics := readManifest(t, "service.yaml"), readManifest(t, "metrics-service.yaml")
	for _, service := range []manifest{grpc, metrics} {
		require.True(t, selects(selectorOf(t, service.Spec.Selector), pod.Metadata.Labels), service.Metadata.Name)
		for _, p := range service.Spec.Ports {
			require.Equal(t, p.Port, ports[p.TargetPort], service.Metadata.Name)
		}
	}
	require.Equal(t, "None", metrics.Spec.ClusterIP)
	require.Empty(t, grpc.Spec.ClusterIP)

	monitor := readManifest(t, "servicemonitor.yaml")
	require.NoError(t, monitor.Spec.Selector.Decode(&selector))
	require.True(t, selects(selector.MatchLabels, metrics.Metadata.Labels))
	require.False(t, selects(selector.MatchLabels, grpc.Metadata.Labels), "the pod would be scraped twice")
	require.Len(t, monitor.Spec.Endpoints, 1)
	require.Equal(t, metrics.Spec.Ports[0].Name, monitor.Spec.Endpoints[0].Port)
	require.Equal(t, "/metrics", monitor.Spec.Endpoints[0].Path)
}

// The arguments of the Deployment start the service, the mounts are where they
// look, and the probes pass.
func TestServiceRunsAsDeployed(t *testing.T) {
	beside(t)
	c := readManifest(t, "deployment.yaml").Spec.Template.Spec.Containers[0]
	ports := make(map[string]int)
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
	}
	mounts := make(map[string]string)
	for _, m := range c.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}

	s := newService(t)
	// As fsGroup makes it: the group writes. The service makes its directory there.
	volume := t.TempDir()
	require.NoError(t, os.Chmod(volume, 0o775|os.ModeSetgid))
	s.dataDir = filepath.Join(volume, "data")
	secrets := t.TempDir()
	certificate := writeCertificate(t, secrets)
	require.NoError(t, os.WriteFile(filepath.Join(secrets, "token"), []byte("a token of 32 bytes or thereabouts"), 0o440))

	require.Equal(t, "serve", c.Args[0])
	args := strings.Join(c.Args[1:], "\n")
	for _, local := range [][2]string{
		{"=" + mounts["data"] + "/data\n", "=" + s.dataDir + "\n"},
		{"=" + mounts["coderd-token"] + "/", "=" + secrets + "/"},
		{"=" + mounts["tls"] + "/", "=" + secrets + "/"},
		{fmt.Sprintf("=0.0.0.0:%d\n", ports["http-metrics"]), "=" + s.httpAddr + "\n"},
		{fmt.Sprintf("=0.0.0.0:%d\n", ports["grpc"]), "=" + s.grpcAddr + "\n"},
	} {
		require.Contains(t, args, local[0])
		args = strings.ReplaceAll(args, local[0], local[1])
	}
	s.args = strings.Split(args, "\n")
	s.start(t)

	for _, p := range []probe{c.LivenessProbe, c.ReadinessProbe} {
		require.Contains(t, ports, p.HTTPGet.Port)
		s.scrape(t, p.HTTPGet.Path)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	conn, err := tls.Dial("tcp", s.grpcAddr, &tls.Config{RootCAs: roots, NextProtos: []string{"h2"}})
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.NoFileExists(t, s.tokenFile(), "the mounted token is used")
	info, err := os.Stat(s.dataDir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
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
	monitor := readManifest(t, "servicemonitor.yaml").Spec
	require.Equal(t, []string{"PrometheusProto", "PrometheusText0.0.4"}, monitor.ScrapeProtocols)
	require.True(t, monitor.ScrapeNativeHistograms)
	require.True(t, monitor.ScrapeClassicHistograms)
}
