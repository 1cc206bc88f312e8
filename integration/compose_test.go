package integration

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/freeport"
)

const composeDir = "../examples/compose"

// loadCompose reads the example as Compose does, strictly, with these variables.
func loadCompose(t *testing.T, file string, env ...string) (*types.Project, error) {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{file}, cli.WithEnv(env), cli.WithWorkingDirectory(composeDir), cli.WithResolvedPaths(true))
	require.NoError(t, err)
	return options.LoadProject(t.Context())
}

var composeVariables = []string{"POSTGRES_PASSWORD=secret", "CODER_ACCESS_URL=http://192.0.2.10:7080"}

func compose(t *testing.T) *types.Project {
	t.Helper()
	project, err := loadCompose(t, filepath.Join(composeDir, "compose.yaml"), composeVariables...)
	require.NoError(t, err)
	return project
}

// Compose takes the example, and nothing else that looks like it.
func TestComposeIsValid(t *testing.T) {
	compose(t)
	for _, missing := range composeVariables {
		name, _, _ := strings.Cut(missing, "=")
		_, err := loadCompose(t, filepath.Join(composeDir, "compose.yaml"), slices.DeleteFunc(slices.Clone(composeVariables), func(v string) bool { return v == missing })...)
		require.ErrorContains(t, err, name)
	}
	text, err := os.ReadFile(filepath.Join(composeDir, "compose.yaml"))
	require.NoError(t, err)
	for _, wrong := range [][2]string{{"stop_grace_period", "stop_grace"}, {"depends_on: [agentstatsd, coder]", "depends_on: [agentstatsd, coderd]"}, {"networks: [telemetry]", "networks: [metrics]"}} {
		require.Contains(t, string(text), wrong[0])
		file := filepath.Join(t.TempDir(), "compose.yaml")
		require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(text), wrong[0], wrong[1], 1)), 0o600))
		_, err := loadCompose(t, file, composeVariables...)
		require.Error(t, err, wrong[1])
	}
}

// madeByReader are the files that README.md has its reader make.
var madeByReader = []string{"coderd-token", "coder-api-token"}

// All files that are mounted are there, all hosts that are dialed are in one network, and
// all addresses are in theirs.
func TestComposeFitsTogether(t *testing.T) {
	project := compose(t)
	readme, err := os.ReadFile(filepath.Join(composeDir, "README.md"))
	require.NoError(t, err)
	ignored, err := os.ReadFile(filepath.Join(composeDir, ".gitignore"))
	require.NoError(t, err)
	for name, secret := range project.Secrets {
		require.Contains(t, madeByReader, filepath.Base(secret.File), name)
		require.Contains(t, string(readme), filepath.Base(secret.File))
		require.Contains(t, string(ignored), "/"+filepath.Base(secret.File)+"\n")
	}
	here, err := filepath.Abs("..")
	require.NoError(t, err)
	for _, s := range project.Services {
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind && v.Source != "/var/run/docker.sock" {
				require.FileExists(t, v.Source, s.Name)
				require.True(t, strings.HasPrefix(v.Source, here), v.Source)
			}
		}
		if s.Build != nil {
			require.FileExists(t, filepath.Join(s.Build.Context, s.Build.Dockerfile))
			require.Equal(t, here, s.Build.Context)
		}
		for _, host := range regexp.MustCompile(`(?:/|@|=)([a-z]+):[0-9]+`).FindAllStringSubmatch(strings.Join(s.Command, " "), -1) {
			requireReaches(t, project, s, host[1])
		}
	}
	requireReaches(t, project, project.Services["coder"], "database")
	for _, target := range composeTargets(t) {
		host, _, _ := strings.Cut(target, ":")
		requireReaches(t, project, project.Services["prometheus"], host)
	}

	// coderd believes the bridge only.
	bridge := project.Services["bridge"].Networks["default"].Ipv4Address
	require.Equal(t, bridge+"/32", *project.Services["coder"].Environment["CODER_PROXY_TRUSTED_ORIGINS"])
	require.Empty(t, project.Services["coder"].Ports, "the bridge has its port")
	for _, name := range []string{"agentstatsd", "bridge"} {
		s := project.Services[name]
		require.True(t, s.ReadOnly)
		require.Equal(t, []string{"ALL"}, s.CapDrop)
		require.Equal(t, []string{"no-new-privileges:true"}, s.SecurityOpt)
	}
}

func requireReaches(t *testing.T, project *types.Project, from types.ServiceConfig, host string) {
	t.Helper()
	to, ok := project.Services[host]
	require.True(t, ok, "%s: no service %s", from.Name, host)
	for network := range from.Networks {
		if _, ok := to.Networks[network]; ok {
			return
		}
	}
	require.Fail(t, from.Name+" and "+host+" have no network in common")
}

// composeConfig returns the configuration of the example's Prometheus.
func composeConfig(t *testing.T) *config.Config {
	t.Helper()
	cfg, err := config.LoadFile(filepath.Join(composeDir, "prometheus.yml"), false, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return cfg
}

func composeTargets(t *testing.T) (targets []string) {
	t.Helper()
	jobs, err := composeConfig(t).GetScrapeConfigs()
	require.NoError(t, err)
	for _, job := range jobs {
		for _, group := range job.ServiceDiscoveryConfigs[0].(discovery.StaticConfig) {
			for _, target := range group.Targets {
				targets = append(targets, string(target["__address__"]))
			}
		}
	}
	require.Len(t, targets, 2)
	return targets
}

// Prometheus takes its configuration where it is mounted, with the rules beside it.
func TestComposePrometheus(t *testing.T) {
	s := compose(t).Services["prometheus"]
	dir := t.TempDir()
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind {
			text, err := os.ReadFile(v.Source)
			require.NoError(t, err)
			require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, v.Target)), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, v.Target), text, 0o600))
		}
	}
	file, ok := strings.CutPrefix(s.Command[0], "--config.file=")
	require.True(t, ok)
	out, err := exec.Command(debian(t, "promtool"), "check", "config", filepath.Join(dir, file)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Regexp(t, `SUCCESS: \d+ rules found`, string(out))
}

// The service and the bridge start with the command lines of the example, beside a stand-in
// for coderd, and what an agent says arrives.
func TestComposeRuns(t *testing.T) {
	beside(t)
	coderd := newStandIn(t, 1)
	metrics := freeport.Addr()
	// What README.md has its reader make, here.
	secrets := t.TempDir()
	readme, err := os.ReadFile(filepath.Join(composeDir, "README.md"))
	require.NoError(t, err)
	block := regexp.MustCompile("(?s)```sh\n(.*?)\nsudo ").FindStringSubmatch(string(readme))
	require.NotNil(t, block)
	command := exec.Command("sh", "-ec", block[1])
	command.Dir = secrets
	out, err := command.CombinedOutput()
	require.NoError(t, err, "%s", out)
	written, err := os.ReadFile(filepath.Join(secrets, ".env"))
	require.NoError(t, err)
	project, err := loadCompose(t, filepath.Join(composeDir, "compose.yaml"), strings.Fields(string(written))...)
	require.NoError(t, err)
	for _, file := range append(madeByReader, ".env") {
		info, err := os.Stat(filepath.Join(secrets, file))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), file)
	}
	require.NoError(t, os.WriteFile(filepath.Join(secrets, "coder-api-token"), []byte(apiToken), 0o600))
	s := newService(t)
	b := newBridge(t, coderd, s)
	// commandOf returns the command of a container, with the places of this test.
	commandOf := func(name string, places ...string) []string {
		command := strings.Join(project.Services[name].Command, "\n")
		for i := 0; i < len(places); i += 2 {
			require.Contains(t, command, places[i], name)
			command = strings.ReplaceAll(command, places[i], places[i+1])
		}
		return strings.Split(strings.ReplaceAll(command, "/run/secrets", secrets), "\n")
	}
	serve := commandOf("agentstatsd", "/var/lib/agentstatsd/data", s.dataDir, "0.0.0.0:2112", s.httpAddr, "0.0.0.0:2113", s.grpcAddr)
	s.command, s.args = serve[0], serve[1:]
	s.start(t)
	b.args = commandOf("bridge", "0.0.0.0:2114", b.addr, "0.0.0.0:2112", b.httpAddr, "//agentstatsd:2113", "//"+s.grpcAddr,
		"//coder:7080", "//"+coderd.addr, "//coder:2112", "//"+metrics)
	require.Contains(t, b.args, "--service-url=agentstatsd://"+s.grpcAddr+"?plaintext=true&token_file="+secrets+"/coderd-token")
	b.start(t)
	agent, err := dialThrough(context.Background(), b.addr, 0)
	require.NoError(t, err)
	defer func() { _ = agent.Close() }()
	require.Eventually(t, func() bool { return s.total(t, "coderd_agents_up") == 1 }, time.Minute, 50*time.Millisecond)
	b.drain(t)
	_, err = s.stop(syscall.SIGTERM)
	require.NoError(t, err)
}
