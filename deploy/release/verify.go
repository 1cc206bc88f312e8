package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"sigs.k8s.io/yaml"
)

// sums is the file that has the sum of each other file of a release.
const sums = "SHA256SUMS"

// verification is what is known of a release while its files are looked at.
type verification struct {
	dist, version string
	files         []string          // of the release that nobody looked at yet, without the sums
	programs      map[string][]byte // by platform, those of the archives
}

// kind is a file that a release must have.
type kind struct {
	file  string
	check func(file string) error
}

// kinds returns all files of a release for some platforms. The archives are first: other
// files are compared with the programs in them.
func (v *verification) kinds(platforms []string) (all []kind) {
	name := "agentstatsd-" + v.version + "-"
	for _, p := range platforms {
		all = append(all, kind{name + p + ".tar.gz", v.archive})
	}
	for _, p := range platforms {
		all = append(all, kind{name + p + ".cdx.json", v.modules})
		all = append(all, v.packages(p)...)
	}
	return append(all,
		kind{name + "image.tar", v.image},
		kind{name + "prometheus.tar.gz", v.notEmpty},
		kind{name + "grafana.tar.gz", v.notEmpty},
		// As Helm names it: its versions have no v.
		kind{"agentstatsd-" + strings.TrimPrefix(v.version, "v") + ".tgz", v.chart})
}

// verify looks whether the files of a release are whole, and of the version. It writes a
// line for each, and returns all that is wrong.
func verify(w io.Writer, dist, version string, platforms []string) error {
	v := &verification{dist: dist, version: version, programs: make(map[string][]byte)}
	wrong := v.checkSums()
	for _, k := range v.kinds(platforms) {
		i := slices.Index(v.files, k.file)
		if i < 0 {
			wrong = errors.Join(wrong, fmt.Errorf("%s: is not there", k.file))
			continue
		}
		v.files = slices.Delete(v.files, i, i+1)
		if err := k.check(k.file); err != nil {
			wrong = errors.Join(wrong, fmt.Errorf("%s: %w", k.file, err))
			continue
		}
		if _, err := fmt.Fprintf(w, "%s\tis %s\n", k.file, version); err != nil {
			return err
		}
	}
	for _, file := range v.files {
		wrong = errors.Join(wrong, fmt.Errorf("%s: is not of the release %s", file, version))
	}
	return wrong
}

// checkSums compares the files with their sums. A file without a sum is wrong, too.
func (v *verification) checkSums() error {
	text, err := os.ReadFile(filepath.Join(v.dist, sums))
	if err != nil {
		return fmt.Errorf("read the sums: %w", err)
	}
	want := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		sum, file, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			return fmt.Errorf("%s: want SUM  FILE, got %q", sums, line)
		}
		want[file] = sum
	}
	entries, err := os.ReadDir(v.dist)
	if err != nil {
		return fmt.Errorf("list the release: %w", err)
	}
	var wrong error
	for _, e := range entries {
		if e.IsDir() || e.Name() == sums {
			continue
		}
		data, err := v.read(e.Name())
		if err != nil {
			return err
		}
		switch sum := sha256.Sum256(data); want[e.Name()] {
		case hex.EncodeToString(sum[:]):
		case "":
			wrong = errors.Join(wrong, fmt.Errorf("%s: has no sum", e.Name()))
		default:
			wrong = errors.Join(wrong, fmt.Errorf("%s: has another sum", e.Name()))
		}
		delete(want, e.Name())
		v.files = append(v.files, e.Name())
	}
	for file := range want {
		wrong = errors.Join(wrong, fmt.Errorf("%s: has a sum and is not there", file))
	}
	return wrong
}

func (v *verification) read(file string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(v.dist, file))
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	return data, nil
}

// unpacked returns the regular files of an archive.
func unpacked(r io.Reader) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("unpack: %w", err)
		}
		if !filepath.IsLocal(h.Name) {
			return nil, fmt.Errorf("unpack: %s leads out of the archive", h.Name)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if files[path.Clean(h.Name)], err = io.ReadAll(archive); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

func (v *verification) unzipped(file string) (map[string][]byte, error) {
	data, err := v.read(file)
	if err != nil {
		return nil, err
	}
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("unzip: %w", err)
	}
	return unpacked(r)
}

// platformOf returns that which a file's name ends with, linux-amd64 for one.
func (v *verification) platformOf(file string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(file, "agentstatsd-"+v.version+"-"), ".")
	return name
}

// archive looks at the program in an archive: that it is static, of its platform, and says
// the version. That of another machine cannot be asked, only read.
func (v *verification) archive(file string) error {
	files, err := v.unzipped(file)
	if err != nil {
		return err
	}
	platform := v.platformOf(file)
	dir := strings.TrimSuffix(file, ".tar.gz")
	program := files[dir+"/agentstatsd"]
	v.programs[platform] = program
	for _, name := range []string{"agentstatsd", "LICENSE", "README.md", "CHANGELOG.md"} {
		if len(files[dir+"/"+name]) == 0 {
			return fmt.Errorf("has no %s", name)
		}
	}
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("read what the program was built from: %w", err)
	}
	settings := make(map[string]string)
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if got := settings["GOOS"] + "-" + settings["GOARCH"]; got != platform {
		return fmt.Errorf("the program is for %s", got)
	}
	image, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	if slices.ContainsFunc(image.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) || settings["CGO_ENABLED"] != "0" {
		return errors.New("the program is not static")
	}
	if !bytes.Contains(program, []byte(v.version)) {
		return errors.New("the program has another version")
	}
	if platform != runtime.GOOS+"-"+runtime.GOARCH {
		return nil
	}
	said, err := ask(program)
	if want := "agentstatsd " + v.version + ","; err == nil && !strings.HasPrefix(said, want) {
		err = fmt.Errorf("the program says %q, want %q", said, want)
	}
	return err
}

// ask returns what a program says of its version.
func ask(program []byte) (string, error) {
	dir, err := os.MkdirTemp("", "agentstatsd-release-")
	if err != nil {
		return "", fmt.Errorf("ask the program: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "agentstatsd")
	if err := os.WriteFile(file, program, 0o700); err != nil { //nolint:gosec // it is run
		return "", fmt.Errorf("ask the program: %w", err)
	}
	out, err := exec.Command(file, "version").CombinedOutput() //nolint:noctx // it answers at once
	if err != nil {
		return "", fmt.Errorf("ask the program: %w: %s", err, out)
	}
	return string(out), nil
}

// modules looks whether a list of modules is that of the platform's program.
func (v *verification) modules(file string) error {
	data, err := v.read(file)
	if err != nil {
		return err
	}
	var list struct {
		Metadata struct {
			Component struct {
				Version string
				Hashes  []struct{ Content string }
			}
		}
		Components []struct{ Name string }
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	self := list.Metadata.Component
	sum := sha256.Sum256(v.programs[v.platformOf(file)])
	switch {
	case self.Version != v.version:
		return fmt.Errorf("it is of %s", self.Version)
	case len(self.Hashes) != 1 || self.Hashes[0].Content != hex.EncodeToString(sum[:]):
		return errors.New("it is of another program")
	case len(list.Components) < 2:
		return errors.New("it has no modules")
	}
	return nil
}

// chart looks whether the chart has the version, and the program's as that of the image.
func (v *verification) chart(file string) error {
	files, err := v.unzipped(file)
	if err != nil {
		return err
	}
	var chart struct{ Version, AppVersion string }
	if err := yaml.Unmarshal(files["agentstatsd/Chart.yaml"], &chart); err != nil {
		return fmt.Errorf("decode Chart.yaml: %w", err)
	}
	if chart.Version != strings.TrimPrefix(v.version, "v") || chart.AppVersion != v.version {
		return fmt.Errorf("the chart is of %q, for %q", chart.Version, chart.AppVersion)
	}
	return nil
}

// image looks whether a layout is valid, and has the programs of the archives.
func (v *verification) image(file string) error {
	data, err := v.read(file)
	if err != nil {
		return err
	}
	files, err := unpacked(bytes.NewReader(data))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "agentstatsd-release-")
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for name, data := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), data, 0o600)); err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
	}
	all, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return fmt.Errorf("read the layout: %w", err)
	}
	manifest, err := all.IndexManifest()
	if err != nil || len(manifest.Manifests) == 0 {
		return fmt.Errorf("the layout has no image: %w", err)
	}
	first := manifest.Manifests[0]
	if got := first.Annotations["org.opencontainers.image.version"]; got != v.version {
		return fmt.Errorf("the image is of %q", got)
	}
	index, err := all.ImageIndex(first.Digest)
	if err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	if err := validate.Index(index); err != nil {
		return fmt.Errorf("the image is not valid: %w", err)
	}
	return v.imagePrograms(index)
}

func (v *verification) imagePrograms(index v1.ImageIndex) error {
	manifest, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	if len(manifest.Manifests) != len(v.programs) {
		return fmt.Errorf("it is for %d platforms, want %d", len(manifest.Manifests), len(v.programs))
	}
	for _, d := range manifest.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			return fmt.Errorf("read the image for %s: %w", d.Platform, err)
		}
		content := mutate.Extract(img)
		files, err := unpacked(content)
		if err := errors.Join(err, content.Close()); err != nil {
			return fmt.Errorf("read the image for %s: %w", d.Platform, err)
		}
		if !bytes.Equal(files["usr/bin/agentstatsd"], v.programs[d.Platform.OS+"-"+d.Platform.Architecture]) {
			return fmt.Errorf("the image for %s has another program than the archive", d.Platform)
		}
	}
	return nil
}

// notEmpty looks whether an archive has files at all.
func (v *verification) notEmpty(file string) error {
	files, err := v.unzipped(file)
	if err == nil && len(files) == 0 {
		err = errors.New("is empty")
	}
	return err
}
