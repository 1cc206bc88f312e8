package datadir

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOpenDirectoryIsRefused(t *testing.T) {
	_, err := Lock("")
	require.ErrorContains(t, err, "--data-dir: want a directory")
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	_, err = Lock(dir)
	require.ErrorContains(t, err, "data directory: others can write "+dir+" (mode 0777)")
	// As the sentence says, one that is made in it is fine.
	unlock, err := Lock(filepath.Join(dir, "data"))
	require.NoError(t, err)
	unlock()
	// fsGroup of Kubernetes.
	require.NoError(t, os.Chmod(dir, 0o775|os.ModeSetgid))
	unlock, err = Lock(dir)
	require.NoError(t, err)
	unlock()
}
