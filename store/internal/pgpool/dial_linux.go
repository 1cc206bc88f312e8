package pgpool

import (
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// endSilence ends a connection by TCP on which what was sent is not confirmed for that
// long. Probes of a silent connection stop where something is unconfirmed. Without this
// a query to a host that is gone waits for a quarter of an hour.
func endSilence(after time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
		})
		if err != nil {
			return err
		}
		return failed
	}
}
