//go:build race

package bubble

import (
	"runtime"
	"sync"
)

// threads counts the bubbles, which may be parallel, and keeps GOMAXPROCS as it
// was before the first.
var threads struct {
	mu      sync.Mutex
	bubbles int
	before  int
}

func oneThread() (restore func()) {
	threads.mu.Lock()
	defer threads.mu.Unlock()
	if threads.bubbles++; threads.bubbles == 1 {
		threads.before = runtime.GOMAXPROCS(1)
	}
	return func() {
		threads.mu.Lock()
		defer threads.mu.Unlock()
		if threads.bubbles--; threads.bubbles == 0 {
			runtime.GOMAXPROCS(threads.before)
		}
	}
}
