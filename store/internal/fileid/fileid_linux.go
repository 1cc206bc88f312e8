// Package fileid distinguishes a file from its copies.
package fileid

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Of returns what differs between a file and its copies, as a text. It stays the same
// when the file system is mounted elsewhere, in another container say. Device numbers do
// not. A copy on another file system may have the inode's number by chance, but not the
// time of birth.
func Of(path string) (string, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &st)
	if err != nil {
		return "", fmt.Errorf("identify %s: %w", path, err)
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return fmt.Sprintf("inode %d", st.Ino), nil
	}
	return fmt.Sprintf("inode %d born %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec), nil
}
