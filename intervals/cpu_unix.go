//go:build unix

package intervals

import (
	"syscall"
	"time"
)

// processCPU returns the CPU time of this process; 0 if it is not known.
func processCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
