// Release does what is neither building nor testing of a release: it writes the version
// into what has it, looks whether a commit can be released, and whether what was built can
// be given to others. RELEASE.md has the steps.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

const usage = "usage: release prepare|check|notes|verify -version VERSION [-root DIR] [-dist DIR]"

func run(args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	flags := flag.NewFlagSet("release "+args[0], flag.ContinueOnError)
	version := flags.String("version", "", "the version, vX.Y.Z")
	root := flags.String("root", "..", "the checkout")
	dist := flags.String("dist", "../dist", "what make release has built")
	platforms := flags.String("platforms", "linux-amd64,linux-arm64", "for which a release must have programs")
	day := flags.String("day", time.Now().UTC().Format(time.DateOnly), "of the release")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if flags.NArg() != 0 || *version == "" {
		return errors.New(usage)
	}
	switch args[0] {
	case "prepare":
		return prepare(*root, *version, *day)
	case "check":
		return check(*root, *version)
	case "notes":
		return printNotes(os.Stdout, *root, *version)
	case "verify":
		return verify(os.Stdout, *dist, *version, strings.Split(*platforms, ","))
	}
	return errors.New(usage)
}

// Of these versions Go does not want another path of the modules.
var released = regexp.MustCompile(`^v[01]\.[0-9]+\.[0-9]+(-rc\.[0-9]+)?$`)

// prepare writes the version into CHANGELOG.md and the modules' requirements.
func prepare(root, version, day string) error {
	if !released.MatchString(version) {
		return fmt.Errorf("version: want v0.Y.Z, v1.Y.Z or one with -rc.N, got %q", version)
	}
	return errors.Join(nameUnreleased(root, version, day), requireVersion(root, version))
}

// check says all that keeps a commit from being released.
func check(root, version string) error {
	if !released.MatchString(version) {
		return fmt.Errorf("version: want v0.Y.Z, v1.Y.Z or one with -rc.N, got %q: a file differs from the commit, or it has no tag; VERSION=vX.Y.Z names one to come", version)
	}
	_, err := notes(root, version)
	return errors.Join(err, checkRequirements(root, version))
}
