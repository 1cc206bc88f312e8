package main

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/deploy/packages/names"
)

var update = flag.Bool("update", false, "write what the packages contain to testdata")

// The program, and one that does nothing, which takes its place where only the package counts.
var program, nothing string

const checkout = "../.."

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "agentstatsd-packages-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		program, nothing = filepath.Join(dir, "agentstatsd"), filepath.Join(dir, "nothing")
		for path, of := range map[string]struct{ dir, what string }{program: {checkout, "./cmd/agentstatsd"}, nothing: {".", "./testdata/nothing.go"}} {
			build := exec.Command("go", "build", "-trimpath", "-ldflags", "-w", "-o", path, of.what)
			build.Dir, build.Env = of.dir, append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build %s: %v\n%s", of.what, err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// makePackage makes a package in dir and returns its path.
func makePackage(t *testing.T, dir, format, version, arch, of string) string {
	t.Helper()
	o := options{version: version, arch: arch, program: of, printer: program, source: checkout, out: dir, time: time.Unix(1_700_000_000, 0).UTC()}
	path, err := o.build(t.Context(), format)
	require.NoError(t, err)
	return path
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %q: %s", name, args, out)
	return string(out)
}

// Versions are ordered as Go orders them, by both formats.
func TestVersionsAreInOrder(t *testing.T) {
	versions := []string{
		"v0.0.0-20261130100810-469248c606de", "v0.0.0-20261130100811-000000000000", "v0.9.0", "v1.0.0-rc.1", "v1.0.0-rc.1.0.20261130100810-469248c606de",
		"v1.0.0-rc.2", "v1.0.0", "v1.0.1-0.20261130100810-469248c606de", "v1.0.1", "v1.0.1+dirty", "v1.10.0",
	}
	for i, version := range versions[1:] {
		before, after := names.Version(versions[i]), names.Version(version)
		output(t, "dpkg", "--compare-versions", before+"-1", "lt", after+"-1")
		require.Equal(t, "-1", output(t, "rpm", "--eval", fmt.Sprintf("%%{lua: print(rpm.vercmp(%q, %q))}", before, after))[:2], "%s, %s", before, after)
	}
	require.Equal(t, "0.0.0~20261130100810.469248c606de+dirty", names.Version("v0.0.0-20261130100810-469248c606de+dirty"))
}

func TestOptionsAreRequired(t *testing.T) {
	whole := options{version: "v1.0.0", arch: "amd64", program: "p", printer: "p", time: time.Unix(1, 0)}
	require.NoError(t, whole.validate())
	for want, change := range map[string]func(*options){
		"-version":  func(o *options) { o.version = "1.0.0" },
		"-arch":     func(o *options) { o.arch = "" },
		"-program":  func(o *options) { o.program = "" },
		"-printer":  func(o *options) { o.printer = "" },
		"-epoch: w": func(o *options) { o.time = time.Unix(0, 0) },
	} {
		o := whole
		change(&o)
		require.ErrorContains(t, o.validate(), want)
	}
	o := whole
	o.source, o.out, o.printer = checkout, t.TempDir(), "/bin/false"
	_, err := o.build(t.Context(), "deb")
	require.ErrorContains(t, err, "/bin/false")
}

// The same input makes the same bytes.
func TestPackagesAreReproducible(t *testing.T) {
	for _, format := range []string{"deb", "rpm"} {
		var sums [2][32]byte
		for i := range sums {
			content, err := os.ReadFile(makePackage(t, t.TempDir(), format, "v1.0.0", "amd64", nothing))
			require.NoError(t, err)
			sums[i] = sha256.Sum256(content)
		}
		require.Equal(t, sums[0], sums[1], format)
	}
}

// sizes matches the columns of size and time, which differ between programs.
var sizes = regexp.MustCompile(`(?m) +\d+ 2023-11-14 22:13 `)

// What is in a package, with owners and modes, and what it says of itself.
func TestContents(t *testing.T) {
	t.Setenv("TZ", "UTC")
	for arch, named := range map[string]struct{ deb, rpm string }{"amd64": {"amd64", "x86_64"}, "arm64": {"arm64", "aarch64"}} {
		deb := makePackage(t, t.TempDir(), "deb", "v1.2.3", arch, nothing)
		rpm := makePackage(t, t.TempDir(), "rpm", "v1.2.3", arch, nothing)
		require.Equal(t, names.Deb("v1.2.3", arch), filepath.Base(deb))
		require.Equal(t, names.RPM("v1.2.3", arch), filepath.Base(rpm))
		require.Equal(t, "agentstatsd_1.2.3-1_"+named.deb+".deb", filepath.Base(deb))
		require.Equal(t, "agentstatsd-1.2.3-1."+named.rpm+".rpm", filepath.Base(rpm))
		for name, text := range map[string]string{
			"deb.txt": regexp.MustCompile(`(?m)^Installed-Size: .*\n`).ReplaceAllString(output(t, "dpkg-deb", "--field", deb), "") + output(t, "dpkg-deb", "--info", deb, "conffiles") + output(t, "dpkg-deb", "--contents", deb),
			"rpm.txt": output(t, "rpm", "--query", "--package", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE} %{ARCH} %{LICENSE} %{BUILDHOST}\n%{SUMMARY}\n", rpm) +
				output(t, "rpm", "--query", "--package", "--requires", rpm) + output(t, "rpm", "--query", "--package", "--configfiles", rpm) +
				output(t, "rpm", "--query", "--package", "--queryformat", "[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES}\n]", rpm) +
				output(t, "rpm", "--query", "--package", "--scripts", rpm),
		} {
			text = strings.NewReplacer(" "+named.deb+"\n", " ARCH\n", " "+named.rpm+" ", " ARCH ").Replace(sizes.ReplaceAllString(text, " "))
			path := filepath.Join("testdata", name)
			if *update {
				require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, string(want), text, "go test ./packages -run TestContents -update")
		}
	}
}

// Debian's own check of packages has nothing to say.
func TestLintian(t *testing.T) {
	lintian(t, nothing)
}

func lintian(t *testing.T, of string) {
	t.Helper()
	require.Empty(t, output(t, "lintian", "--allow-root", "--fail-on", "error,warning", makePackage(t, t.TempDir(), "deb", "v1.2.3", runtime.GOARCH, of)))
}

// The units are exposed as little as can be.
func TestExposure(t *testing.T) {
	units, err := filepath.Glob("systemd/*.service")
	require.NoError(t, err)
	require.Len(t, units, 2)
	for _, unit := range units {
		out := output(t, "systemd-analyze", "security", "--offline=true", "--no-pager", unit)
		found := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+) `).FindStringSubmatch(out)
		require.NotNil(t, found, out)
		exposure, err := strconv.ParseFloat(found[1], 64)
		require.NoError(t, err)
		require.LessOrEqual(t, exposure, 1.5, out)
	}
}

// The shell takes the scripts.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("scripts/*")
	require.NoError(t, err)
	require.Len(t, scripts, 7)
	for _, script := range slices.Concat(scripts, []string{"testdata/machine.sh"}) {
		output(t, "dash", "-n", script)
	}
}

// The user and the directory are made in another root, too.
func TestUserAndDirectory(t *testing.T) {
	requireRoot(t)
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	for _, c := range []struct {
		stdin string
		args  []string
	}{{read(t, "sysusers.conf"), []string{"systemd-sysusers", "--root=" + root, "-"}}, {read(t, "tmpfiles.conf"), []string{"systemd-tmpfiles", "--root=" + root, "--create", "-"}}} {
		cmd := exec.Command(c.args[0], c.args[1:]...)
		cmd.Stdin = strings.NewReader(c.stdin)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%q: %s", c.args, out)
	}
	require.Regexp(t, `(?m)^agentstatsd:x:\d+:\d+:agentstatsd:/var/lib/agentstatsd:/usr/sbin/nologin$`, read(t, filepath.Join(root, "etc/passwd")))
	info, err := os.Stat(filepath.Join(root, "var/lib/agentstatsd"))
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|0o700, info.Mode())
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}
