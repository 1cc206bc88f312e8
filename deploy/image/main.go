// Image writes the service's image, for all platforms of a release, as an OCI layout. It
// needs no daemon and no other image, and two of one release have the same digests.
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var r release
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.StringVar(&r.Version, "version", "", "the version, vX.Y.Z")
	flags.StringVar(&r.Revision, "revision", "", "the commit")
	created := flags.String("created", "", "the commit's time, in seconds since 1970")
	flags.StringVar(&r.Source, "source", "https://github.com/coder/agentstatsd", "the repository")
	flags.StringVar(&r.Programs, "programs", "dist", "the directory with PLATFORM/agentstatsd and PLATFORM/agentstatsd.cdx.json")
	license := flags.String("license", "LICENSE", "the license of the program")
	platforms := flags.String("platforms", "linux-amd64,linux-arm64", "which there are")
	output := flags.String("output", "dist/image", "the layout, which is written anew")
	if err := flags.Parse(args); err != nil {
		return err
	}
	seconds, err := strconv.ParseInt(*created, 10, 64)
	if err != nil {
		return fmt.Errorf("-created: want seconds since 1970, got %q", *created)
	}
	r.Created = time.Unix(seconds, 0).UTC()
	if r.Version == "" || r.Revision == "" {
		return fmt.Errorf("-version and -revision: want both, got %q and %q", r.Version, r.Revision)
	}
	for name := range strings.SplitSeq(*platforms, ",") {
		system, machine, ok := strings.Cut(name, "-")
		if !ok {
			return fmt.Errorf("-platforms: want SYSTEM-MACHINE, got %q", name)
		}
		r.Platforms = append(r.Platforms, v1.Platform{OS: system, Architecture: machine})
	}
	if r.License, err = os.ReadFile(*license); err != nil {
		return fmt.Errorf("-license: %w", err)
	}
	digest, err := r.write(*output)
	if err != nil {
		return err
	}
	fmt.Printf("%s\tagentstatsd:%s, %s\n", *output, r.tag(), digest)
	return nil
}
