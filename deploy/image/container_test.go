package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/x509roots/fallback/bundle"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// unpack lays the image of this machine out in a directory, as a runtime does, with owners.
func unpack(t *testing.T) string {
	t.Helper()
	require.Zero(t, os.Geteuid(), "this test needs root, for mounts and files of other users")
	index, _ := readLayout(t)
	archive := filepath.Join(t.TempDir(), "image.tar")
	file, err := os.Create(archive)
	require.NoError(t, err)
	w := tar.NewWriter(file)
	eachFile(t, images(t, index)["linux/"+runtime.GOARCH], func(h *tar.Header, data io.Reader) {
		require.NoError(t, w.WriteHeader(h))
		_, err := io.Copy(w, data)
		require.NoError(t, err)
	})
	require.NoError(t, w.Close())
	require.NoError(t, file.Close())
	root := filepath.Join(programs, t.Name())
	require.NoError(t, os.Mkdir(root, 0o755))
	out, err := exec.Command("tar", "--extract", "--numeric-owner", "--same-owner", "--same-permissions", "--file", archive, "--directory", root).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return root
}

// container returns a command within the image: its user, its root that nobody can write,
// and directories in memory where it may. Its processes end with it.
func container(t *testing.T, root string, args ...string) *exec.Cmd {
	t.Helper()
	script := `mount --bind "$1" "$1"
mount -o remount,bind,ro,nosuid,nodev "$1"
mount -t tmpfs -o mode=0700,uid=65532,gid=65532 data "$1/var/lib/agentstatsd"
mount -t tmpfs -o mode=1777 tmp "$1/tmp"
root=$1; shift
exec env -i PATH=/usr/bin TZ="$TZ" "$(command -v chroot)" --userspec=65532:65532 --groups= "$root" "$@"`
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-ec", script, "sh", root}, args...)...)
	cmd.Env = append(os.Environ(), "TZ=Asia/Kathmandu")
	return cmd
}

// The image does what it is for: a service in it starts, serves, and stops.
func TestContainer(t *testing.T) {
	cmd := container(t, unpack(t), "/usr/bin/agentstatsd", "serve", "--data-dir=/var/lib/agentstatsd/data", "--log-format=json",
		"--prometheus-address=127.0.0.1:0", "--grpc-address=127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var log bytes.Buffer
	var start struct {
		Time              time.Time
		Msg, Version      string
		PrometheusAddress string `json:"prometheus_address"`
		GRPCAddress       string `json:"grpc_address"`
	}
	lines := bufio.NewScanner(io.TeeReader(stderr, &log))
	for start.Msg != "agentstatsd starts" && lines.Scan() {
		require.NoError(t, json.Unmarshal(lines.Bytes(), &start), "%s", lines.Text())
	}
	require.Equal(t, "agentstatsd starts", start.Msg, "%s", &log)
	require.Equal(t, testVersion, start.Version)
	require.Contains(t, log.String(), "+05:45", "it knows time zones")
	rest := make(chan struct{})
	go func() {
		defer close(rest)
		for lines.Scan() { // the copy in log is what is wanted
		}
	}()

	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	require.NoError(t, err)
	require.Contains(t, string(status), "\nUid:\t65532\t65532\t65532\t65532\n")
	require.Contains(t, string(status), "\nCapEff:\t0000000000000000\n")

	ready := get(t, start.PrometheusAddress, "/-/ready")
	require.Contains(t, ready, "ready")
	scrape := get(t, start.PrometheusAddress, "/metrics")
	require.Contains(t, scrape, `version="`+testVersion+`"`)
	require.Greater(t, strings.Count(scrape, "\n# TYPE "), 97)

	conn, err := grpc.NewClient(start.GRPCAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	watch, err := grpc_health_v1.NewHealthClient(conn).Watch(ctx, new(grpc_health_v1.HealthCheckRequest), grpc.WaitForReady(true))
	require.NoError(t, err)
	for serving := false; !serving; { // it is set just after the page says ready
		health, err := watch.Recv()
		require.NoError(t, err)
		serving = health.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
	}

	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	<-rest
	require.NoError(t, cmd.Wait(), "%s", &log)
	require.Contains(t, log.String(), "agentstatsd stopped")
}

// get waits until the page is answered with 200: the service says that it starts before it is
// ready.
func get(t *testing.T, addr, path string) string {
	t.Helper()
	var body []byte
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
		require.NoError(c, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(c, err)
		defer func() { _ = resp.Body.Close() }()
		body, err = io.ReadAll(resp.Body)
		require.NoError(c, err)
		require.Equal(c, http.StatusOK, resp.StatusCode, "%s", body)
	}, time.Minute, 20*time.Millisecond)
	return string(body)
}

// A program in the image trusts each authority that is trusted without a condition, and
// nobody else. One that has no list trusts nobody.
func TestContainerAuthorities(t *testing.T) {
	root := unpack(t)
	verifier := filepath.Join(root, "verifier")
	build := exec.Command("go", "build", "-o", verifier, "./testdata/authorities")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	says := func(certificate []byte) string {
		cmd := container(t, root, "/verifier")
		cmd.Stdin = bytes.NewReader(certificate)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	file, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
	require.NoError(t, err)
	trusted, conditional := 0, 0
	for authority := range bundle.Roots() {
		if authority.Constraint != nil {
			if conditional++; conditional == 1 {
				require.Contains(t, says(authority.Certificate), "signed by unknown authority")
			}
			continue
		}
		if trusted++; trusted%20 == 1 {
			require.Equal(t, "trusted", says(authority.Certificate))
		}
	}
	require.Equal(t, trusted, bytes.Count(file, []byte("BEGIN CERTIFICATE")))
	require.Greater(t, trusted, 100)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nobody"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	own, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	require.Contains(t, says(own), "signed by unknown authority")
}
