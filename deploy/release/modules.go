package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
)

const modulePath = "github.com/coder/agentstatsd"

// tagged are the directories of modules that a release has, whose tags are
// DIRECTORY/vX.Y.Z; the root's is the version.
var tagged = []string{"proto", "client", "client/drpctap", "."}

// requiring are those whose requirements name another of ours.
var requiring = []string{".", "client", "client/drpctap", "examples/coderd", "bench", "integration"}

func readModule(root, dir string) (*modfile.File, string, error) {
	name := filepath.Join(root, dir, "go.mod")
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, "", fmt.Errorf("read requirements: %w", err)
	}
	file, err := modfile.Parse(name, text, nil)
	if err != nil {
		return nil, "", fmt.Errorf("read requirements: %w", err)
	}
	return file, name, nil
}

// ours returns the released modules that a module requires.
func ours(file *modfile.File) (found []*modfile.Require) {
	for _, r := range file.Require {
		if slices.Contains(tagged, strings.TrimPrefix(r.Mod.Path, modulePath+"/")) {
			found = append(found, r)
		}
	}
	return found
}

// requireVersion has modules of ours require that version of one another. Here they are
// replaced by directories, so no sum changes.
func requireVersion(root, version string) error {
	for _, dir := range requiring {
		file, name, err := readModule(root, dir)
		if err != nil {
			return err
		}
		for _, r := range ours(file) {
			if err := file.AddRequire(r.Mod.Path, version); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		text, err := file.Format()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(name, text, 0o644); err != nil { //nolint:gosec // it is for everybody
			return fmt.Errorf("write requirements: %w", err)
		}
	}
	return nil
}

// checkRequirements says which requirements are of another version.
func checkRequirements(root, version string) (wrong error) {
	for _, dir := range requiring {
		file, _, err := readModule(root, dir)
		if err != nil {
			return err
		}
		for _, r := range ours(file) {
			if r.Mod.Version != version {
				wrong = errors.Join(wrong, fmt.Errorf("%s/go.mod requires %s: make prepare-release VERSION=%s", dir, r.Mod, version))
			}
		}
	}
	return wrong
}
