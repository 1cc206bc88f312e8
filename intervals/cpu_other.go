//go:build !unix

package intervals

import "time"

// processCPU returns 0: the CPU time is not known, and not over any target.
func processCPU() time.Duration { return 0 }
