package integration

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// linkingModule is a coderd's go.mod with the oldest versions that the client is for.
// Its tests use testify, as those of a coderd do.
const linkingModule = `module example.com/coderd

go 1.24

require (
	github.com/prometheus/client_golang v1.22.0
	github.com/stretchr/testify v1.10.0
	google.golang.org/grpc v1.73.0
	google.golang.org/protobuf v1.36.6
	storj.io/drpc v0.0.33
)

// Needed by the tests of a module that testify needs.
require github.com/kr/text v0.2.0 // indirect
`

const linkingMain = `package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"storj.io/drpc"
)

func main() {
	_, _, _, _ = prometheus.NewRegistry(), grpc.NewServer(), proto.String(""), drpc.Error
}
`

const linkingTest = `package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMain(t *testing.T) { require.NotPanics(t, main) }
`

const linkingClient = `package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/client"
	_ "github.com/coder/agentstatsd/client/drpctap"
)

func push(ctx context.Context) error {
	conn, err := client.Dial("stats.example.com:2113", client.DialOptions{TokenFile: "token"})
	if err != nil {
		return err
	}
	defer conn.Close()
	return client.PushGatherer(ctx, conn, prometheus.DefaultGatherer, client.PushOptions{})
}
`

// linking is the directory of a module that comes to link the client.
type linking string

func (l linking) write(t *testing.T, name, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(string(l), name), []byte(content), 0o600))
}

// goRun returns the output of the go command.
func (l linking) goRun(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = string(l)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "go %s: %s%s", strings.Join(args, " "), out, &stderr)
	return string(out)
}

// versions returns the version of each module of the graph.
func (l linking) versions(t *testing.T) map[string]string {
	t.Helper()
	versions := make(map[string]string)
	for line := range strings.Lines(l.goRun(t, "list", "-m", "-f", "{{.Path}} {{.Version}}", "all")) {
		path, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		versions[path] = version
	}
	return versions
}

// A coderd that begins to link the client and drpctap has the same versions of all modules as
// before, and no module more than ours. With its versions the client's tests pass.
func TestLinkingMovesNoModule(t *testing.T) {
	beside(t)
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	coderd := linking(t.TempDir())
	var sums []byte
	for _, module := range []string{"client", "client/drpctap"} {
		more, err := os.ReadFile(filepath.Join(root, module, "go.sum"))
		require.NoError(t, err)
		sums = append(sums, more...)
	}
	coderd.write(t, "go.sum", string(sums))
	coderd.write(t, "go.mod", linkingModule)
	coderd.write(t, "main.go", linkingMain)
	coderd.write(t, "main_test.go", linkingTest)
	coderd.goRun(t, "mod", "tidy")
	before := coderd.versions(t)
	require.Equal(t, "v1.73.0", before["google.golang.org/grpc"])

	coderd.write(t, "push.go", linkingClient)
	for _, module := range []string{"client", "client/drpctap", "proto"} {
		path := "github.com/coder/agentstatsd/" + module
		coderd.goRun(t, "mod", "edit", "-require", path+"@v0.1.0", "-replace", path+"="+filepath.Join(root, module))
		before[path] = "v0.1.0"
	}
	coderd.goRun(t, "mod", "tidy")
	for path, version := range coderd.versions(t) {
		assert.Equal(t, before[path], version, path)
	}
	var mod struct{ Go, Toolchain string }
	require.NoError(t, json.Unmarshal([]byte(coderd.goRun(t, "mod", "edit", "-json")), &mod))
	require.Equal(t, "1.24", mod.Go)
	require.Empty(t, mod.Toolchain)
	coderd.goRun(t, "vet", ".")
	coderd.goRun(t, "build", "-o", os.DevNull, ".")
	coderd.goRun(t, "test", "-vet=off", "github.com/coder/agentstatsd/client/...")
}
