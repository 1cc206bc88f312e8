package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
)

// flagName is a flag in a text.
var flagName = regexp.MustCompile(`--[a-z][a-z0-9-]+`)

// Every flag that an error of a component names is one of the options, and every name
// that a package has of one is used.
func TestErrorsNameFlagsThatExist(t *testing.T) {
	known := make(map[string]bool)
	for _, options := range []serpent.OptionSet{new(config).options(), new(bridgeConfig).options(), migrateCommand().Options} {
		for _, o := range options {
			known["--"+o.Flag] = true
		}
	}
	named := make(map[string]bool)
	identifiers := make(map[string]int)
	for _, dir := range []string{"agentapi", "aggregator", "batcher", "bridge", "coderdapi", "fleet", "grpcserver", "pubsub", "pushed", "replica", "reports", "scrape", "store", "web"} {
		err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.Ident:
					identifiers[n.Name]++
				case *ast.BasicLit:
					if n.Kind != token.STRING {
						break
					}
					for _, flag := range flagName.FindAllString(n.Value, -1) {
						if strings.HasSuffix(flag, "-") {
							continue // the rest is appended
						}
						require.True(t, known[flag], "%s names %s, which is no option", path, flag)
						named[flag] = true
					}
				}
				return true
			})
			return nil
		})
		require.NoError(t, err)
	}
	for name, n := range identifiers {
		if strings.HasPrefix(strings.ToLower(name), "flag") && len(name) > 4 && strings.ToUpper(name[4:5]) == name[4:5] {
			require.Greater(t, n, 1, "%s is not used", name)
		}
	}
	for _, flag := range []string{
		"--max-message-bytes", "--max-agent-message-bytes", "--max-receiving-bytes", "--grpc-message-timeout", "--grpc-first-message-timeout",
		"--agent-idle-timeout", "--max-coderd-instances", "--max-syncs", "--sync-timeout", "--max-streams-per-agent", "--grpc-max-open-calls",
		"--max-coderd-calls", "--max-lookups", "--max-series", "--max-series-per-agent", "--max-series-per-owner", "--max-families", "--max-families-per-agent",
		"--metadata-max-pending", "--metadata-max-pending-per-agent", "--metadata-max-pending-per-owner", "--metadata-max-keys",
		"--max-pushed-series", "--max-pushed-series-total", "--max-pushed-families", "--max-push-row-bytes", "--max-pushed-label-value-bytes", "--max-pushed-labels-bytes",
	} {
		require.True(t, named[flag], "no error names %s", flag)
	}
}
