package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	unreleased = "Unreleased"
	// mustDo is what whoever runs the version before reads first.
	mustDo = "### What you must do"
)

// section is what CHANGELOG.md says of a version.
type section struct {
	version string // Unreleased: what has none yet
	day     string // of the release
	text    string // without its heading
}

// readChangelog returns the sections, newest first. It refuses one of another form.
func readChangelog(root string) (head string, sections []section, err error) {
	text, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	if err != nil {
		return "", nil, fmt.Errorf("read the changelog: %w", err)
	}
	parts := strings.Split(string(text), "\n## ")
	for _, part := range parts[1:] {
		heading, body, _ := strings.Cut(part, "\n")
		version, day, dated := strings.Cut(heading, " - ")
		if dated == (version == unreleased) || version != unreleased && !released.MatchString(version) {
			return "", nil, fmt.Errorf("CHANGELOG.md: want ## Unreleased or ## vX.Y.Z - YYYY-MM-DD, got ## %s", heading)
		}
		s := section{version, day, strings.TrimSpace(body)}
		if err := s.validate(); err != nil {
			return "", nil, err
		}
		sections = append(sections, s)
	}
	return parts[0], sections, nil
}

// validate looks for the first part, and that no part is empty. Who has to do nothing is
// told so.
func (s section) validate() error {
	if s.text == "" && s.version == unreleased {
		return nil
	}
	if !strings.HasPrefix(s.text, mustDo+"\n") {
		return fmt.Errorf("CHANGELOG.md: %s begins with %q, which says Nothing. if it is nothing", s.version, mustDo)
	}
	for part := range strings.SplitSeq("\n"+s.text, "\n### ") {
		title, body, _ := strings.Cut(part, "\n")
		if title != "" && strings.TrimSpace(body) == "" {
			return fmt.Errorf("CHANGELOG.md: %s: %q is empty", s.version, title)
		}
	}
	return nil
}

// notes returns what the changelog says of a version.
func notes(root, version string) (string, error) {
	_, sections, err := readChangelog(root)
	if err != nil {
		return "", err
	}
	for _, s := range sections {
		if s.version == version {
			return s.text, nil
		}
	}
	return "", fmt.Errorf("CHANGELOG.md: no ## %s: make prepare-release VERSION=%s", version, version)
}

func printNotes(w io.Writer, root, version string) error {
	text, err := notes(root, version)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, text)
	return err
}

// nameUnreleased gives what is not released yet the version, and begins anew.
func nameUnreleased(root, version, day string) error {
	head, sections, err := readChangelog(root)
	if err != nil {
		return err
	}
	if len(sections) == 0 || sections[0].version != unreleased || sections[0].text == "" {
		return fmt.Errorf("CHANGELOG.md: nothing is %s", unreleased)
	}
	for _, s := range sections[1:] {
		if s.version == version {
			return fmt.Errorf("CHANGELOG.md: %s is there already", version)
		}
	}
	sections[0].version, sections[0].day = version, day
	var out strings.Builder
	fmt.Fprintf(&out, "%s\n## %s\n", head, unreleased)
	for _, s := range sections {
		fmt.Fprintf(&out, "\n## %s - %s\n\n%s\n", s.version, s.day, s.text)
	}
	if err := os.WriteFile(filepath.Join(root, "CHANGELOG.md"), []byte(out.String()), 0o644); err != nil { //nolint:gosec // it is for everybody
		return fmt.Errorf("write the changelog: %w", err)
	}
	return nil
}
