package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"time"
)

const (
	// user is the number of user and group. Kubernetes can only see that a number is not
	// root's, and 65532 is the one that distroless images and the manifests have.
	user    = 65532
	program = "usr/bin/agentstatsd"
	dataDir = "var/lib/agentstatsd"
)

// entry is a file or, if its name ends in a slash, a directory.
type entry struct {
	name string
	mode int64
	own  bool // the user's; else root's
	data []byte
}

// base returns all files but the program: what Go's libraries look for, and where the
// process may write if nothing is mounted there. There is no shell.
func base(authorities, license []byte) []entry {
	return []entry{
		{name: "etc/", mode: 0o755},
		{name: "etc/group", mode: 0o644, data: fmt.Appendf(nil, "root:x:0:\nagentstatsd:x:%d:\n", user)},
		{name: "etc/nsswitch.conf", mode: 0o644, data: []byte("hosts: files dns\n")},
		{name: "etc/passwd", mode: 0o644, data: fmt.Appendf(nil,
			"root:x:0:0:root:/root:/sbin/nologin\nagentstatsd:x:%d:%d:agentstatsd:/%s:/sbin/nologin\n", user, user, dataDir)},
		{name: "etc/ssl/", mode: 0o755},
		{name: "etc/ssl/certs/", mode: 0o755},
		{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, data: authorities},
		{name: "tmp/", mode: 0o1777},
		{name: "usr/", mode: 0o755},
		{name: "usr/bin/", mode: 0o755},
		{name: "usr/share/", mode: 0o755},
		{name: "usr/share/doc/", mode: 0o755},
		{name: "usr/share/doc/agentstatsd/", mode: 0o755},
		{name: "usr/share/doc/agentstatsd/LICENSE", mode: 0o644, data: license},
		{name: "var/", mode: 0o755},
		{name: "var/lib/", mode: 0o755},
		{name: dataDir + "/", mode: 0o700, own: true},
	}
}

// pack returns the archive of entries, in their order. Nothing of this machine is in it.
func pack(entries []entry, at time.Time) ([]byte, error) {
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data)), ModTime: at, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if e.name[len(e.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if e.own {
			h.Uid, h.Gid = user, user
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("pack %s: %w", e.name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("pack %s: %w", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return packed.Bytes(), nil
}

// opener lets an archive be read again and again.
func opener(packed []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil }
}

// readProgram reads the program of a platform.
func readProgram(file string) (entry, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return entry{}, fmt.Errorf("read the program: %w", err)
	}
	return entry{name: program, mode: 0o755, data: data}, nil
}
