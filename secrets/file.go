// Package secrets reads tokens, private keys and certificates from files. It says
// in one sentence what is wrong with a file, and never shows what is in it.
package secrets

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"syscall"
)

// maxFileBytes bounds what is read of a file: a chain of a hundred certificates.
const maxFileBytes = 1 << 20

// ReadFile returns the content of the regular file at path and what the file system
// says about it. Symbolic links are followed, as Kubernetes mounts secrets as such. A
// file that others (not the group) can write is refused. So is anything that is no
// regular file. ReadFile does not wait for the writer of a FIFO.
func ReadFile(path string) ([]byte, fs.FileInfo, error) {
	// Looked at before it is opened, as the opening of a device can do things.
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if err := checkFile(path, info); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	// It may be another one by now.
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	if err := checkFile(path, info); err != nil {
		return nil, nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, nil, err
	}
	if len(content) > maxFileBytes {
		return nil, nil, fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	return content, info, nil
}

func checkFile(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is %s, want a regular file", path, kindOf(info.Mode()))
	}
	if mode := info.Mode().Perm(); mode&0o002 != 0 {
		return fmt.Errorf("others can write %s (mode %04o): take that right away (chmod o-w)", path, mode)
	}
	return nil
}

// kindOf names what is no regular file.
func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	default:
		return "a special file"
	}
}

// CheckOwn refuses a file that another user may have put in the place of one that the
// service makes itself. It must be a regular file, no symbolic link, owned by this user
// or root, and not writable by others. One that does not exist is fine.
func CheckOwn(path string) error {
	info, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := checkFile(path, info); err != nil {
		return err
	}
	return checkOwner(path, info)
}

func checkOwner(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Uid == 0 || int(stat.Uid) == os.Geteuid() {
		return nil
	}
	return fmt.Errorf("%s belongs to user %d, want this process's user %d or root", path, stat.Uid, os.Geteuid())
}

// CheckDir refuses a directory that others can write, as they could replace the
// service's files. The group may write, as fsGroup of Kubernetes does. In a directory
// like /tmp, where everybody can make files, dir must be of this user or root.
func CheckDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is %s, want a directory", dir, describe(info.Mode()))
	}
	if mode := info.Mode().Perm(); mode&0o002 != 0 {
		return fmt.Errorf("others can write %s (mode %04o): take that right away (chmod o-w), or name a directory in it, "+
			"which is made so that others cannot", dir, mode)
	}
	parent, err := os.Stat(dir + "/..")
	if err != nil {
		return err
	}
	if parent.Mode().Perm()&0o002 != 0 {
		return checkOwner(dir, info)
	}
	return nil
}

func describe(mode fs.FileMode) string {
	if mode.IsRegular() {
		return "a file"
	}
	return kindOf(mode)
}

// yamlValue matches what an error of YAML quotes of a file.
var yamlValue = regexp.MustCompile("`[^`]*`")

// WithoutYAMLValues returns the text of an error of YAML without what it quotes of the
// file. There may be a secret where something else is wanted.
func WithoutYAMLValues(err error) string {
	return yamlValue.ReplaceAllString(err.Error(), "(a value)")
}
