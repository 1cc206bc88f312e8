//go:build !linux

// Package fileid distinguishes a file from its copies.
package fileid

import (
	"fmt"
	"os"
	"syscall"
)

// Of returns what differs between a file and its copies, but for one on another file
// system that has
// the inode's number by chance.
func Of(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("identify %s: %w", path, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("identify %s: no inode", path)
	}
	return fmt.Sprintf("inode %d", st.Ino), nil
}
