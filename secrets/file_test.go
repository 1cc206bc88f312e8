package secrets

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// file makes one in a directory of its own.
func file(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	require.NoError(t, os.Chmod(path, mode))
	return path
}

func TestReadFile(t *testing.T) {
	for _, mode := range []os.FileMode{0o400, 0o600, 0o640, 0o660, 0o644} {
		content, info, err := ReadFile(file(t, "f", "content", mode))
		require.NoError(t, err)
		require.Equal(t, "content", string(content))
		require.Equal(t, mode, info.Mode())
	}
}

// Kubernetes mounts a secret as a link to a link of a directory.
func TestReadFileOfKubernetesSecret(t *testing.T) {
	mount := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(mount, "..2026_11_28"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(mount, "..2026_11_28", "token"), []byte("0123456789abcdef"), 0o440))
	require.NoError(t, os.Symlink("..2026_11_28", filepath.Join(mount, "..data")))
	require.NoError(t, os.Symlink("..data/token", filepath.Join(mount, "token")))
	token, _, err := ReadToken(filepath.Join(mount, "token"))
	require.NoError(t, err)
	require.Equal(t, "0123456789abcdef", token)
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	lis, err := net.Listen("unix", filepath.Join(dir, "socket"))
	require.NoError(t, err)
	defer lis.Close()
	large := file(t, "large", "", 0o600)
	require.NoError(t, os.Truncate(large, maxFileBytes+1))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(fifo, link))
	for path, want := range map[string]string{
		fifo:                          "fifo is a FIFO, want a regular file",
		link:                          "link is a FIFO, want a regular file",
		dir:                           "is a directory, want a regular file",
		filepath.Join(dir, "socket"):  "socket is a socket, want a regular file",
		"/dev/zero":                   "/dev/zero is a device, want a regular file",
		large:                         "is larger than 1048576 bytes",
		file(t, "open", "x", 0o666):   "(mode 0666): take that right away (chmod o-w)",
		filepath.Join(dir, "missing"): "missing: no such file or directory",
	} {
		_, _, err := ReadFile(path)
		require.ErrorContains(t, err, want)
	}
}

func TestCheckOwn(t *testing.T) {
	require.NoError(t, CheckOwn(file(t, "own", "", 0o600)))
	require.NoError(t, CheckOwn(file(t, "own", "", 0o660)))
	require.NoError(t, CheckOwn(filepath.Join(t.TempDir(), "missing")))
	require.ErrorContains(t, CheckOwn(file(t, "own", "", 0o602)), "others can write ")
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink("/nowhere", link))
	require.ErrorContains(t, CheckOwn(link), "link is a symbolic link, want a regular file")
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	require.ErrorContains(t, CheckOwn(fifo), "fifo is a FIFO, want a regular file")
	if os.Geteuid() == 0 { // only root can give files away
		foreign := file(t, "foreign", "", 0o644)
		require.NoError(t, os.Chown(foreign, 12345, -1))
		require.ErrorContains(t, CheckOwn(foreign), "foreign belongs to user 12345, want this process's user 0 or root")
	}
}

func TestCheckDir(t *testing.T) {
	dir := func(mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), "d")
		require.NoError(t, os.Mkdir(path, 0o700))
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	for _, mode := range []os.FileMode{0o700, 0o750, 0o755, 0o770, 0o775 | os.ModeSetgid} {
		require.NoError(t, CheckDir(dir(mode)), mode)
	}
	for _, mode := range []os.FileMode{0o777, 0o702, 0o777 | os.ModeSticky} {
		require.ErrorContains(t, CheckDir(dir(mode)), "others can write ", mode)
	}
	require.ErrorContains(t, CheckDir(file(t, "f", "", 0o600)), "is a file, want a directory")

	// In a directory where everybody can make some, it must be ours.
	shared := dir(0o777 | os.ModeSticky)
	inside := filepath.Join(shared, "d")
	require.NoError(t, os.Mkdir(inside, 0o700))
	require.NoError(t, CheckDir(inside))
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(inside, 12345, -1))
		require.ErrorContains(t, CheckDir(inside), "d belongs to user 12345, want this process's user 0 or root")
	}
}
