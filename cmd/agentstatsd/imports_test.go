package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// The rules of imports hold in sub-packages, too, and there is one for each part of the
// service.
func TestImportRulesCoverSubPackages(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", ".golangci.yml"))
	require.NoError(t, err)
	var file struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]struct{ Files []string }
				}
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &file))
	whole := regexp.MustCompile(`^\*\*/[a-z/]+/\*\*$`)
	covered := make(map[string]bool)
	for name, rule := range file.Linters.Settings.Depguard.Rules {
		for _, pattern := range rule.Files {
			if !strings.HasPrefix(pattern, "**/") {
				continue
			}
			require.Regexp(t, whole, pattern, "rule %s", name)
			covered[strings.Trim(pattern, "*/")] = true
		}
	}
	for _, part := range []string{
		"agent", "metrics", "scrape", "aggregator", "batcher", "bridge", "fleet", "reports", "pushed", "agentapi", "replica", "store", "pubsub", "client",
		"simulate", "web", "secrets", "cmd",
	} {
		require.True(t, covered[part], "no rule for %s", part)
	}
}
