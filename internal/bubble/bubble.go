// Package bubble runs tests in bubbles of testing/synctest.
package bubble

import (
	"testing"
	"testing/synctest"
)

// Test runs f as synctest.Test does. With the race detector one thread runs Go code
// meanwhile. On two threads that meet a timer which is due, the detector itself crashes
// (golang/go#78156).
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	defer oneThread()()
	synctest.Test(t, f)
}
