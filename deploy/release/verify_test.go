package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What make release would do is whole: each of its targets, for each platform, and the sums.
func TestReleaseIsPlanned(t *testing.T) {
	const version = "v1.98.6"
	cmd := exec.Command("make", "--dry-run", "--no-print-directory", "release", "DIST="+t.TempDir(), "VERSION="+version)
	cmd.Dir = checkout
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	plan := string(out)
	for _, platform := range []string{"linux-amd64", "linux-arm64"} {
		system, machine, _ := strings.Cut(platform, "-")
		require.Regexp(t, "GOOS="+system+" GOARCH="+machine+" .*CGO_ENABLED=0 go build .*-X main.release="+version+"'.* ./cmd/agentstatsd", plan)
		require.Contains(t, plan, "go run ./sbom -version '"+version+"'")
		require.Regexp(t, "go run ./packages -version '"+version+"' .*-arch "+machine, plan)
	}
	require.Equal(t, 2, strings.Count(plan, "go build"), "each program is built once")
	for _, once := range []string{"go run ./image ", "go run ./helm/pack ", "-image.tar", "-prometheus.tar.gz", "-grafana.tar.gz", "sha256sum >SHA256SUMS"} {
		require.Contains(t, plan, once)
	}
}

func TestVerifySums(t *testing.T) {
	dist := t.TempDir()
	sum := func(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }
	write(t, filepath.Join(dist, "one"), []byte("1"))
	write(t, filepath.Join(dist, "two"), []byte("2"))
	write(t, filepath.Join(dist, sums), []byte(sum("1")+"  one\n"+sum("2")+"  two\n"))
	require.NoError(t, (&verification{dist: dist}).checkSums())

	write(t, filepath.Join(dist, "two"), []byte("changed"))
	write(t, filepath.Join(dist, "three"), nil)
	require.NoError(t, os.Remove(filepath.Join(dist, "one")))
	err := (&verification{dist: dist}).checkSums()
	for _, want := range []string{"one: has a sum and is not there", "two: has another sum", "three: has no sum"} {
		require.ErrorContains(t, err, want)
	}
	write(t, filepath.Join(dist, sums), []byte("nothing\n"))
	require.ErrorContains(t, (&verification{dist: dist}).checkSums(), "want SUM  FILE, got \"nothing")
}

func TestVerifyModules(t *testing.T) {
	const file = "agentstatsd-v1.98.6-linux-amd64.cdx.json"
	v := &verification{dist: t.TempDir(), version: "v1.98.6", programs: map[string][]byte{"linux-amd64": []byte("program")}}
	list := fmt.Sprintf(`{"metadata": {"component": {"version": "v1.98.6", "hashes": [{"content": "%x"}]}}, "components": [{"name": "a"}, {"name": "b"}]}`, sha256.Sum256([]byte("program")))
	write(t, filepath.Join(v.dist, file), []byte(list))
	require.NoError(t, v.modules(file))
	for _, c := range [][3]string{{"v1.98.6", "v1.98.5", "it is of v1.98.5"}, {`"content": "`, `"content": "0`, "it is of another program"}, {`, {"name": "b"}`, "", "it has no modules"}} {
		require.Contains(t, list, c[0])
		write(t, filepath.Join(v.dist, file), []byte(strings.Replace(list, c[0], c[1], 1)))
		require.ErrorContains(t, v.modules(file), c[2])
	}
}

func bytesOf(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return data
}

func write(t *testing.T, file string, data []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, data, 0o600))
}
