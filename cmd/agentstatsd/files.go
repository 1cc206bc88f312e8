package main

import (
	"math"
	"syscall"
)

// openFiles returns how many files and connections the process may have open. Go
// raises that to what the system allows.
func openFiles() int64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > math.MaxInt32 {
		return math.MaxInt32 // there is no limit that would be reached
	}
	return int64(limit.Cur)
}

// maxConnections is the most that may be asked for: the rest is for scrapes, the
// database and the pubsub.
func maxConnections() int64 { return openFiles() * 9 / 10 }

// maxAgentConnections is the same of a bridge, which opens two for each.
func maxAgentConnections() int64 { return maxConnections() / 2 }
