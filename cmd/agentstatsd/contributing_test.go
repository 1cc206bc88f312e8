package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The files and the tests that CONTRIBUTING.md names are there.
func TestContributingNamesWhatExists(t *testing.T) {
	root := filepath.Join("..", "..")
	text, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	require.NoError(t, err)
	tests := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, name := range declared.FindAllSubmatch(source, -1) {
			tests[string(name[1])] = true
		}
		return err
	}))
	names := regexp.MustCompile("`([A-Za-z0-9_*./]+)`").FindAllSubmatch(text, -1)
	require.Greater(t, len(names), 50)
	for _, match := range names {
		name := string(match[1])
		switch {
		case strings.HasPrefix(name, "Test"):
			require.True(t, tests[name], "there is no %s", name)
		case strings.Contains(name, "/"):
			found, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(name)))
			require.NoError(t, err)
			require.NotEmpty(t, found, "there is no %s", name)
		}
	}
}
