package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/deploy/packages/names"
)

// Packages have the program of the archive, and the version that their names say.
func TestVerifyPackages(t *testing.T) {
	const version, other = "v1.98.6", "v1.98.5"
	dist := t.TempDir()
	program, printer := filepath.Join(dist, "program"), filepath.Join(dist, "printer")
	write(t, program, []byte("program"))
	write(t, printer, []byte("#!/bin/sh\necho printed\n"))
	require.NoError(t, os.Chmod(printer, 0o700))
	cmd := exec.Command("go", "run", "../packages", "-version", version, "-epoch", "1700000000", "-arch", "arm64", "-program", program, "-printer", printer, "-source", checkout, "-out", dist)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)

	look := func(version, program string) (deb, rpm error) {
		v := &verification{dist: dist, version: version, programs: map[string][]byte{"linux-arm64": []byte(program)}}
		kinds := v.packages("linux-arm64")
		require.Len(t, kinds, 2)
		require.Equal(t, []string{names.Deb(version, "arm64"), names.RPM(version, "arm64")}, []string{kinds[0].file, kinds[1].file})
		return kinds[0].check(kinds[0].file), kinds[1].check(kinds[1].file)
	}
	deb, rpm := look(version, "program")
	require.NoError(t, deb)
	require.NoError(t, rpm)
	deb, rpm = look(version, "another")
	require.ErrorContains(t, deb, "the package has another program")
	require.ErrorContains(t, rpm, "the package has another program")
	require.NoError(t, os.Rename(filepath.Join(dist, names.Deb(version, "arm64")), filepath.Join(dist, names.Deb(other, "arm64"))))
	require.NoError(t, os.Rename(filepath.Join(dist, names.RPM(version, "arm64")), filepath.Join(dist, names.RPM(other, "arm64"))))
	deb, rpm = look(other, "program")
	require.ErrorContains(t, deb, `the package is of "1.98.6-1", want "1.98.5-1"`)
	require.ErrorContains(t, rpm, `the package is of "1.98.6-1", want "1.98.5-1"`)
}
