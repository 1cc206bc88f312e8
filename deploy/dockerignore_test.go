package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/stretchr/testify/require"
)

// ignored tells what docker build leaves out of a checkout.
func ignored(t *testing.T) func(name string) bool {
	t.Helper()
	file, err := os.Open("../.dockerignore")
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()
	patterns, err := ignorefile.ReadAll(file)
	require.NoError(t, err)
	matcher, err := patternmatcher.New(patterns)
	require.NoError(t, err)
	return func(name string) bool {
		out, err := matcher.MatchesOrParentMatches(name)
		require.NoError(t, err)
		return out
	}
}

// docker build gets all that is tracked: its version would be dirty without.
func TestDockerGetsTrackedFiles(t *testing.T) {
	isIgnored := ignored(t)
	files := strings.Split(run(t, "..", "git", "ls-files"), "\n")
	require.Greater(t, len(files), 500)
	for _, name := range files {
		require.False(t, isIgnored(name), name)
	}
}

// docker build gets nothing that git ignores, and of git what the version is made of: it
// builds the version of the checkout.
func TestDockerBuildsTheVersion(t *testing.T) {
	isIgnored := ignored(t)
	checkout, inside := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(checkout, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(checkout, name), []byte(text), 0o755))
	}
	for _, name := range []string{"deploy/version", ".gitignore", ".dockerignore"} {
		text, err := os.ReadFile(filepath.Join("..", name))
		require.NoError(t, err)
		write(name, string(text))
	}
	write("cmd/agentstatsd/main.go", "package main\n")
	run(t, checkout, "git", "init", "--quiet")
	run(t, checkout, "git", "add", ".")
	run(t, checkout, "git", "commit", "--quiet", "--message", "a")
	run(t, checkout, "git", "tag", "v1.2.3")
	run(t, checkout, "git", "commit", "--quiet", "--allow-empty", "--message", "b")
	left := []string{
		"bin/agentstatsd", "bin/debian/usr/sbin/nginx", "dist/SHA256SUMS", "data/agentstatsd.db", "agentstatsd", "fleet/fleet.test", "fleet/cpu.out",
		"fleet/testdata/rapid/TestA/a.fail",
	}
	for _, name := range left {
		write(name, "")
	}
	require.NotContains(t, run(t, checkout, "git", "status", "--porcelain"), "?", "git ignores them, too")
	left = append(left, ".git/hooks", ".git/logs")
	copyContext := func() {
		require.NoError(t, filepath.WalkDir(checkout, func(path string, entry os.DirEntry, err error) error {
			name, _ := filepath.Rel(checkout, path)
			if err != nil || isIgnored(name) {
				return err
			}
			if entry.IsDir() {
				return os.MkdirAll(filepath.Join(inside, name), 0o755)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(inside, name), text, 0o755)
		}))
	}
	version := func(dir string) string { return run(t, dir, filepath.Join(dir, "deploy", "version")) }
	copyContext()
	for _, name := range left {
		require.NoFileExists(t, filepath.Join(inside, name))
		require.NoDirExists(t, filepath.Join(inside, name))
	}
	require.Regexp(t, `^v1\.2\.4-0\.[0-9]{14}-[0-9a-f]{12}$`, version(inside))
	require.Equal(t, version(checkout), version(inside))
	write("cmd/agentstatsd/main.go", "package main // changed\n")
	copyContext()
	require.Regexp(t, `\+dirty$`, version(inside))
}
