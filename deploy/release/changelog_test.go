package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const checkout = "../.."

// Ours has the form that a release needs.
func TestChangelog(t *testing.T) {
	head, sections, err := readChangelog(checkout)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(head, "# Changelog\n"))
	require.Equal(t, unreleased, sections[0].version)
}

// copied returns a directory that has the files of the checkout which a release changes.
func copied(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := []string{"CHANGELOG.md"}
	for _, module := range requiring {
		files = append(files, filepath.Join(module, "go.mod"))
	}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(checkout, file))
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), text, 0o600))
	}
	return dir
}

func TestChangelogRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"## Unreleased\n\n- more\n":                                                 `Unreleased begins with "### What you must do"`,
		"## v1.0.0 - 2026-12-01\n\n### Added\n\n- more\n":                           `v1.0.0 begins with "### What you must do"`,
		"## v1.0.0 - 2026-12-01\n\n### What you must do\n\n### Added\n\n- a":        `v1.0.0: "What you must do" is empty`,
		"## v1.0.0 - 2026-12-01\n\n### What you must do\n\nNothing.\n\n### Added\n": `v1.0.0: "Added" is empty`,
		"## v1.0.0\n\n### What you must do\n\nNothing.\n":                           "got ## v1.0.0",
		"## 1.0.0 - 2026-12-01\n\n### What you must do\n\nNothing.\n":               "got ## 1.0.0 - 2026-12-01",
		"## Unreleased - 2026-12-01\n":                                              "got ## Unreleased - 2026-12-01",
	} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "CHANGELOG.md"), []byte("# Changelog\n\n"+text), 0o600))
		_, _, err := readChangelog(dir)
		require.ErrorContains(t, err, want, text)
	}
}

// required is one of our modules, of the version that it was required at.
var required = regexp.MustCompile(`(?m)(\tgithub\.com/coder/agentstatsd/\S+|^require github\.com/coder/agentstatsd/\S+) v0\.1\.0\b`)

// What a version is prepared with is what is looked for before it is tagged.
func TestPrepare(t *testing.T) {
	const version = "v1.98.6"
	dir := copied(t)
	before, err := os.ReadFile(filepath.Join(dir, "CHANGELOG.md"))
	require.NoError(t, err)
	called := func(command, version string) error {
		return run([]string{command, "-version", version, "-root", dir, "-day", "2026-12-01"})
	}

	err = called("check", version)
	require.ErrorContains(t, err, "no ## "+version+": make prepare-release VERSION="+version)
	for _, module := range requiring {
		require.ErrorContains(t, err, module+"/go.mod requires github.com/coder/agentstatsd/proto@v0.1.0: make prepare-release")
	}
	for _, wrong := range []string{"1.98.6", "v1.98", "v2.0.0", "v1.98.6+dirty", "v0.0.0-20261130095624-f77cc2813f20"} {
		require.ErrorContains(t, called("check", wrong), "want v0.Y.Z, v1.Y.Z")
		require.ErrorContains(t, called("prepare", wrong), "want v0.Y.Z, v1.Y.Z")
	}

	require.NoError(t, called("prepare", version))
	require.NoError(t, called("check", version))
	after, err := os.ReadFile(filepath.Join(dir, "CHANGELOG.md"))
	require.NoError(t, err)
	require.Equal(t, string(bytes.Replace(before, []byte("\n## Unreleased\n"), []byte("\n## Unreleased\n\n## v1.98.6 - 2026-12-01\n"), 1)), string(after))
	for _, module := range requiring {
		old, err := os.ReadFile(filepath.Join(checkout, module, "go.mod"))
		require.NoError(t, err)
		text, err := os.ReadFile(filepath.Join(dir, module, "go.mod"))
		require.NoError(t, err)
		require.Equal(t, required.ReplaceAllString(string(old), "$1 "+version), string(text), "nothing else changes")
	}
	var out strings.Builder
	require.NoError(t, printNotes(&out, dir, version))
	require.Contains(t, string(before), out.String())
	require.True(t, strings.HasPrefix(out.String(), mustDo))

	require.ErrorContains(t, called("prepare", "v1.98.7"), "nothing is Unreleased")
	require.ErrorContains(t, called("notes", "v1.98.7"), "no ## v1.98.7")
	more := bytes.Replace(after, []byte("\n## Unreleased\n"), []byte("\n## Unreleased\n\n### What you must do\n\nNothing.\n"), 1)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "CHANGELOG.md"), more, 0o600))
	require.ErrorContains(t, called("prepare", version), version+" is there already")
	require.NoError(t, called("prepare", "v1.98.7-rc.1"))
	require.ErrorContains(t, called("check", version), "requires")
}
