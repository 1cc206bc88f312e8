//go:build !linux

package pgpool

import (
	"syscall"
	"time"
)

// endSilence does nothing: there is no such option.
func endSilence(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
