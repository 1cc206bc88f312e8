package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// The archive has the release's version as its own, and that of the image, and is the same
// each time.
func TestPack(t *testing.T) {
	p := packing{chart: "../agentstatsd", version: "v1.2.3-rc.1", created: 1_700_000_000, output: t.TempDir()}
	path, err := p.run()
	require.NoError(t, err)
	first, err := os.ReadFile(path)
	require.NoError(t, err)
	c, err := loader.LoadFile(path)
	require.NoError(t, err)
	require.NoError(t, c.Validate())
	require.Equal(t, "1.2.3-rc.1", c.Metadata.Version)
	require.Equal(t, "v1.2.3-rc.1", c.Metadata.AppVersion)
	require.NotEmpty(t, c.Schema)

	unzipped, err := gzip.NewReader(bytes.NewReader(first))
	require.NoError(t, err)
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.Equal(t, p.created, header.ModTime.Unix(), header.Name)
	}

	p.output = t.TempDir()
	path, err = p.run()
	require.NoError(t, err)
	second, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, first, second)

	p.version = "v0.0.0-20261130101500-0123456789ab+dirty"
	_, err = p.run()
	require.NoError(t, err)
	p.version = "1.2.3"
	_, err = p.run()
	require.EqualError(t, err, `version: want one such as v1.2.3, got "1.2.3"`)
}
