// Packages makes the Debian and RPM packages of the service: the program, its units, its
// configuration, manual page and completions. The same input makes the same bytes.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // registers the format
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // registers the format

	"github.com/coder/agentstatsd/deploy/packages/names"
)

// options are what differs between two packages.
type options struct {
	version string // such as v1.2.3
	arch    string // as Go calls it
	program string // path of the program for that architecture
	printer string // path of the same program for this machine, which prints its manual
	source  string // directory of the checkout
	out     string // directory of the packages
	time    time.Time
}

func main() {
	var o options
	var epoch int64
	flag.StringVar(&o.version, "version", "", "version of the packages, such as v1.2.3")
	flag.StringVar(&o.arch, "arch", "", "architecture, such as amd64")
	flag.StringVar(&o.program, "program", "", "the program for that architecture")
	flag.StringVar(&o.printer, "printer", "", "the same program for this machine: it prints the manual page")
	flag.StringVar(&o.source, "source", "..", "the checkout")
	flag.StringVar(&o.out, "out", "../dist", "directory of the packages")
	flag.Int64Var(&epoch, "epoch", 0, "time of all files, in seconds since 1970")
	flag.Parse()
	o.time = time.Unix(epoch, 0).UTC()
	for _, format := range []string{"deb", "rpm"} {
		path, err := o.build(context.Background(), format)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", format, err)
			os.Exit(1)
		}
		fmt.Println(path)
	}
}

func (o *options) validate() error {
	if !strings.HasPrefix(o.version, "v") {
		return fmt.Errorf("-version: want one such as v1.2.3, got %q", o.version)
	}
	if o.arch == "" || o.program == "" || o.printer == "" {
		return errors.New("-arch, -program and -printer are required")
	}
	if o.time.Unix() <= 0 {
		return errors.New("-epoch: want seconds since 1970, got none")
	}
	return nil
}

// build writes a package and returns its path.
func (o *options) build(ctx context.Context, format string) (path string, err error) {
	if err := o.validate(); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "agentstatsd-package-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	made, err := o.makeFiles(ctx, dir)
	if err != nil {
		return "", err
	}
	info := o.info(format, made)
	packager, err := nfpm.Get(format)
	if err != nil {
		return "", err
	}
	path = filepath.Join(o.out, packager.ConventionalFileName(info))
	var b bytes.Buffer
	if err := packager.Package(info, &b); err != nil {
		return "", err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, b.Bytes(), 0o644)
}

// makeFiles writes what is not in the checkout as a package has it, and returns the paths
// by name.
func (o *options) makeFiles(ctx context.Context, dir string) (map[string]string, error) {
	made := make(map[string]string)
	write := func(name string, text []byte) error {
		made[name] = filepath.Join(dir, name)
		return os.WriteFile(made[name], text, 0o644)
	}
	for name, args := range map[string][]string{
		"man": {"man"}, "bash": {"completion", "bash"}, "zsh": {"completion", "zsh"}, "fish": {"completion", "fish"},
	} {
		text, err := exec.CommandContext(ctx, o.printer, args...).Output()
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", o.printer, strings.Join(args, " "), err)
		}
		if name == "man" {
			text = compressed(text)
		}
		if err := write(name, text); err != nil {
			return nil, err
		}
	}
	changes, err := os.ReadFile(filepath.Join(o.source, "CHANGELOG.md"))
	if err != nil {
		return nil, err
	}
	users, err := os.ReadFile(filepath.Join(o.source, "deploy/packages/sysusers.conf"))
	if err != nil {
		return nil, err
	}
	pre, err := os.ReadFile(filepath.Join(o.source, "deploy/packages/scripts/rpm.pre"))
	if err != nil {
		return nil, err
	}
	return made, errors.Join(
		write("changelog", compressed(changes)),
		write("changelog.yaml", []byte(o.changelog())),
		write("rpm.pre", bytes.Replace(pre, []byte("SYSUSERS\n"), users, 1)),
	)
}

// changelog returns the changelog of the package itself, as chglog reads it.
func (o *options) changelog() string {
	return fmt.Sprintf("- semver: %q\n  date: %s\n  packager: %s\n  deb:\n    urgency: medium\n    distributions: [stable]\n  changes:\n    - note: %q\n",
		names.Version(o.version)+"-"+names.Revision, o.time.Format(time.RFC3339), maintainer, "New version. What has changed is in changelog.gz.")
}

// compressed returns text as gzip has it, without a time.
func compressed(text []byte) []byte {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level is one that there is
	_, _ = w.Write(text)                                  // to memory
	_ = w.Close()
	return b.Bytes()
}

const maintainer = "Coder <support@coder.com>"

const (
	summary     = "telemetry of Coder's workspace agents for Prometheus"
	description = `Workspace agents stream their stats and metadata to agentstatsd. It keeps
their series, writes their metadata to SQLite or PostgreSQL, and serves one
endpoint that Prometheus scrapes. A bridge does the same for the agents of a
stock Coder.`
)

// info returns what nfpm makes a package of.
func (o *options) info(format string, made map[string]string) *nfpm.Info {
	scripts := func(name string) string { return filepath.Join(o.source, "deploy/packages/scripts", name) }
	info := &nfpm.Info{
		Name: "agentstatsd", Arch: o.arch, Platform: "linux", Version: names.Version(o.version), VersionSchema: "none", Release: names.Revision,
		Section: "net", Priority: "optional", Maintainer: maintainer, Vendor: "Coder", Homepage: "https://github.com/coder/agentstatsd",
		License: "Apache-2.0", Description: summary + "\n" + description, MTime: o.time, DisableGlobbing: true, Changelog: made["changelog.yaml"],
	}
	switch format {
	case "deb":
		info.Depends = []string{"init-system-helpers (>= 1.54)", "procps", "systemd | systemd-standalone-sysusers | systemd-sysusers", "systemd | systemd-standalone-tmpfiles | systemd-tmpfiles"}
		info.Recommends = []string{"ca-certificates"}
		info.Suggests = []string{"postgresql", "prometheus"}
		info.Scripts = nfpm.Scripts{PostInstall: scripts("postinst"), PreRemove: scripts("prerm"), PostRemove: scripts("postrm")}
	case "rpm":
		info.Depends = []string{"systemd", "util-linux"}
		info.Recommends = []string{"ca-certificates"}
		info.RPM = nfpm.RPM{BuildHost: "localhost", Summary: summary, Packager: maintainer, Group: "System Environment/Daemons"}
		info.Description = description
		info.Scripts = nfpm.Scripts{PreInstall: made["rpm.pre"], PostInstall: scripts("rpm.post"), PreRemove: scripts("rpm.preun"), PostRemove: scripts("rpm.postun")}
	}
	info.Contents = o.contents(format, made)
	return nfpm.WithDefaults(info)
}

// contents returns the files of a package.
func (o *options) contents(format string, made map[string]string) (all files.Contents) {
	here := filepath.Join(o.source, "deploy/packages")
	add := func(source, destination string, mode os.FileMode) *files.Content {
		c := &files.Content{Source: source, Destination: destination, FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: o.time}}
		all = append(all, c)
		return c
	}
	add(o.program, "/usr/bin/agentstatsd", 0o755)
	for _, unit := range []string{"agentstatsd.service", "agentstatsd-bridge.service"} {
		add(filepath.Join(here, "systemd", unit), "/lib/systemd/system/"+unit, 0o644)
	}
	add(filepath.Join(here, "sysusers.conf"), "/usr/lib/sysusers.d/agentstatsd.conf", 0o644)
	add(filepath.Join(here, "tmpfiles.conf"), "/usr/lib/tmpfiles.d/agentstatsd.conf", 0o644)
	directory := add("", "/etc/agentstatsd", 0o750|os.ModeDir)
	directory.Type = files.TypeDir
	configuration := files.Contents{directory}
	for _, name := range []string{"agentstatsd.yaml", "agentstatsd.env", "agentstatsd-bridge.yaml", "agentstatsd-bridge.env"} {
		c := add(filepath.Join(here, "etc", name), "/etc/agentstatsd/"+name, 0o640)
		c.Type = files.TypeConfigNoReplace
		configuration = append(configuration, c)
	}
	manual := add(made["man"], "/usr/share/man/man1/agentstatsd.1.gz", 0o644)
	add(made["bash"], "/usr/share/bash-completion/completions/agentstatsd", 0o644)
	add(made["fish"], "/usr/share/fish/vendor_completions.d/agentstatsd.fish", 0o644)
	changes := add(made["changelog"], "/usr/share/doc/agentstatsd/changelog.gz", 0o644)
	switch format {
	case "deb":
		add(made["zsh"], "/usr/share/zsh/vendor-completions/_agentstatsd", 0o644)
		add(filepath.Join(here, "copyright"), "/usr/share/doc/agentstatsd/copyright", 0o644)
		add(filepath.Join(here, "lintian-overrides"), "/usr/share/lintian/overrides/agentstatsd", 0o644)
	case "rpm":
		// There the units are in /usr, and the user is made before the files are.
		for _, c := range all {
			c.Destination = strings.Replace(c.Destination, "/lib/systemd", "/usr/lib/systemd", 1)
		}
		for _, c := range configuration {
			c.FileInfo.Group = "agentstatsd"
		}
		add(made["zsh"], "/usr/share/zsh/site-functions/_agentstatsd", 0o644)
		manual.Type, changes.Type = files.TypeRPMDoc, files.TypeRPMDoc
		license := add(filepath.Join(o.source, "LICENSE"), "/usr/share/licenses/agentstatsd/LICENSE", 0o644)
		license.Type = files.TypeRPMLicense
	}
	return all
}
