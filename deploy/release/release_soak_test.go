//go:build soak

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two releases of a commit are the same, for all platforms, wherever and by whomever they
// are built.
func TestReleaseIsReproducible(t *testing.T) {
	const version, platforms = "v1.98.6", "linux-amd64 linux-arm64"
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "elsewhere", "two")
	makeRelease(t, one, version, platforms)
	for name, value := range map[string]string{"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "GOFLAGS": "-tags=other", "GOAMD64": "v3", "CGO_ENABLED": "1"} {
		t.Setenv(name, value)
	}
	makeRelease(t, two, version, platforms)
	require.Equal(t, string(bytesOf(t, filepath.Join(one, sums))), string(bytesOf(t, filepath.Join(two, sums))))
	require.NoError(t, verify(os.Stderr, two, version, strings.Fields(platforms)))
}
