// Sbom writes which modules a program of ours is built from, as CycloneDX in JSON. It
// reads them from the program, which has what it was linked with, and calls modules of
// this repository by the release's version: the program has directories in their place.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	cyclonedx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("sbom", flag.ContinueOnError)
	version := flags.String("version", "", "the version of the program, vX.Y.Z")
	created := flags.Int64("created", 0, "the commit's time, in seconds since 1970")
	output := flags.String("output", "", "the file to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || *output == "" || *version == "" {
		return fmt.Errorf("want -version, -output and one program, got %q", args)
	}
	program, err := os.ReadFile(flags.Arg(0))
	if err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	list, err := modules(program, *version, time.Unix(*created, 0).UTC())
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := cyclonedx.NewBOMEncoder(&text, cyclonedx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(list, cyclonedx.SpecVersion1_6); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := os.WriteFile(*output, text.Bytes(), 0o644); err != nil { //nolint:gosec // it is for everybody
		return fmt.Errorf("write the list of modules: %w", err)
	}
	return nil
}

// modules returns the list of a program, which is always the same.
func modules(program []byte, version string, created time.Time) (*cyclonedx.BOM, error) {
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return nil, fmt.Errorf("read what the program was built from: %w", err)
	}
	settings := make(map[string]string)
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	platform := "&goos=" + settings["GOOS"] + "&goarch=" + settings["GOARCH"]
	sum := sha256.Sum256(program)
	list := cyclonedx.NewBOM()
	list.SerialNumber = uuid.NewSHA1(uuid.NameSpaceOID, sum[:]).URN()
	self := component(info.Main.Path, version, platform)
	self.Type = cyclonedx.ComponentTypeApplication
	self.Licenses = &cyclonedx.Licenses{{License: &cyclonedx.License{ID: "Apache-2.0"}}}
	self.Hashes = &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}}
	list.Metadata = &cyclonedx.Metadata{Timestamp: created.Format(time.RFC3339), Component: &self}

	library := component("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "")
	components, needs := []cyclonedx.Component{library}, []string{library.BOMRef}
	for _, m := range info.Deps {
		c := component(m.Path, m.Version, platform)
		switch {
		case strings.HasPrefix(m.Path, info.Main.Path+"/"): // replaced by a directory
			c = component(m.Path, version, platform)
		case m.Replace != nil:
			c = component(m.Replace.Path, m.Replace.Version, platform)
			c.Properties = &[]cyclonedx.Property{{Name: "go:h1", Value: m.Replace.Sum}}
		default:
			c.Properties = &[]cyclonedx.Property{{Name: "go:h1", Value: m.Sum}}
		}
		components, needs = append(components, c), append(needs, c.BOMRef)
	}
	list.Components = &components
	// A program has no graph of its modules.
	list.Dependencies = &[]cyclonedx.Dependency{{Ref: self.BOMRef, Dependencies: &needs}}
	list.Compositions = &[]cyclonedx.Composition{{
		Aggregate: cyclonedx.CompositionAggregateComplete, Assemblies: &[]cyclonedx.BOMReference{cyclonedx.BOMReference(self.BOMRef)},
	}}
	return list, nil
}

// component returns a module. A plus has a meaning of its own in a package's URL.
func component(path, version, platform string) cyclonedx.Component {
	url := "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
	return cyclonedx.Component{
		BOMRef: url, Type: cyclonedx.ComponentTypeLibrary, Name: path, Version: version, Scope: cyclonedx.ScopeRequired,
		PackageURL: url + "?type=module" + platform,
	}
}
