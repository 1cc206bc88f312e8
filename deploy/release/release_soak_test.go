//go:build soak

package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/deploy/packages/names"
)

// makeRelease builds a release of a version for some platforms, as make release does.
func makeRelease(t *testing.T, dist, version, platforms string) {
	t.Helper()
	cmd := exec.Command("make", "--no-print-directory", "release", "DIST="+dist, "VERSION="+version, "PLATFORMS="+platforms)
	cmd.Dir = checkout
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// What make release builds is whole, and of its version. Whatever is changed of it is found.
func TestRelease(t *testing.T) {
	const version, other, platform = "v1.98.6", "v1.98.5", "linux-amd64"
	dist := filepath.Join(t.TempDir(), "dist")
	makeRelease(t, dist, version, platform)
	var out strings.Builder
	require.NoError(t, verify(&out, dist, version, []string{platform}))
	files := strings.Count(out.String(), "\tis "+version+"\n")
	sumLines, err := os.ReadFile(filepath.Join(dist, sums))
	require.NoError(t, err)
	require.Equal(t, files, bytes.Count(sumLines, []byte("\n")), "each file was looked at")
	check := exec.Command("sha256sum", "--check", "--quiet", sums)
	check.Dir = dist
	said, err := check.CombinedOutput()
	require.NoError(t, err, "%s", said)

	requireWrong := func(version string, platforms []string, want ...string) {
		t.Helper()
		err := verify(&out, dist, version, platforms)
		for _, text := range want {
			require.ErrorContains(t, err, text)
		}
	}
	name := func(rest string) string { return filepath.Join(dist, "agentstatsd-"+version+"-"+rest) }
	chart := filepath.Join(dist, "agentstatsd-"+strings.TrimPrefix(version, "v")+".tgz")
	require.FileExists(t, chart)
	requireWrong(other, []string{platform}, "agentstatsd-"+other+"-image.tar: is not there", "image.tar: is not of the release "+other)

	program := programOf(t, dist, version, platform)
	list, image, archive := name(platform+".cdx.json"), name("image.tar"), name(platform+".tar.gz")
	dashboards := bytesOf(t, name("grafana.tar.gz"))
	write(t, filepath.Join(dist, "more"), nil)
	require.NoError(t, os.Remove(name("grafana.tar.gz")))
	change(t, list, version, other)
	requireWrong(version, []string{platform, "linux-arm64"},
		"more: has no sum", "grafana.tar.gz: has a sum and is not there", "cdx.json: has another sum", "linux-arm64.tar.gz: is not there")

	// Sums that fit do not hide what does not.
	require.NoError(t, os.Remove(filepath.Join(dist, "more")))
	change(t, image, version, other)
	write(t, name("grafana.tar.gz"), []byte("{}"))
	write(t, archive, dashboards)
	write(t, chart, dashboards)
	sumAgain(t, dist)
	requireWrong(version, []string{platform}, "cdx.json: it is of "+other, "image.tar: the image is of \""+other+"\"", "grafana.tar.gz: unzip", "has no agentstatsd", `.tgz: the chart is of "", for ""`)
	change(t, list, other, version)
	change(t, list, fmt.Sprintf("%x", sha256.Sum256(program)), "00")
	change(t, image, other, version)
	sumAgain(t, dist)
	requireWrong(version, []string{platform}, "cdx.json: it is of another program", "the image for linux/amd64 has another program than the archive")

	// Packages of another version, and with another program, under the right names.
	deb, rpm := filepath.Join(dist, names.Deb(version, "amd64")), filepath.Join(dist, names.RPM(version, "amd64"))
	makePackages(t, dist, other, filepath.Join(dist, platform, "agentstatsd"))
	require.NoError(t, os.Rename(filepath.Join(dist, names.Deb(other, "amd64")), deb))
	require.NoError(t, os.Rename(filepath.Join(dist, names.RPM(other, "amd64")), rpm))
	sumAgain(t, dist)
	requireWrong(version, []string{platform}, `.deb: the package is of "1.98.5-1", want "1.98.6-1"`, `.rpm: the package is of "1.98.5-1", want "1.98.6-1"`)
	makePackages(t, dist, version, "verify_test.go")
	sumAgain(t, dist)
	requireWrong(version, []string{platform}, ".deb: the package has another program", ".rpm: the package has another program")
}

// makePackages makes the packages of a version with any file as the program.
func makePackages(t *testing.T, dist, version, program string) {
	t.Helper()
	cmd := exec.Command("go", "run", "../packages", "-version", version, "-epoch", "1700000000", "-arch", "amd64", "-program", program,
		"-printer", filepath.Join(dist, "linux-"+runtime.GOARCH, "agentstatsd"), "-source", checkout, "-out", dist)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// change puts a text in the place of another, everywhere in a file.
func change(t *testing.T, file, before, after string) {
	t.Helper()
	data := bytesOf(t, file)
	require.Contains(t, string(data), before)
	write(t, file, bytes.ReplaceAll(data, []byte(before), []byte(after)))
}

func programOf(t *testing.T, dist, version, platform string) []byte {
	t.Helper()
	v := &verification{dist: dist, version: version, programs: make(map[string][]byte)}
	require.NoError(t, v.archive("agentstatsd-"+version+"-"+platform+".tar.gz"))
	return v.programs[platform]
}

func sumAgain(t *testing.T, dist string) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", "find . -maxdepth 1 -type f ! -name "+sums+" -printf '%f\n' | sort | xargs sha256sum >"+sums)
	cmd.Dir = dist
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// Two releases of a commit are the same, for all platforms, wherever and by whomever they
// are built.
func TestReleaseIsReproducible(t *testing.T) {
	const version, platforms = "v1.98.6", "linux-amd64 linux-arm64"
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "elsewhere", "two")
	makeRelease(t, one, version, platforms)
	for name, value := range map[string]string{"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "GOFLAGS": "-tags=other", "GOAMD64": "v3", "CGO_ENABLED": "1"} {
		t.Setenv(name, value)
	}
	mask := syscall.Umask(0o077)
	defer syscall.Umask(mask)
	makeRelease(t, two, version, platforms)
	require.Equal(t, string(bytesOf(t, filepath.Join(one, sums))), string(bytesOf(t, filepath.Join(two, sums))))
	require.NoError(t, verify(os.Stderr, two, version, strings.Fields(platforms)))
}
