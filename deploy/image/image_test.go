package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/require"
)

const (
	testVersion  = "v1.2.3-rc.1+dirty"
	testRevision = "0123456789abcdef0123456789abcdef01234567"
	testTime     = 1_796_000_000
)

// programs has the real program for this machine. For the other one it has a small one:
// building ours anew for it takes minutes.
var programs string

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "agentstatsd-image-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// The user of the image has to reach it.
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // see above
		return 0, err
	}
	programs = dir
	for _, platform := range []string{"linux-amd64", "linux-arm64"} {
		build := []string{".", "./testdata/authorities"}
		if platform == "linux-"+runtime.GOARCH {
			build = []string{"../..", "-ldflags", "-X main.release=" + testVersion, "./cmd/agentstatsd"}
		}
		file := filepath.Join(dir, platform, "agentstatsd")
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-o", file}, build[1:]...)...)
		cmd.Dir = build[0]
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+strings.TrimPrefix(platform, "linux-"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build for %s: %w\n%s", platform, err, out)
		}
		out, err := exec.Command("go", "run", "../sbom", "-version", testVersion, "-output", file+".cdx.json", file).CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("list of modules: %w\n%s", err, out)
		}
	}
	written = filepath.Join(dir, "image")
	if err := writeImage(written); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// written is the layout of an image that tests look at.
var written string

// writeImage runs the program.
func writeImage(dir string, args ...string) error {
	return run(append([]string{
		"-version", testVersion, "-revision", testRevision, "-created", strconv.Itoa(testTime),
		"-programs", programs, "-license", "../../LICENSE", "-output", dir,
	}, args...))
}

// readLayout returns the index of the image, and the lists of modules beside it.
func readLayout(t *testing.T) (image v1.ImageIndex, lists []v1.Image) {
	t.Helper()
	all, err := layout.ImageIndexFromPath(written)
	require.NoError(t, err)
	manifest, err := all.IndexManifest()
	require.NoError(t, err)
	require.Equal(t, strings.ReplaceAll(testVersion, "+", "_"), manifest.Manifests[0].Annotations["org.opencontainers.image.ref.name"])
	image, err = all.ImageIndex(manifest.Manifests[0].Digest)
	require.NoError(t, err)
	for _, d := range manifest.Manifests[1:] {
		require.Equal(t, sbomType, d.ArtifactType)
		list, err := all.Image(d.Digest)
		require.NoError(t, err)
		lists = append(lists, list)
	}
	return image, lists
}

// images returns those of the platforms.
func images(t *testing.T, index v1.ImageIndex) map[string]v1.Image {
	t.Helper()
	manifest, err := index.IndexManifest()
	require.NoError(t, err)
	found := make(map[string]v1.Image)
	for _, d := range manifest.Manifests {
		found[d.Platform.String()], err = index.Image(d.Digest)
		require.NoError(t, err)
	}
	require.Len(t, found, 2)
	return found
}

func TestLayoutIsValid(t *testing.T) {
	index, lists := readLayout(t)
	require.NoError(t, validate.Index(index))
	for _, list := range lists {
		require.NoError(t, validate.Image(list))
	}
	// Nobody else's directory is removed.
	other := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(other, "file"), nil, 0o600))
	require.ErrorContains(t, run([]string{"-version", "v1", "-revision", "a", "-created", "1", "-programs", programs, "-license", "../../LICENSE", "-output", other}),
		"is no layout of images")
	require.FileExists(t, filepath.Join(other, "file"))
	require.ErrorContains(t, run([]string{"-version", "v1", "-revision", "a", "-created", "today"}), `-created: want seconds since 1970, got "today"`)
	require.ErrorContains(t, run([]string{"-created", "1"}), `-version and -revision: want both, got "" and ""`)
}

func TestConfiguration(t *testing.T) {
	index, _ := readLayout(t)
	for platform, image := range images(t, index) {
		file, err := image.ConfigFile()
		require.NoError(t, err)
		require.Equal(t, platform, file.OS+"/"+file.Architecture)
		require.Equal(t, time.Unix(testTime, 0).UTC(), file.Created.Time)
		c := file.Config
		require.Equal(t, "65532:65532", c.User, "a number, which Kubernetes sees is not root's")
		require.Equal(t, []string{"/usr/bin/agentstatsd"}, c.Entrypoint)
		require.Empty(t, c.Cmd)
		require.Equal(t, []string{"PATH=/usr/bin"}, c.Env)
		require.Equal(t, "/var/lib/agentstatsd", c.WorkingDir)
		require.Equal(t, map[string]struct{}{"2112/tcp": {}, "2113/tcp": {}, "2114/tcp": {}}, c.ExposedPorts)
		manifest, err := image.Manifest()
		require.NoError(t, err)
		require.Equal(t, manifest.Annotations, c.Labels)
		for label, want := range map[string]string{
			"title": "agentstatsd", "version": testVersion, "revision": testRevision, "licenses": "Apache-2.0",
			"created": "2026-11-30T00:53:20Z", "source": "https://github.com/coder/agentstatsd",
		} {
			require.Equal(t, want, c.Labels["org.opencontainers.image."+label])
		}
	}
}

// eachFile calls f with the files of an image, as a runtime would lay them out.
func eachFile(t *testing.T, image v1.Image, f func(h *tar.Header, data io.Reader)) {
	t.Helper()
	content := mutate.Extract(image)
	defer func() { require.NoError(t, content.Close()) }()
	r := tar.NewReader(content)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		f(h, r)
	}
}

// There is one program, no shell, and nothing that others may write but /tmp.
func TestFiles(t *testing.T) {
	index, _ := readLayout(t)
	for platform, image := range images(t, index) {
		var names, executables []string
		eachFile(t, image, func(h *tar.Header, data io.Reader) {
			names = append(names, h.Name)
			require.Equal(t, time.Unix(testTime, 0), h.ModTime, h.Name)
			require.Empty(t, h.Uname+h.Gname, h.Name)
			switch h.Name {
			case "tmp":
				require.Equal(t, int64(0o1777), h.Mode)
			case dataDir:
				require.Equal(t, []int64{0o700, user, user}, []int64{h.Mode, int64(h.Uid), int64(h.Gid)})
			default:
				require.Zero(t, h.Mode&0o7022, "%s: others may write, or it runs as its owner", h.Name)
				require.Zero(t, h.Uid+h.Gid, h.Name)
			}
			require.Contains(t, []byte{tar.TypeReg, tar.TypeDir}, h.Typeflag, h.Name)
			if h.Typeflag == tar.TypeReg && h.Mode&0o111 != 0 {
				executables = append(executables, h.Name)
			}
			if h.Name == program {
				got, err := io.ReadAll(data)
				require.NoError(t, err)
				want, err := os.ReadFile(filepath.Join(programs, strings.ReplaceAll(platform, "/", "-"), "agentstatsd"))
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
		})
		require.Equal(t, []string{program}, executables)
		require.Len(t, slices.Compact(slices.Sorted(slices.Values(names))), len(names), "a file is there twice")
	}
}

// Two images of one release are the same, whenever and wherever they are made.
func TestReproducible(t *testing.T) {
	t.Setenv("TZ", "Asia/Kathmandu")
	dir := filepath.Join(t.TempDir(), "image")
	require.NoError(t, writeImage(dir))
	first := sums(t, written)
	require.Equal(t, first, sums(t, dir))
	require.NoError(t, writeImage(dir, "-created", "1"), "in the place of another")
	require.NotEqual(t, first, sums(t, dir))
	require.Len(t, sums(t, dir), len(first), "nothing of the other is left")
}

// sums returns those of the files in a directory.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(name)
		found[strings.TrimPrefix(name, dir)] = fmt.Sprintf("%x", sha256.Sum256(data))
		return err
	}))
	return found
}

// The lists of modules are attached to the images, and have what Go says that the programs
// were linked with.
func TestModules(t *testing.T) {
	index, lists := readLayout(t)
	require.Len(t, lists, 2)
	byImage := make(map[v1.Hash]v1.Image)
	for _, list := range lists {
		manifest, err := list.Manifest()
		require.NoError(t, err)
		byImage[manifest.Subject.Digest] = list
	}
	for platform, image := range images(t, index) {
		digest, err := image.Digest()
		require.NoError(t, err)
		require.Contains(t, byImage, digest)
		layers, err := byImage[digest].Layers()
		require.NoError(t, err)
		r, err := layers[0].Uncompressed()
		require.NoError(t, err)
		var list struct {
			Metadata struct {
				Component struct{ Version, Purl string }
			}
			Components []struct{ Name, Version, Purl string }
		}
		require.NoError(t, json.NewDecoder(r).Decode(&list))
		require.Equal(t, testVersion, list.Metadata.Component.Version)

		out, err := exec.Command("go", "version", "-m", filepath.Join(programs, strings.ReplaceAll(platform, "/", "-"), "agentstatsd")).Output()
		require.NoError(t, err)
		system, machine, _ := strings.Cut(platform, "/")
		var want, got []string
		for _, m := range regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`).FindAllStringSubmatch(string(out), -1) {
			version := m[2]
			if strings.HasPrefix(m[1], "github.com/coder/agentstatsd/") {
				version = testVersion
			}
			want = append(want, m[1]+" "+version)
		}
		for _, c := range list.Components {
			if c.Name == "stdlib" {
				require.Contains(t, string(out), ": go"+c.Version+"\n")
				continue
			}
			got = append(got, c.Name+" "+c.Version)
			require.Equal(t, "pkg:golang/"+c.Name+"@"+strings.ReplaceAll(c.Version, "+", "%2B")+"?type=module&goos="+system+"&goarch="+machine, c.Purl)
		}
		require.Equal(t, want, got)
		require.Len(t, list.Components, len(want)+1)
		if platform == "linux/"+runtime.GOARCH {
			require.Greater(t, len(want), 50)
		}
	}
}

// What the manifests run is the program.
func TestManifestsNameTheProgram(t *testing.T) {
	found := 0
	for _, pattern := range []string{"../kubernetes/*.yaml", "../helm/testdata/golden/*.yaml"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, command := range regexp.MustCompile(`(?m)^ +command: \[(/?agentstatsd|/.*/agentstatsd)\]`).FindAllSubmatch(text, -1) {
				found++
				require.Equal(t, "/"+program, string(command[1]), file)
			}
		}
	}
	require.NotZero(t, found)
}

// The Dockerfile's image starts as ours does.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("../Dockerfile")
	require.NoError(t, err)
	_, last, ok := strings.Cut(string(text), "\nFROM gcr.io/distroless/static-debian12:nonroot\n")
	require.True(t, ok)
	index, _ := readLayout(t)
	file, err := images(t, index)["linux/"+runtime.GOARCH].ConfigFile()
	require.NoError(t, err)
	c := file.Config
	require.Contains(t, last, "\nUSER "+c.User+"\n")
	require.Contains(t, last, "\nWORKDIR "+c.WorkingDir+"\n")
	require.Contains(t, last, "\nENTRYPOINT [\""+c.Entrypoint[0]+"\"]\n")
	require.Contains(t, last, " "+c.Entrypoint[0]+"\n", "the program is where it starts")
	require.Contains(t, last, "--chown="+c.User+" /data "+c.WorkingDir+"\n")
	for port := range c.ExposedPorts {
		require.Regexp(t, `(?m)^EXPOSE .*\b`+strings.TrimSuffix(port, "/tcp")+`\b`, last)
	}
	for _, label := range []string{"title", "source", "licenses"} {
		name := "org.opencontainers.image." + label
		require.Contains(t, last, name+"="+c.Labels[name])
	}
}
