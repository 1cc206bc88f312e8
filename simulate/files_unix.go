//go:build unix

package simulate

import "syscall"

// maxOpenFiles returns how many files this process may have open; 0: any
// number. Go has raised the limit to the hard one at its start.
func maxOpenFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return 0
	}
	return int(limit.Cur)
}
