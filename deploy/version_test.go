package deploy

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// run runs a program in a directory, with git's user and time fixed.
func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "TZ=Pacific/Auckland", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com",
		"GIT_COMMITTER_DATE=2026-11-30T23:59:58-09:00")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %v: %s", program, args, out)
	return strings.TrimSpace(string(out))
}

// The script prints what Go stamps into a program that is built in the same checkout.
func TestVersionIsGos(t *testing.T) {
	dir := t.TempDir()
	script, err := os.ReadFile("version")
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "deploy"), 0o755))
	for name, text := range map[string]string{
		"deploy/version": string(script), "go.mod": "module example.com/versioned\n", "main.go": "package main\n\nfunc main() {}\n", ".gitignore": "/out\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	run(t, dir, "git", "init", "--quiet")
	commit := func() { run(t, dir, "git", "commit", "--quiet", "--allow-empty", "--message", "a") }
	tag := func(names ...string) {
		for _, name := range names {
			run(t, dir, "git", "tag", name)
		}
	}
	run(t, dir, "git", "add", ".")
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"no tag", commit, "v0.0.0-20261201085958-"},
		{"tags of other modules", func() { tag("client/v1.9.0", "vfuture", "v1") }, "v0.0.0-20261201085958-"},
		{"a candidate", func() { tag("v0.9.0-rc.2", "v0.9.0-rc.10") }, "v0.9.0-rc.10"},
		{"after a candidate", commit, "v0.9.0-rc.10.0.20261201085958-"},
		{"a release, the candidate's commit", func() { tag("v0.9.0-rc.11", "v0.9.0") }, "v0.9.0"},
		{"after a release", commit, "v0.9.1-0.20261201085958-"},
		{"two digits", func() { commit(); tag("v0.9.9", "v0.10.0") }, "v0.10.0"},
		{"a changed file", func() { require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o600)) }, "v0.10.0+dirty"},
	} {
		step.do()
		got := run(t, dir, filepath.Join(dir, "deploy", "version"))
		require.True(t, strings.HasPrefix(got, step.want), "%s: %s", step.name, got)
		run(t, dir, "go", "build", "-buildvcs=true", "-o", "out", ".")
		info, err := buildinfo.ReadFile(filepath.Join(dir, "out"))
		require.NoError(t, err)
		require.Equal(t, info.Main.Version, got, step.name)
	}
}
