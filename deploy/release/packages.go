package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/blakesmith/ar"
	"github.com/sassoftware/go-rpmutils"

	"github.com/coder/agentstatsd/deploy/packages/names"
)

// packages returns the packages of a platform.
func (v *verification) packages(platform string) []kind {
	arch := platform[strings.LastIndex(platform, "-")+1:]
	return []kind{
		{names.Deb(v.version, arch), func(file string) error { return v.contained(file, platform, debProgram) }},
		{names.RPM(v.version, arch), func(file string) error { return v.contained(file, platform, rpmProgram) }},
	}
}

// contained looks whether a package says its version, and has the program of the archive.
func (v *verification) contained(file, platform string, read func([]byte) (version string, program []byte, err error)) error {
	data, err := v.read(file)
	if err != nil {
		return err
	}
	version, program, err := read(data)
	if err != nil {
		return err
	}
	if want := names.Version(v.version) + "-" + names.Revision; version != want {
		return fmt.Errorf("the package is of %q, want %q", version, want)
	}
	if !bytes.Equal(program, v.programs[platform]) {
		return errors.New("the package has another program than the archive")
	}
	return nil
}

// debProgram returns the version of a Debian package, and the program in it.
func debProgram(data []byte) (version string, program []byte, err error) {
	members := ar.NewReader(bytes.NewReader(data))
	for {
		h, err := members.Next()
		if errors.Is(err, io.EOF) {
			return version, program, nil
		}
		if err != nil {
			return "", nil, fmt.Errorf("unpack: %w", err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if !strings.HasSuffix(name, ".tar.gz") {
			continue
		}
		zipped, err := gzip.NewReader(members)
		if err != nil {
			return "", nil, fmt.Errorf("unzip %s: %w", name, err)
		}
		files, err := unpacked(zipped)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", name, err)
		}
		if name == "data.tar.gz" {
			program = files["usr/bin/agentstatsd"]
			continue
		}
		for line := range strings.Lines(string(files["control"])) {
			if field, ok := strings.CutPrefix(line, "Version: "); ok {
				version = strings.TrimSpace(field)
			}
		}
	}
}

// rpmProgram returns the same of an RPM package.
func rpmProgram(data []byte) (version string, program []byte, err error) {
	pkg, err := rpmutils.ReadRpm(bytes.NewReader(data))
	if err != nil {
		return "", nil, fmt.Errorf("unpack: %w", err)
	}
	nevra, err := pkg.Header.GetNEVRA()
	if err != nil {
		return "", nil, fmt.Errorf("read the header: %w", err)
	}
	payload, err := pkg.PayloadReaderExtended()
	if err != nil {
		return "", nil, fmt.Errorf("unpack: %w", err)
	}
	for {
		info, err := payload.Next()
		if errors.Is(err, io.EOF) {
			return nevra.Version + "-" + nevra.Release, program, nil
		}
		if err != nil {
			return "", nil, fmt.Errorf("unpack: %w", err)
		}
		if path.Clean(info.Name()) == "/usr/bin/agentstatsd" {
			if program, err = io.ReadAll(payload); err != nil {
				return "", nil, fmt.Errorf("unpack: %w", err)
			}
		}
	}
}
