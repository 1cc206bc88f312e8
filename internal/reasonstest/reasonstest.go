// Package reasonstest compares the constants of a package with the list of them.
package reasonstest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/metrics"
)

// Require fails unless list has each constant of the type metrics.Reason of the package
// under test, and each of package metrics that it names, once.
func Require(t *testing.T, list []metrics.Reason) {
	t.Helper()
	known := make(map[metrics.Reason]bool)
	for _, r := range list {
		require.False(t, known[r], "%s is there twice", r)
		known[r] = true
	}
	names := make(map[string]metrics.Reason) // of package metrics
	for name, value := range constants(t, filepath.Join(root(t), "metrics")) {
		names["metrics."+name] = value
	}
	require.NotEmpty(t, names)
	own := constants(t, ".")
	require.NotEmpty(t, own)
	for name, value := range own {
		require.True(t, known[value], "%s is not in the list", name)
	}
	eachFile(t, ".", func(f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok {
					if value, is := names[x.Name+"."+s.Sel.Name]; is {
						require.True(t, known[value], "metrics.%s is not in the list", s.Sel.Name)
					}
				}
			}
			return true
		})
	})
}

// root returns the directory of the module, from one of its packages.
func root(t *testing.T) string {
	t.Helper()
	for dir := ".."; len(dir) < 64; dir = filepath.Join("..", dir) {
		if found, _ := filepath.Glob(filepath.Join(dir, "go.mod")); len(found) > 0 {
			return dir
		}
	}
	t.Fatal("there is no go.mod above")
	return ""
}

// constants returns the constants of a directory that are declared as reasons.
func constants(t *testing.T, dir string) map[string]metrics.Reason {
	t.Helper()
	found := make(map[string]metrics.Reason)
	eachFile(t, dir, func(f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			switch of := spec.Type.(type) {
			case *ast.Ident:
				ok = of.Name == "Reason"
			case *ast.SelectorExpr:
				ok = of.Sel.Name == "Reason"
			default:
				ok = false
			}
			if text, is := spec.Values[0].(*ast.BasicLit); ok && is {
				value, err := strconv.Unquote(text.Value)
				require.NoError(t, err)
				found[spec.Names[0].Name] = metrics.Reason(value)
			}
			return true
		})
	})
	return found
}

// eachFile parses the Go files of a directory that are no tests.
func eachFile(t *testing.T, dir string, each func(*ast.File)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	for _, name := range files {
		if !strings.HasSuffix(name, "_test.go") {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			require.NoError(t, err)
			each(f)
		}
	}
}
