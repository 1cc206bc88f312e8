package operator

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/freeport"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// untar returns the files of a bundle, in their order.
func untar(t *testing.T, path string) (names []string, files map[string]string) {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	compressed, err := gzip.NewReader(file)
	require.NoError(t, err)
	files = make(map[string]string)
	for archive := tar.NewReader(compressed); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names, files
		}
		require.NoError(t, err)
		require.EqualValues(t, 0o600, header.Mode)
		require.False(t, header.ModTime.After(time.Now()), "%s is of %s", header.Name, header.ModTime)
		text, err := io.ReadAll(archive)
		require.NoError(t, err)
		names, files[header.Name] = append(names, header.Name), string(text)
	}
}

// A bundle has no name of an owner, a workspace or an agent, and each has the same
// pseudonym in all its files.
func TestSupportBundle(t *testing.T) {
	agents := []*pb.AgentSummary{
		{Id: adaID, Owner: "ada", Workspace: "hopper-dev", Name: "laptop", Template: "docker", Status: "connected"},
		{Id: "2", Owner: "grace o'hara", Workspace: "cobol", Name: "main", Template: "docker"},
	}
	a := replicaStatus("a")
	a.Warnings = []string{"the agent of ada is slow"}
	a.Cardinality = []*pb.CardinalityGroup{{By: "owner", Rows: []*pb.CardinalityRow{{Name: "ada", Series: 3}}}, {By: "template", Rows: []*pb.CardinalityRow{{Name: "docker"}}}}
	one := startFake(t, "127.0.0.1", &fake{
		statuses: []*pb.ReplicaStatus{a, asSeen(replicaStatus("b"), 1)},
		agents:   agents,
		config:   &pb.GetConfigResponse{Options: []*pb.Option{{Flag: "max-series", Value: "5"}}},
		pushes:   &pb.ListPushesResponse{},
		refusals: &pb.ListRefusalsResponse{
			Agents: []*pb.RefusedAgent{{Id: "3", Owner: "gone", Workspace: "old", Name: "side", Refused: []*pb.Refused{
				{Reason: "invalid", Problem: "x: label user=hopper-dev of gone", Names: []string{"x_cobol_ada", "ada"}},
			}}},
			Sums: []*pb.RefusalSums{{By: "owner", Sums: []*pb.RefusalSum{{Name: "gone"}, {Name: "gone2"}}}, {By: "template", Sums: []*pb.RefusalSum{{Name: "docker"}}}},
		},
		cardinality: &pb.GetCardinalityResponse{Group: &pb.CardinalityGroup{By: "agent", Rows: []*pb.CardinalityRow{{Name: "grace o'hara/cobol.main", Id: "2"}}}},
		cost:        &pb.GetCostResponse{},
		files: []*pb.CollectBundleResponse{
			{Name: "log.txt", Data: []byte("msg=\"refused: ada/hopper-dev.laptop\" owner=ada workspace=" + adaID + "\nmsg=gone2 owner=\"grace o'hara\" work")},
			{Name: "log.txt", Data: []byte("space=vanished agent_name=lost template=docker\n{\"owner\":\"left\",\"n\":1}\n")},
			{Name: "../../etc/passwd", Data: []byte("grace o'hara was vanished")},
			{Name: "goroutines.txt", Data: []byte("main.main at cobol.go")},
			{Name: "cpu.pprof", Data: []byte("ada\x00\xff")},
		},
	}, nil)
	two := startFake(t, "127.0.0.1", &fake{
		statuses: []*pb.ReplicaStatus{replicaStatus("b")},
		files:    []*pb.CollectBundleResponse{{Name: "log.txt", Data: []byte("msg=\"left, lost, ada\"\n")}},
	}, nil)
	path := filepath.Join(t.TempDir(), "bundle.tar.gz")
	r := run(t, "support-bundle", path, "--address", addressesOf(two, one))
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, "missing: a-id-a/cardinality-owner.json: the service is of a version that does not answer this\n")
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode())
	names, files := untar(t, path)
	require.Equal(t, []string{
		"bundle.json", "a-id-a/_.._etc_passwd", "a-id-a/agents.json", "a-id-a/cardinality-agent.json", "a-id-a/config.json", "a-id-a/cost.json", "a-id-a/cpu.pprof",
		"a-id-a/goroutines.txt", "a-id-a/log.txt", "a-id-a/pushes.json", "a-id-a/refusals.json", "a-id-a/status.json",
	}, names[:12])
	require.Contains(t, files["bundle.json"], "a-id-a/cardinality-owner.json: the service is of a version that does not")
	require.Equal(t, "ada\x00\xff", files["a-id-a/cpu.pprof"])
	require.Equal(t, "main.main at cobol.go", files["a-id-a/goroutines.txt"])
	for name, text := range files {
		if isProfile(name) {
			continue
		}
		require.NotRegexp(t, regexp.MustCompile(`\b(ada|hopper-dev|laptop|grace|cobol|gone|gone2|old|side|vanished|lost|left)\b`), text, name)
	}
	// The same name, the same pseudonym; what is no name stays.
	ada := regexp.MustCompile(`owner=(owner-[0-9a-f]{12}) workspace=` + adaID).FindStringSubmatch(files["a-id-a/log.txt"])
	require.NotNil(t, ada, files["a-id-a/log.txt"])
	require.Contains(t, files["a-id-a/agents.json"], `"owner": "`+ada[1]+`"`)
	require.Contains(t, files["a-id-a/status.json"], "the agent of "+ada[1]+" is slow")
	require.Contains(t, files["a-id-a/status.json"], `"name": "`+ada[1]+`"`)
	require.Contains(t, files["b-id-b/log.txt"], ", "+ada[1])
	require.Contains(t, files["a-id-a/refusals.json"], `"x_cobol_ada"`)
	require.Equal(t, 3, strings.Count(files["a-id-a/agents.json"]+files["a-id-a/refusals.json"], `"docker"`))
	require.Regexp(t, `"name": "owner-[0-9a-f]{12}/workspace-[0-9a-f]{12}.agent-[0-9a-f]{12}"`, files["a-id-a/cardinality-agent.json"])

	r = run(t, "support-bundle", path, "--address", one.address)
	require.EqualError(t, r.err, path+" exists: name a new file")

	// Another bundle has other pseudonyms. It says who was not asked.
	path += "2"
	r = run(t, "support-bundle", path, "--cpu-profile", "0s", "--address", one.address+","+freeport.Addr())
	require.Equal(t, exitPartial, ExitCode(r.err))
	_, again := untar(t, path)
	require.NotContains(t, again["a-id-a/log.txt"], ada[1])
	require.NotContains(t, again, "a-id-a/cpu.pprof")
	require.Contains(t, again["bundle.json"], "nobody listens there")
}

// A replica that cannot list its agents may be the one that is looked at: what else it
// answers is there.
func TestSupportBundleWithoutAgents(t *testing.T) {
	f := startFake(t, "127.0.0.1", &fake{
		statuses: []*pb.ReplicaStatus{replicaStatus("a")}, noAgents: true,
		files: []*pb.CollectBundleResponse{{Name: "log.txt", Data: []byte("msg=\"the registrations are not loaded\" owner=ada\n")}},
	}, nil)
	path := filepath.Join(t.TempDir(), "bundle.tar.gz")
	require.NoError(t, run(t, "support-bundle", path, "--address", f.address).err)
	_, files := untar(t, path)
	require.Contains(t, files["bundle.json"], "a-id-a/agents.json: the registrations are not available now")
	require.Regexp(t, `^msg="the registrations are not loaded" owner=owner-[0-9a-f]{12}\n$`, files["a-id-a/log.txt"])
	require.Contains(t, files, "a-id-a/status.json")
}
