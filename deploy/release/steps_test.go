package main

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// read returns a file of the checkout.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(checkout, name))
	require.NoError(t, err)
	return string(text)
}

// Each step of RELEASE.md is a target, and each target that a release is made by is a step.
func TestStepsAreTargets(t *testing.T) {
	document, makefile := read(t, "RELEASE.md"), read(t, "Makefile")
	steps := make(map[string]bool)
	for _, step := range regexp.MustCompile("(?m)(?:^|`)make ([a-z-]+)").FindAllStringSubmatch(document, -1) {
		steps[step[1]] = true
		require.Regexp(t, `(?m)^`+step[1]+`:.* ## `, makefile, "make help has it")
	}
	list := regexp.MustCompile(`(?m)^RELEASE := (.*)$`).FindStringSubmatch(makefile)
	require.NotNil(t, list)
	needed := append(strings.Fields(list[1]), "release", "sbom", "image", "version")
	for _, target := range regexp.MustCompile(`(?m)^([a-z]+-release|release-[a-z]+):`).FindAllStringSubmatch(makefile, -1) {
		needed = append(needed, target[1])
	}
	require.GreaterOrEqual(t, len(needed), 10)
	for _, target := range needed {
		require.True(t, steps[target], "RELEASE.md does not name make %s", target)
	}
}

// What gets the tags is tested as it is: prepare-release changes files, so the tests run before
// it, which finds what is to be mended, and again between it and the tags.
func TestTaggedCommitIsTested(t *testing.T) {
	var order []string
	for _, step := range regexp.MustCompile(`(?m)^make (test|prepare-release|tag-release)\b`).FindAllStringSubmatch(read(t, "RELEASE.md"), -1) {
		order = append(order, step[1])
	}
	require.Equal(t, []string{"test", "prepare-release", "test", "tag-release"}, order)
}

// RELEASE.md, CONTRIBUTING.md and the Makefile name the same tags.
func TestTags(t *testing.T) {
	var prefixes []string
	tags := make(map[string]bool)
	for _, dir := range tagged {
		prefix := strings.TrimPrefix(dir+"/", "./")
		prefixes = append(prefixes, prefix)
		tags[path.Join(prefix, "v1.2.3")] = true
		require.Regexp(t, `\b`+prefix+`vX\b`, read(t, "CONTRIBUTING.md"))
		require.FileExists(t, filepath.Join(checkout, dir, "go.mod"))
	}
	loop := regexp.MustCompile(`(?m)^\tfor module in '' (.*); do git tag `).FindStringSubmatch(read(t, "Makefile"))
	require.NotNil(t, loop)
	require.ElementsMatch(t, prefixes, append(strings.Fields(loop[1]), ""))
	line := regexp.MustCompile(`(?m)^make tag-release VERSION=v1.2.3 +# (.*), at one commit$`).FindStringSubmatch(read(t, "RELEASE.md"))
	require.NotNil(t, line)
	for _, tag := range strings.Split(line[1], ", ") {
		require.True(t, tags[tag], tag)
		delete(tags, tag)
	}
	require.Empty(t, tags)
}

// The recipe makes the tags of all modules, at one commit.
func TestTagRelease(t *testing.T) {
	plan := exec.Command("make", "--dry-run", "--no-print-directory", "tag-release", "VERSION=v1.2.3")
	plan.Dir = checkout
	out, err := plan.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "go run ./release check -version 'v1.2.3'")
	_, recipe, ok := strings.Cut(string(out), "\nfor module in ")
	require.True(t, ok)
	dir := t.TempDir()
	git := exec.Command("sh", "-ec", "git init --quiet; git commit --quiet --allow-empty --message a\nfor module in "+recipe+"\ngit tag --points-at HEAD")
	git.Dir = dir
	git.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err = git.CombinedOutput()
	require.NoError(t, err, "%s", out)
	var want []string
	for _, module := range tagged {
		want = append(want, path.Join(module, "v1.2.3"))
	}
	require.ElementsMatch(t, want, strings.Fields(string(out)))
}

// RELEASE.md has each file that a release must have.
func TestFilesOfRelease(t *testing.T) {
	document := read(t, "RELEASE.md")
	v := &verification{version: "VERSION"}
	for _, k := range v.kinds([]string{"PLATFORM"}) {
		require.Contains(t, document, "\n| `"+k.file+"` | ")
	}
}
