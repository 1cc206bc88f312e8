package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// sbomType is the media type of a CycloneDX document in JSON.
const sbomType = "application/vnd.cyclonedx+json"

// release is what an image is made of.
type release struct {
	Version  string    // as the program says it, vX.Y.Z
	Revision string    // the commit
	Created  time.Time // of the image and of all files in it, to the second
	Source   string    // URL of the repository
	// Programs has, for each of Platforms, PLATFORM/agentstatsd and its list of
	// modules, PLATFORM/agentstatsd.cdx.json.
	Programs  string
	License   []byte
	Platforms []v1.Platform
}

// annotations are the labels of the configuration, too.
func (r *release) annotations() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":         "agentstatsd",
		"org.opencontainers.image.description":   "Takes the telemetry of Coder's workspace agents off coderd.",
		"org.opencontainers.image.version":       r.Version,
		"org.opencontainers.image.revision":      r.Revision,
		"org.opencontainers.image.created":       r.Created.UTC().Format(time.RFC3339),
		"org.opencontainers.image.source":        r.Source,
		"org.opencontainers.image.url":           r.Source,
		"org.opencontainers.image.documentation": r.Source + "#readme",
		"org.opencontainers.image.licenses":      "Apache-2.0",
	}
}

// tag returns the version as a tag of an image, which cannot have a plus.
func (r *release) tag() string { return strings.ReplaceAll(r.Version, "+", "_") }

// config is how a container starts. The default data directory, data, is in the user's.
func (r *release) config() v1.Config {
	return v1.Config{
		User:         strconv.Itoa(user) + ":" + strconv.Itoa(user),
		Entrypoint:   []string{"/" + program},
		Env:          []string{"PATH=/usr/bin"},
		WorkingDir:   "/" + dataDir,
		ExposedPorts: map[string]struct{}{"2112/tcp": {}, "2113/tcp": {}, "2114/tcp": {}},
		StopSignal:   "SIGTERM",
		Labels:       r.annotations(),
	}
}

// image returns that of a platform, of two layers: the first changes seldom.
func (r *release) image(platform v1.Platform, base v1.Layer) (v1.Image, error) {
	e, err := readProgram(filepath.Join(r.Programs, platform.OS+"-"+platform.Architecture, "agentstatsd"))
	if err != nil {
		return nil, err
	}
	packed, err := pack([]entry{e}, r.Created)
	if err != nil {
		return nil, err
	}
	layer, err := newLayer(packed)
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: r.Created.UTC()}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: platform.OS, Architecture: platform.Architecture, Created: created, Config: r.config(),
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
	})
	if err != nil {
		return nil, fmt.Errorf("configure: %w", err)
	}
	img, err = mutate.Append(img,
		mutate.Addendum{Layer: base, History: v1.History{Created: created, CreatedBy: "deploy/image", Comment: "authorities, user, directories"}},
		mutate.Addendum{Layer: layer, History: v1.History{Created: created, CreatedBy: "deploy/image", Comment: "agentstatsd " + r.Version}})
	if err != nil {
		return nil, fmt.Errorf("append layers: %w", err)
	}
	return mutate.Annotations(img, r.annotations()).(v1.Image), nil
}

func newLayer(packed []byte) (v1.Layer, error) {
	layer, err := tarball.LayerFromOpener(opener(packed), tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, fmt.Errorf("compress a layer: %w", err)
	}
	return layer, nil
}

// modules returns the list of modules of a platform's program, attached to its image.
func (r *release) modules(platform v1.Platform, subject v1.Descriptor) (v1.Image, error) {
	file := filepath.Join(r.Programs, platform.OS+"-"+platform.Architecture, "agentstatsd.cdx.json")
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the list of modules: %w", err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), sbomType)
	img, err = mutate.AppendLayers(img, static.NewLayer(data, sbomType))
	if err != nil {
		return nil, fmt.Errorf("append the list of modules: %w", err)
	}
	annotations := map[string]string{"org.opencontainers.image.created": r.Created.UTC().Format(time.RFC3339)}
	return mutate.Subject(mutate.Annotations(img, annotations), subject).(v1.Image), nil
}

// index returns the image of all platforms, and the index of a layout that has it, by its
// tag, and the lists of modules beside it.
func (r *release) index() (image, all v1.ImageIndex, err error) {
	pem, err := authorities()
	if err != nil {
		return nil, nil, err
	}
	packed, err := pack(base(pem, r.License), r.Created)
	if err != nil {
		return nil, nil, err
	}
	layer, err := newLayer(packed)
	if err != nil {
		return nil, nil, err
	}
	image, all = mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var attached []mutate.IndexAddendum
	for _, p := range r.Platforms {
		img, err := r.image(p, layer)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", p, err)
		}
		image = mutate.AppendManifests(image, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
		subject, err := partial.Descriptor(img)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", p, err)
		}
		modules, err := r.modules(p, v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", p, err)
		}
		attached = append(attached, mutate.IndexAddendum{Add: modules, Descriptor: v1.Descriptor{ArtifactType: sbomType}})
	}
	image = mutate.Annotations(image, r.annotations()).(v1.ImageIndex)
	named := maps.Clone(r.annotations())
	named["org.opencontainers.image.ref.name"] = r.tag()
	all = mutate.AppendManifests(all, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Annotations: named}})
	return image, mutate.AppendManifests(all, attached...), nil
}

// write writes the layout to dir, in the place of what is there.
func (r *release) write(dir string) (v1.Hash, error) {
	image, all, err := r.index()
	if err != nil {
		return v1.Hash{}, err
	}
	if _, err := os.Stat(dir); err == nil {
		if _, err := layout.FromPath(dir); err != nil {
			return v1.Hash{}, fmt.Errorf("%s is there and is no layout of images: %w", dir, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return v1.Hash{}, fmt.Errorf("replace the layout: %w", err)
		}
	}
	if _, err := layout.Write(dir, all); err != nil {
		return v1.Hash{}, fmt.Errorf("write the layout: %w", err)
	}
	digest, err := image.Digest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("digest: %w", err)
	}
	return digest, nil
}
